"""Layer norms, computed in float32 and cast back to the input dtype."""

import flax.linen as nn
import jax
import jax.numpy as jnp

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
