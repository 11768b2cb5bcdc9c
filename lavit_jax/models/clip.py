"""The contrastive model of stage 0: vision encoder, text tower, patch words.

    images -> ViT -> class token -> f[B, E]      caption ids -> text tower -> f[B, E]

The patch-word heads name the color and the shape of the object that covers a patch.
They exist because a contrastive loss alone does not learn shape in minutes; whatever
is read from these features later has seen those labels.
"""

from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lavit_jax.core import sequence
from lavit_jax.core.sharding import constrain
from lavit_jax.layers import attention, heads, linear, mlp, norm, stack
from lavit_jax.models import vit

TEXT_VARIANTS = {
  "tiny": dict(
    embed_dim=128, num_layers=1, num_heads=4, head_dim=32, mlp_dim=512, max_length=56
  ),
}
MAX_LOGIT_SCALE = 100.0


@flax.struct.dataclass
class ClipOutput:
  """What stage 0 trains on.

  Attributes:
    image: float32[B, E] unit image embeddings.
    text: float32[B, E] unit caption embeddings.
    scale: float32[] logit scale.
    words: float32[B, P, W] logits by word kind.
  """

  image: jax.Array
  text: jax.Array
  scale: jax.Array
  words: dict[str, jax.Array]


class Block(nn.Module):
  """A pre-norm block of either tower.

  Attributes:
    num_heads: N.
    head_dim: H.
    mlp_dim: F.
    dtype: compute dtype.
    activation: between the two maps of its MLP.
  """

  num_heads: int
  head_dim: int
  mlp_dim: int
  dtype: str = "bfloat16"
  activation: Callable[[jax.Array], jax.Array] = mlp.gelu

  @nn.compact
  def __call__(self, x, mask):
    """Maps dtype[B, T, D] under mask bool[B, T, T]; None looks everywhere."""
    x = constrain(x, "act_images", None, None)
    sizes = (self.num_heads, self.head_dim)
    normed = norm.LayerNorm(1e-5, name="norm1")(x)
    mixed = attention.attend(*heads.fused(normed, *sizes, self.dtype), mask)
    x = x + heads.from_heads(*sizes, x.shape[-1], self.dtype, "out")(mixed)
    x = x + mlp.Mlp(self.mlp_dim, self.dtype, self.activation, name="mlp")(
      norm.LayerNorm(1e-5, name="norm2")(x)
    )
    return x, None


class TextTower(nn.Module):
  """Causal transformer whose state at the last token stands for the caption.

  Attributes:
    vocab_size: rows of the embedding table.
    embed_dim: D.
    num_layers: blocks.
    num_heads: N.
    head_dim: H.
    mlp_dim: F.
    max_length: longest caption.
    output_dim: E.
    dtype: compute dtype.
    unroll: layers per scan step.
    activation: of its blocks.
  """

  vocab_size: int
  embed_dim: int
  num_layers: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  max_length: int
  output_dim: int
  dtype: str = "bfloat16"
  unroll: int = 1
  activation: Callable[[jax.Array], jax.Array] = mlp.gelu

  @nn.compact
  def __call__(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """Embeds int32[B, T] captions of int32[B] tokens each: dtype[B, E]."""
    x = linear.Embed(self.vocab_size, self.embed_dim, self.dtype, name="embed")(tokens)
    table = linear.param(
      self,
      "positions",
      nn.initializers.normal(0.01),
      (self.max_length, self.embed_dim),
      (None, "embed"),
    )
    x = linear.add_shared(x, table[: tokens.shape[1]])
    x = constrain(x, "act_images", None, None)
    segment_ids = (jnp.arange(tokens.shape[1]) < lengths[:, None]).astype(jnp.int32)
    mask = sequence.packed_mask(segment_ids)
    blocks = stack.layers(Block, self.num_layers, unroll=self.unroll, broadcast=1)
    sizes = (self.num_heads, self.head_dim, self.mlp_dim)
    x, _ = blocks(*sizes, self.dtype, self.activation, name="blocks")(x, mask)
    x = norm.LayerNorm(1e-5, name="norm")(x)
    last = jnp.maximum(lengths - 1, 0)[:, None, None]
    x = jnp.take_along_axis(x, last, axis=1)  # [B, 1, D]
    x = constrain(x, "act_images", None, None)
    project = linear.dense(
      self.embed_dim,
      self.output_dim,
      ("embed", None),
      use_bias=False,
      dtype=self.dtype,
      name="project",
    )
    return project(x)[:, 0]


class Clip(nn.Module):
  """Vision encoder and text tower in one embedding space.

  Attributes:
    vit: the vision encoder, which later stages freeze.
    text: the text tower.
    num_words: classes of each patch-word head by kind, the last one background.
    dtype: compute dtype.
  """

  vit: vit.VisionTransformer
  text: TextTower
  num_words: dict[str, int]
  dtype: str = "bfloat16"

  @nn.compact
  def __call__(
    self, images: jax.Array, tokens: jax.Array, lengths: jax.Array
  ) -> ClipOutput:
    """Embeds both sides.

    Args:
      images: float32[B, H, W, 3] normalized pictures.
      tokens: int32[B, T] captions.
      lengths: int32[B] their lengths.

    Returns:
      Unit embeddings, the logit scale and the patch-word logits.
    """
    features = self.vit(images)
    # Each device embeds its own pictures and captions; only the loss compares them all.
    image = constrain(self.vit.clip_embedding(features), "act_images", None)
    text = constrain(self.text(tokens, lengths), "act_images", None)
    scale = linear.param(self, "scale", nn.initializers.constant(2.659), (), ())
    patches = norm.LayerNorm(1e-5, name="word_norm")(features[:, 1:])
    words = {
      kind: linear.dense(
        patches.shape[-1], count, ("embed", None), dtype=self.dtype, name=f"word_{kind}"
      )(patches)
      for kind, count in sorted(self.num_words.items())
    }
    return ClipOutput(
      _unit(image), _unit(text), jnp.minimum(jnp.exp(scale), MAX_LOGIT_SCALE), words
    )


def _unit(x: jax.Array) -> jax.Array:
  x = x.astype(jnp.float32)
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
