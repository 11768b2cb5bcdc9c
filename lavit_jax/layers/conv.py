"""Convolutions of pictures, [B, H, W, C] with the channels last."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lavit_jax.core.sharding import constrain
from lavit_jax.layers import linear


def convolve(
  x: jax.Array, kernel: jax.Array, stride: int, padding: tuple[int, int]
) -> jax.Array:
  """A square convolution, the same on both axes of the picture.

  Args:
    x: dtype[B, H, W, C].
    kernel: dtype[K, K, C, D].
    stride: pixels between outputs.
    padding: zeros before and after each axis.

  Returns:
    dtype[B, H', W', D]. Float32 operands are multiplied in full float32.
  """
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    (padding, padding),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision="highest" if x.dtype == jnp.float32 else None,
  )


class Conv(nn.Module):
  """A square convolution with a bias.

  Attributes:
    channels: D, output channels.
    size: K, side of the kernel.
    stride: pixels between outputs.
    padding: zeros before and after each axis; half the kernel when None.
    split: channels that `tensor` splits, of a pair of convolutions "out" of the first
      and "in" of the second; "" for none.
    dtype: compute dtype.
  """

  channels: int
  size: int = 3
  stride: int = 1
  padding: tuple[int, int] | None = None
  split: str = ""
  dtype: str = "bfloat16"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, H, W, C] to dtype[B, H', W', D]."""
    shape = (self.size, self.size, x.shape[-1], self.channels)
    init = linear.fan_in(math.prod(shape[:3]))
    axes = {"": (None, "embed"), "out": ("embed", "mlp"), "in": ("mlp", "embed")}
    stored = axes[self.split]
    # Split over fsdp where it is stored, whole where it is used: the compiler would
    # otherwise trade the picture between devices instead of this small kernel.
    used = [axis if axis == "mlp" else None for axis in stored]
    kernel = linear.param(self, "kernel", init, shape, (None, None, *stored))
    kernel = constrain(kernel.astype(self.dtype), None, None, *used)
    zeros = nn.initializers.zeros
    bias = linear.param(self, "bias", zeros, (self.channels,), used[1:])
    half = (self.size // 2, self.size // 2)
    padding = half if self.padding is None else self.padding
    y = convolve(x.astype(self.dtype), kernel, self.stride, padding)
    return linear.add_shared(y, bias)
