"""LaVIT: the language model with its own merger and projection for continuous images.

    features f[B*M, P, C] -> merger -> f[B, M*P, C] -> row-local gather f[B, L, C]
    -> vit_proj f[B, L, D] -> where(feature_index >= 0, feature, embed[token]) -> LLaMA

The gather precedes vit_proj: only features that a row holds are projected, and no
collective over `data` or `fsdp` has a feature shape. Over `sequence`, whose devices
share rows and encode some of their pictures each, the merged features are gathered
once, before places take theirs: a row has fewer patches than places.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from lavit_jax.core import sequence
from lavit_jax.core.sharding import constrain
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.layers import linear
from lavit_jax.models import llama, merger

MERGER_FIELDS = ("embed_dim", "num_layers", "num_heads", "head_dim", "mlp_dim")


class LaVIT(nn.Module):
  """What stage 2 trains.

  Attributes:
    llama: the language model.
    merger: stage-2 merger, started from the stage-1 one, never used for codes.
    feature_dim: C, width of the vision features.
    dtype: compute dtype.
  """

  llama: llama.Llama
  merger: merger.Merger
  feature_dim: int
  dtype: str = "bfloat16"

  def setup(self):
    self.vit_proj = linear.dense(
      self.feature_dim, self.llama.embed_dim, (None, "embed"), dtype=self.dtype
    )

  def merge(self, features: jax.Array, keep: jax.Array) -> jax.Array:
    """Merges patch features by their stored masks.

    Args:
      features: float[B*M, P, C] inputs of the merger.
      keep: bool[B, M, P].

    Returns:
      dtype[B, M*P, C], meaningful at kept patches.
    """
    rows, slots, _ = keep.shape
    flat_keep = rearrange(keep, "b m p -> (b m) p")
    merged = self.merger(features, flat_keep)
    merged = rearrange(merged, "(b m) p c -> b (m p) c", b=rows, m=slots)
    return constrain(merged, "act_batch", None, None)

  def embed_row(
    self, tokens: jax.Array, merged: jax.Array, feature_index: jax.Array
  ) -> jax.Array:
    """Input vectors of a row: a feature where there is one, else the token's vector.

    Args:
      tokens: int32[B, L].
      merged: dtype[B, S, C] merged features of the row's images.
      feature_index: int32[B, L] in [0, S), or -1.

    Returns:
      dtype[B, L, D].
    """
    gathered = sequence.gather_features(merged, feature_index)
    # Places over `sequence` from here on, else each device would project all of them.
    features = self.vit_proj(constrain(gathered, "act_batch", "act_length", None))
    words = self.llama.embed(tokens)
    return jnp.where(feature_index[..., None] >= 0, features, words)

  def __call__(
    self,
    tokens: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array,
    feature_index: jax.Array,
    features: jax.Array,
    keep: jax.Array,
  ) -> jax.Array:
    """Hidden states dtype[B, L, D] of packed rows; arguments as above."""
    merged = self.merge(features, keep)
    inputs = self.embed_row(tokens, merged, feature_index)
    return self.llama(inputs, positions, segment_ids)

  def everything(self, tokens, segment_ids, positions, feature_index, features, keep):
    """Touches every parameter, for initialization."""
    hidden = self(tokens, segment_ids, positions, feature_index, features, keep)
    return self.llama.logits(hidden)


def build(
  language: dict[str, Any],
  visual: dict[str, Any],
  words: Vocabulary,
  dtype: str,
  remat: str = "none",
  unroll: int = 1,
) -> LaVIT:
  """The model of given sizes.

  Args:
    language: sizes of the language model, as fields of `llama.Llama`.
    visual: sizes of the visual tokenizer, whose merger is copied.
    words: the joint vocabulary.
    dtype: compute dtype.
    remat: what of a layer is computed again in the backward pass.
    unroll: layers per scan step.
  """
  common = dict(dtype=dtype, remat=remat, unroll=unroll)
  return LaVIT(
    llama=llama.Llama(
      words.size, words.padded_size, **language, **common, holes=words.holes
    ),
    merger=merger.Merger(**{name: visual[name] for name in MERGER_FIELDS}, **common),
    feature_dim=visual["embed_dim"],
    dtype=dtype,
  )


def init_function(model: LaVIT, num_patches: int):
  """key -> boxed variables of the whole trainable model."""

  def init(key):
    ids, keep = jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 1, num_patches), bool)
    features = jnp.zeros((1, num_patches, model.feature_dim))
    arguments = (ids, ids + 1, ids, ids - 1, features, keep)
    return model.init(key, *arguments, method="everything")

  return init
