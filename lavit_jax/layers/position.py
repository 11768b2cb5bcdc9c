"""Rotary positions in the half-split convention of Hugging Face LLaMA."""

import jax
import jax.numpy as jnp


def rotate(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
  """Rotates each pair (i, i + H/2) of a head by position times its frequency.

  Args:
    x: dtype[B, T, N, H] queries or keys.
    positions: int32[B, T].
    base: wavelength base, 10000 for LLaMA.

  Returns:
    dtype[B, T, N, H].
  """
  half = x.shape[-1] // 2
  frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = positions[..., None].astype(jnp.float32) * frequency  # [B, T, H/2]
  sin, cos = jnp.sin(angle)[:, :, None], jnp.cos(angle)[:, :, None]
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)
