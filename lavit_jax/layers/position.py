"""Rotary positions in the half-split convention of Hugging Face LLaMA."""

import math

import jax
import jax.numpy as jnp


def frequencies(half: int, base: float, scaling: tuple[float, ...] = ()) -> jax.Array:
  """Turns per position of each pair, float32[half].

  Args:
    half: pairs of a head.
    base: wavelength base.
    scaling: Llama-3.1's stretch (factor, low, high, length): waves longer than length /
      low are `factor` times slower, those shorter than length / high as they are, and
      between the two there is a line. () is none.
  """
  own = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  if not scaling:
    return own
  factor, low, high, length = scaling
  waves = length * own / (2 * math.pi)  # whole waves in the length
  share = jnp.clip((waves - low) / (high - low), 0, 1)
  return own * (share + (1 - share) / factor)


def rotate(
  x: jax.Array, positions: jax.Array, base: float, scaling: tuple[float, ...] = ()
) -> jax.Array:
  """Rotates each pair (i, i + H/2) of a head by position times its frequency.

  Args:
    x: dtype[B, T, N, H] queries or keys.
    positions: int32[B, T].
    base: wavelength base, 10000 for LLaMA.
    scaling: see `frequencies`.

  Returns:
    dtype[B, T, N, H].
  """
  half = x.shape[-1] // 2
  frequency = frequencies(half, base, scaling)
  angle = positions[..., None].astype(jnp.float32) * frequency  # [B, T, H/2]
  # Angles need float32; what they turn does not, and a product that ends in float32
  # queries writes twice the bytes. The reference turns in its compute dtype as well.
  sin, cos = (wave(angle)[:, :, None].astype(x.dtype) for wave in (jnp.sin, jnp.cos))
  first, second = jnp.split(x, 2, axis=-1)
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned, axis=-1)
