"""OpenAI's CLIP, ViT-L/14 at full size: how well a picture fits a text.

    images f[B, H, W, 3] -> patches, class token first -> norm -> blocks -> f[B, E]
    ids i32[B, T] -> causal text tower, read at the end mark             -> f[B, E]

Unlike EVA's encoder it normalizes before its blocks, has biases on keys, and both
towers use the quick GELU. Radford et al. 2021, section 2.4.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from lavit_jax.layers import linear, mlp, norm, stack
from lavit_jax.models.clip import Block, TextTower

EPS = 1e-5
LOGIT_SCALE = 2.6592  # log(1 / 0.07), where training began

VARIANTS = {
  "L14": dict(
    vision=dict(
      image_size=224,
      patch_size=14,
      embed_dim=1024,
      num_layers=24,
      num_heads=16,
      head_dim=64,
      mlp_dim=4096,
    ),
    text=dict(
      vocab_size=49408,
      embed_dim=768,
      num_layers=12,
      num_heads=12,
      head_dim=64,
      mlp_dim=3072,
      max_length=77,
    ),
    output_dim=768,
  ),
  "tiny": dict(
    vision=dict(
      image_size=32,
      patch_size=8,
      embed_dim=64,
      num_layers=2,
      num_heads=1,
      head_dim=64,
      mlp_dim=96,
    ),
    text=dict(
      vocab_size=99,
      embed_dim=128,
      num_layers=3,
      num_heads=2,
      head_dim=64,
      mlp_dim=80,
      max_length=13,
    ),
    output_dim=24,
  ),
}


class VisionTower(nn.Module):
  """ViT whose class token, after the last block, stands for the picture.

  Attributes:
    image_size: side of the square image in pixels.
    patch_size: side of a patch in pixels.
    embed_dim: D.
    num_layers: blocks.
    num_heads: N.
    head_dim: H.
    mlp_dim: F.
    output_dim: E.
    dtype: compute dtype.
  """

  image_size: int
  patch_size: int
  embed_dim: int
  num_layers: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  output_dim: int
  dtype: str = "bfloat16"

  @nn.compact
  def embed(self, images: jax.Array) -> jax.Array:
    """Embeds float[B, H, W, 3] normalized pictures: dtype[B, E]."""
    p, dim = self.patch_size, self.embed_dim
    patches = rearrange(images, "b (h p) (w q) c -> b (h w) (p q c)", p=p, q=p)
    x = linear.dense(
      p * p * 3,
      dim,
      (None, "embed"),
      use_bias=False,
      dtype=self.dtype,
      name="patch_embed",
    )(patches)  # [B, P, D]
    small = nn.initializers.normal(dim**-0.5)
    token = linear.param(self, "cls_token", small, (dim,), (None,)).astype(x.dtype)
    token = jnp.broadcast_to(token, (x.shape[0], 1, dim))
    x = jnp.concatenate([token, x], axis=1)  # [B, P+1, D]
    table = (x.shape[1], dim)
    positions = linear.param(self, "positions", small, table, (None, "embed"))
    x = norm.LayerNorm(EPS, name="norm_before")(x + positions.astype(x.dtype))
    blocks = stack.layers(Block, self.num_layers, broadcast=1)
    sizes = (self.num_heads, self.head_dim, self.mlp_dim)
    x, _ = blocks(*sizes, self.dtype, mlp.quick_gelu, name="blocks")(x, None)
    x = norm.LayerNorm(EPS, name="norm")(x[:, :1])
    return _project(dim, self.output_dim, self.dtype)(x)[:, 0]


def _project(embed_dim: int, output_dim: int, dtype: str) -> linear.Einsum:
  """The map into the common space, named as in `TextTower`."""
  axes = ("embed", None)
  return linear.dense(
    embed_dim, output_dim, axes, use_bias=False, dtype=dtype, name="project"
  )


class OpenaiClip(nn.Module):
  """Both towers.

  Attributes:
    vision: sizes of `VisionTower`.
    text: sizes of `TextTower`.
    output_dim: E, width of the common space.
    dtype: compute dtype.
  """

  vision: dict[str, int]
  text: dict[str, int]
  output_dim: int
  dtype: str = "bfloat16"

  def setup(self):
    """Makes the towers."""
    self.vision_tower, self.text_tower = towers(
      self.vision, self.text, self.output_dim, self.dtype
    )
    start = nn.initializers.constant(LOGIT_SCALE)
    self.scale = linear.param(self, "scale", start, (), ())

  def __call__(
    self, images: jax.Array, tokens: jax.Array, lengths: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Embeds both sides, not normalized.

    Args:
      images: float32[B, H, W, 3] normalized pictures.
      tokens: int32[B, T] texts between the begin and the end mark.
      lengths: int32[B] ids up to and with the end mark.

    Returns:
      dtype[B, E] of the pictures and of the texts.
    """
    return self.vision_tower.embed(images), self.text_tower(tokens, lengths)


def towers(
  vision: dict[str, int], text: dict[str, int], output_dim: int, dtype: str
) -> tuple[VisionTower, TextTower]:
  """The two towers of such sizes; their parameters stand alone."""
  return (
    VisionTower(**vision, output_dim=output_dim, dtype=dtype),
    TextTower(**text, output_dim=output_dim, dtype=dtype, activation=mlp.quick_gelu),
  )
