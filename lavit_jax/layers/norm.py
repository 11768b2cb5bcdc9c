"""Norms, computed in float32 and cast back to the input dtype."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from lavit_jax.layers import linear


class LayerNorm(nn.Module):
  """LayerNorm over the last axis.

  Attributes:
    eps: 1e-6 in the vision encoder, 1e-5 in the tokenizer.
  """

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalizes dtype[..., D], same dtype out."""
    dim = x.shape[-1]
    scale = linear.param(self, "scale", nn.initializers.ones, (dim,), (None,))
    bias = linear.param(self, "bias", nn.initializers.zeros, (dim,), (None,))
    wide = x.astype(jnp.float32)
    centered = wide - wide.mean(-1, keepdims=True)
    variance = jnp.square(centered).mean(-1, keepdims=True)
    normed = centered * jax.lax.rsqrt(variance + self.eps)
    return (normed * scale + bias).astype(x.dtype)


class RMSNorm(nn.Module):
  """Root mean square norm over the last axis, as in LLaMA.

  Attributes:
    eps: from the checkpoint's config, 1e-5 for Llama-2 and 1e-6 for LLaMA-1.
  """

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalizes dtype[..., D], same dtype out."""
    scale = linear.param(self, "scale", nn.initializers.ones, x.shape[-1:], (None,))
    wide = x.astype(jnp.float32)
    variance = jnp.square(wide).mean(-1, keepdims=True)
    return (wide * jax.lax.rsqrt(variance + self.eps) * scale).astype(x.dtype)


class GroupNorm(nn.Module):
  """GroupNorm of pictures: each group of channels is normalized over all positions.

  Attributes:
    num_groups: groups that the channels are split into, 32 in Stable Diffusion.
    eps: 1e-5 in the U-Net's residual blocks, 1e-6 before its attention and in the VAE.
  """

  num_groups: int
  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalizes dtype[B, H, W, C], same dtype out."""
    channels = x.shape[-1]
    if channels % self.num_groups:
      raise ValueError(
        f"{self.num_groups} norm groups do not divide {channels} channels; choose"
        " channels that are multiples of the groups"
      )
    scale = linear.param(self, "scale", nn.initializers.ones, (channels,), (None,))
    bias = linear.param(self, "bias", nn.initializers.zeros, (channels,), (None,))
    wide = x.astype(jnp.float32)
    centered = wide - self._group_mean(wide)
    variance = self._group_mean(jnp.square(centered))
    normed = centered * (jax.lax.rsqrt(variance + self.eps) * scale)
    return (normed + bias).astype(x.dtype)

  def _group_mean(self, x: jax.Array) -> jax.Array:
    # Positions first, then the few channels of a group: the large reduction keeps
    # channels innermost, as they lie in memory.
    means = x.mean((1, 2), keepdims=True)  # [B, 1, 1, C]
    grouped = rearrange(means, "b h w (g c) -> b h w g c", g=self.num_groups)
    means = jnp.broadcast_to(grouped.mean(-1, keepdims=True), grouped.shape)
    return rearrange(means, "b h w g c -> b h w (g c)")
