"""Blocks of the U-Net: transformers over a picture's positions, and its levels.

Names of shapes: latent pictures [B, h, w, C], positions of one [B, T, D] with T = h w,
condition [B, S, Dc] with its mask [B, S].
"""

import dataclasses

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from einops import rearrange

from lavit_jax.core.sharding import constrain
from lavit_jax.layers import attention, conv, linear, norm, stack
from lavit_jax.layers.heads import from_heads
from lavit_jax.models.resnet import ResnetBlock, Upsample

ATTENTION_EPS = 1e-6  # of the group norm before attention, in every checkpoint
LAYER_EPS = 1e-5


@flax.struct.dataclass
class Given:
  """What every block is given besides the picture.

  Attributes:
    time: dtype[B, E] embedding of time (and of picture size), after its activation.
    context: dtype[B, S, Dc] condition.
    mask: bool[B, 1, S] which slots hold a condition, or None for all.
  """

  time: jax.Array
  context: jax.Array
  mask: jax.Array | None


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What all blocks of one U-Net share.

  Attributes:
    num_groups: groups of the group norms.
    eps: of the residual blocks' norms.
    dtype: compute dtype.
    remat: a key of `stack.REMAT_POLICIES`, per residual and per transformer block.
    unroll: transformer blocks per scan step.
  """

  num_groups: int
  eps: float
  dtype: str
  remat: str
  unroll: int

  def resnet(self, channels: int, name: str) -> nn.Module:
    """One residual block."""
    block = ResnetBlock
    if self.remat != "none":
      policy = stack.REMAT_POLICIES[self.remat]
      block = nn.remat(block, policy=policy)
    return block(channels, self.num_groups, self.eps, self.dtype, name=name)


class Attention(nn.Module):
  """Attention without biases but in the output: to itself or to the condition.

  Attributes:
    num_heads: N.
    dtype: compute dtype.
  """

  num_heads: int
  dtype: str = "bfloat16"

  @nn.compact
  def __call__(
    self, x: jax.Array, source: jax.Array, mask: jax.Array | None = None
  ) -> jax.Array:
    """Mixes dtype[B, S, Dc] source into each position of dtype[B, T, D]."""
    dim = x.shape[-1]
    heads = (self.num_heads, dim // self.num_heads)

    def project(name, inputs):
      shape, axes = (inputs.shape[-1], *heads), ("embed", "heads", None)
      layer = linear.Einsum("btd,dnh->btnh", shape, axes, dtype=self.dtype, name=name)
      return constrain(layer(inputs), "act_images", None, "act_heads", None)

    query, key = project("query", x), project("key", source)
    mixed = attention.attend(query, key, project("value", source), mask)
    return from_heads(*heads, dim, self.dtype, "out")(mixed)


class GegluMlp(nn.Module):
  """out(up(x) * gelu(gate(x))) of width 4 D, up and gate in one product.

  Attributes:
    dtype: compute dtype.
  """

  dtype: str = "bfloat16"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps dtype[B, T, D] to the same shape."""
    dim, wide = x.shape[-1], 4 * x.shape[-1]
    both = linear.Einsum(
      "btd,dcf->btcf",
      (dim, 2, wide),
      ("embed", None, "mlp"),
      use_bias=True,
      dtype=self.dtype,
      name="up",
    )(x)
    both = constrain(both, "act_images", None, None, "act_mlp")
    hidden = both[:, :, 0] * nn.gelu(both[:, :, 1], approximate=False)
    out = linear.dense(wide, dim, ("mlp", "embed"), dtype=self.dtype, name="out")
    return out(hidden)


class TransformerBlock(nn.Module):
  """Attention to all positions, attention to the condition, feed-forward.

  Attributes:
    num_heads: N.
    dtype: compute dtype.
  """

  num_heads: int
  dtype: str = "bfloat16"

  @nn.compact
  def __call__(
    self, x: jax.Array, context: jax.Array, mask: jax.Array | None
  ) -> tuple[jax.Array, None]:
    """Maps dtype[B, T, D] to the same shape, and no per-layer output."""
    x = constrain(x, "act_images", None, None)
    normed = norm.LayerNorm(LAYER_EPS, name="norm1")(x)
    x = x + Attention(self.num_heads, self.dtype, name="self_attn")(normed, normed)
    normed = norm.LayerNorm(LAYER_EPS, name="norm2")(x)
    cross = Attention(self.num_heads, self.dtype, name="cross_attn")
    x = x + cross(normed, context, mask)
    normed = norm.LayerNorm(LAYER_EPS, name="norm3")(x)
    return x + GegluMlp(self.dtype, name="mlp")(normed), None


class SpatialTransformer(nn.Module):
  """Transformer blocks over the positions of a picture, around a residual.

  Attributes:
    depth: transformer blocks.
    num_heads: N.
    sizes: what all blocks share.
  """

  depth: int
  num_heads: int
  sizes: Sizes

  @nn.compact
  def __call__(self, picture: jax.Array, given: Given) -> jax.Array:
    """Maps dtype[B, h, w, C] to the same shape."""
    sizes, (_, height, _, channels) = self.sizes, picture.shape
    x = norm.GroupNorm(sizes.num_groups, ATTENTION_EPS, name="norm")(picture)
    x = rearrange(x, "b h w c -> b (h w) c")

    def project(name):
      axes = ("embed", None) if name == "proj_in" else (None, "embed")
      return linear.dense(channels, channels, axes, dtype=sizes.dtype, name=name)

    blocks = stack.layers(
      TransformerBlock, self.depth, sizes.remat, sizes.unroll, broadcast=2
    )
    x, _ = blocks(self.num_heads, sizes.dtype, name="blocks")(
      project("proj_in")(x), given.context, given.mask
    )
    return picture + rearrange(project("proj_out")(x), "b (h w) c -> b h w c", h=height)


class DownLevel(nn.Module):
  """One level on the way down: its pictures are kept for the way up.

  Attributes:
    channels: C of this level.
    num_layers: residual blocks.
    depth: transformer blocks after each of them, 0 for none.
    num_heads: N.
    shrink: ends with a convolution of stride 2.
    sizes: what all blocks share.
  """

  channels: int
  num_layers: int
  depth: int
  num_heads: int
  shrink: bool
  sizes: Sizes

  @nn.compact
  def __call__(self, x: jax.Array, given: Given) -> tuple[jax.Array, list[jax.Array]]:
    """Maps dtype[B, h, w, C'] to the next level's input and the pictures kept."""
    kept = []
    for i in range(self.num_layers):
      x = self.sizes.resnet(self.channels, f"resnet{i}")(x, given.time)
      if self.depth:
        transformer = SpatialTransformer(
          self.depth, self.num_heads, self.sizes, name=f"transformer{i}"
        )
        x = transformer(x, given)
      kept.append(x)
    if self.shrink:
      down = conv.Conv(
        self.channels, stride=2, split="in", dtype=self.sizes.dtype, name="down"
      )
      x = down(x)
      kept.append(x)
    return x, kept


class Middle(nn.Module):
  """The lowest level's centre: residual block, transformer, residual block.

  Attributes:
    depth: transformer blocks.
    num_heads: N.
    sizes: what all blocks share.
  """

  depth: int
  num_heads: int
  sizes: Sizes

  @nn.compact
  def __call__(self, x: jax.Array, given: Given) -> jax.Array:
    """Maps dtype[B, h, w, C] to the same shape."""
    channels = x.shape[-1]
    x = self.sizes.resnet(channels, "resnet0")(x, given.time)
    transformer = SpatialTransformer(
      self.depth, self.num_heads, self.sizes, name="transformer0"
    )
    return self.sizes.resnet(channels, "resnet1")(transformer(x, given), given.time)


class UpLevel(nn.Module):
  """One level on the way up: each residual block also sees a kept picture.

  Attributes:
    channels: C of this level.
    num_layers: residual blocks.
    depth: transformer blocks after each of them, 0 for none.
    num_heads: N.
    grow: ends with a doubling of the picture.
    sizes: what all blocks share.
  """

  channels: int
  num_layers: int
  depth: int
  num_heads: int
  grow: bool
  sizes: Sizes

  @nn.compact
  def __call__(self, x: jax.Array, kept: list[jax.Array], given: Given) -> jax.Array:
    """Maps dtype[B, h, w, C'] and the kept pictures, last used first, upward."""
    for i in range(self.num_layers):
      x = jnp.concatenate([x, kept[-1 - i]], axis=-1)
      x = self.sizes.resnet(self.channels, f"resnet{i}")(x, given.time)
      if self.depth:
        transformer = SpatialTransformer(
          self.depth, self.num_heads, self.sizes, name=f"transformer{i}"
        )
        x = transformer(x, given)
    return Upsample(self.sizes.dtype, name="up")(x) if self.grow else x
