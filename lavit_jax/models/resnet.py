"""Residual convolution blocks and resizing, shared by the U-Net and the VAE."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lavit_jax.core.sharding import constrain
from lavit_jax.layers import conv, linear, norm


class ResnetBlock(nn.Module):
  """x + conv2(silu(norm2(conv1(silu(norm1(x))) + time))).

  Attributes:
    channels: output channels; the sum's x passes a 1x1 convolution when it has others.
    num_groups: groups of the norms.
    eps: of the norms.
    dtype: compute dtype.
  """

  channels: int
  num_groups: int
  eps: float
  dtype: str = "bfloat16"

  @nn.compact
  def __call__(self, x: jax.Array, time: jax.Array | None = None) -> jax.Array:
    """Maps dtype[B, H, W, C] to dtype[B, H, W, channels].

    Args:
      x: the picture.
      time: dtype[B, E] embedding of the time, after its activation; None in the VAE.
    """
    x = constrain(x, "act_images", None, None, None)
    hidden = nn.silu(norm.GroupNorm(self.num_groups, self.eps, name="norm1")(x))
    first = conv.Conv(self.channels, split="out", dtype=self.dtype, name="conv1")
    hidden = constrain(first(hidden), "act_images", None, None, "act_mlp")
    if time is not None:
      project = linear.Einsum(
        "be,ec->bc",
        (time.shape[-1], self.channels),
        ("embed", "mlp"),
        use_bias=True,
        dtype=self.dtype,
        name="time",
      )
      hidden = linear.add_shared(hidden, project(time)[:, None, None])
    hidden = nn.silu(norm.GroupNorm(self.num_groups, self.eps, name="norm2")(hidden))
    second = conv.Conv(self.channels, split="in", dtype=self.dtype, name="conv2")
    hidden = second(hidden)
    if x.shape[-1] != self.channels:
      shortcut = conv.Conv(
        self.channels, size=1, split="in", dtype=self.dtype, name="shortcut"
      )
      x = shortcut(x)
    return x + hidden


class Upsample(nn.Module):
  """Repeats each pixel 2 x 2 and convolves.

  Attributes:
    dtype: compute dtype.
  """

  dtype: str = "bfloat16"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps dtype[B, H, W, C] to dtype[B, 2 H, 2 W, C]."""
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return conv.Conv(x.shape[-1], split="in", dtype=self.dtype, name="conv")(x)
