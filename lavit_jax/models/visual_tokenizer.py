"""The visual tokenizer: selector, merger, bottleneck and feature decoder.

raw, whitened f[B, P, D] -> select -> log_probs [B, P, 2] -> (sample) -> keep [B, P]
whitened, keep -> encode -> z f32[B, P, C], unit length -> (codebook) -> vectors
vectors left-packed [B, S, C], lengths [B] -> decode -> x_rec [B, P, D]

What lies in brackets is not a module: sampling takes noise, the codebook is state.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lavit_jax.core import sequence
from lavit_jax.models import codebook
from lavit_jax.models.feature_decoder import FeatureDecoder, TaskLayer
from lavit_jax.models.merger import Merger
from lavit_jax.models.selector import Selector

VARIANTS = {
  "lavit": dict(
    embed_dim=1408,
    num_layers=12,
    num_heads=16,
    head_dim=88,
    mlp_dim=6144,
    num_patches=256,
    code_dim=32,
    num_codes=16384,
    selector_input="raw",  # as the merger's: EVA features are never whitened
  ),
  "tiny": dict(
    embed_dim=128,
    num_layers=2,
    num_heads=4,
    head_dim=32,
    mlp_dim=512,
    num_patches=64,
    code_dim=32,
    num_codes=1024,
    selector_input="raw",  # whitening makes position loud: it would keep landmarks
  ),
}


SELECTOR_INPUTS = ("raw", "whitened")


class VisualTokenizer(nn.Module):
  """All that stage 1 trains by gradient.

  Attributes:
    embed_dim: D, the encoder's width.
    num_layers: blocks of the merger and of the feature decoder.
    num_heads: N.
    head_dim: H.
    mlp_dim: F.
    num_patches: P.
    code_dim: C.
    num_codes: K, rows of the codebook that goes with it.
    selector_input: what the selector scores, "raw" encoder features or the "whitened"
      ones of the merger; models stored without this field saw whitened ones.
    dtype: compute dtype; the selector runs in float32.
    remat: a key of `stack.REMAT_POLICIES`.
    unroll: layers per scan step.
  """

  embed_dim: int
  num_layers: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  num_patches: int
  code_dim: int
  num_codes: int
  selector_input: str = "whitened"
  dtype: str = "bfloat16"
  remat: str = "none"
  unroll: int = 1

  def setup(self):
    """Makes the parts."""
    if self.selector_input not in SELECTOR_INPUTS:
      raise ValueError(
        f"expected selector_input to be one of {SELECTOR_INPUTS}, got"
        f" {self.selector_input!r}; set it to what the selector was trained on"
      )
    trunk = dict(
      embed_dim=self.embed_dim,
      num_layers=self.num_layers,
      num_heads=self.num_heads,
      head_dim=self.head_dim,
      mlp_dim=self.mlp_dim,
      dtype=self.dtype,
      remat=self.remat,
      unroll=self.unroll,
    )
    self.selector = Selector(self.embed_dim)
    self.merger = Merger(**trunk)
    self.encode_task_layer = TaskLayer(self.code_dim, self.dtype)
    self.feature_decoder = FeatureDecoder(
      **trunk, num_patches=self.num_patches, code_dim=self.code_dim
    )

  def __call__(self, inputs: jax.Array, keep: jax.Array) -> jax.Array:
    """Reconstructs features without lookup; touches every parameter.

    Args:
      inputs: float[B, P, D] patch features, whitened or raw.
      keep: bool[B, P].

    Returns:
      dtype[B, P, D] reconstruction of the raw features.
    """
    if self.is_initializing():
      self.select(
        inputs, inputs
      )  # the mask is an argument, yet `init` makes its maker too
    vectors, lengths = sequence.left_align(self.encode(inputs, keep), keep)
    return self.decode(vectors, lengths)

  def select(self, features: jax.Array, whitened: jax.Array) -> jax.Array:
    """Scores patches from what this model's selector sees.

    Args:
      features: float[B, P, D] of the encoder, as they are.
      whitened: float[B, P, D] the same as the merger gets them.

    Returns:
      float32[B, P, 2] log-probabilities of keeping (0) and dropping each patch.
    """
    seen = {"raw": features, "whitened": whitened}
    return self.selector(seen[self.selector_input])

  def encode(self, inputs: jax.Array, keep: jax.Array) -> jax.Array:
    """Merges and narrows to unit vectors.

    Args:
      inputs: float[B, P, D] patch features, whitened or raw.
      keep: bool or float[B, P]; as a float it carries gradient to the selector.

    Returns:
      float32[B, P, C] at all positions; the kept ones mean something.
    """
    merged = self.merger(inputs, keep)
    return codebook.l2_normalize(self.encode_task_layer(merged))

  def decode(self, vectors: jax.Array, lengths: jax.Array) -> jax.Array:
    """Features dtype[B, P, D] of float[B, S, C] left-packed vectors, int32[B] long."""
    return self.feature_decoder(vectors, lengths)


def init_function(model: VisualTokenizer) -> Callable[[jax.Array], Any]:
  """key -> boxed variables of the whole model."""

  def init(key):
    features = jnp.zeros((1, model.num_patches, model.embed_dim))
    return model.init(key, features, jnp.ones(features.shape[:2], bool))

  return init
