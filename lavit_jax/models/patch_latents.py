"""A fixed stand-in for the autoencoder: the low frequencies of each small patch.

pixels [B, H, W, 3] in [-1, 1] -> patches of f x f -> cosine transform, grey and two
color differences -> the lowest frequencies [B, H/f, W/f, C] -> back

It learns nothing and has no parameters: the transform is orthonormal, and what it drops
is the fine detail that a learned autoencoder would have to drop, too. The quickstart
uses it because training an autoencoder costs minutes; published weights have theirs.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

# Rows: grey, and two differences of colors; orthonormal.
COLORS = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]], np.float64)
COLORS /= np.linalg.norm(COLORS, axis=1, keepdims=True)

VARIANTS = {
  # On the toy pictures: 35 numbers for 192, at 31.2 dB; every shape stays readable. One
  # latent to a patch of the encoder. The roots of the deviations, so that what the eye
  # sees first, the lowest frequencies, weighs more in the loss.
  "tiny": dict(
    factor=8, spreads=((2.0, 0.89, 0.52, 0.41, 0.31), (0.72, 0.52, 0.39, 0.3))
  ),
}


class PatchLatents(nn.Module):
  """Encodes and decodes as `models.vae.AutoencoderKL` does.

  Attributes:
    factor: f, pixels per latent along a side.
    spreads: typical deviation of each frequency u + v = 0, 1, ... of grey, and of the
      color differences; latents are divided by them. Higher frequencies are dropped.
  """

  factor: int
  spreads: tuple[tuple[float, ...], tuple[float, ...]]

  scaling_factor = 1.0

  @property
  def latent_channels(self) -> int:
    """C."""
    return _basis(self.factor, self.spreads)[1].size

  def __call__(self, images: jax.Array) -> jax.Array:
    """Decodes what it encodes: float[B, H, W, 3] -> float32, same shape."""
    return self.decode(self.encode(images)[0])

  def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The latents of pictures, with a log variance that adds nothing.

    Args:
      images: float[B, H, W, 3] in [-1, 1], sides multiples of f.

    Returns:
      float32[B, H/f, W/f, C] twice: latents, and a log variance of -30.
    """
    _, height, width, _ = images.shape
    f = self.factor
    if height % f or width % f:
      raise ValueError(
        f"picture sides must be multiples of {f}, got {height} x {width}; crop or"
        " resize the pictures first"
      )
    basis, spread = _basis(f, self.spreads)
    wide = images.astype(jnp.float32)
    patches = rearrange(wide, "b (h p) (w q) x -> b h w (p q x)", p=f, q=f)
    mean = jnp.einsum("bhwp,pc->bhwc", patches, basis / spread, precision="highest")
    return mean, jnp.full_like(mean, -30.0)

  def decode(self, latents: jax.Array) -> jax.Array:
    """Pictures float32[B, f h, f w, 3] of latents float[B, h, w, C]."""
    basis, spread = _basis(self.factor, self.spreads)
    wide = latents.astype(jnp.float32)
    patches = jnp.einsum("bhwc,pc->bhwp", wide, basis * spread, precision="highest")
    f = self.factor
    return rearrange(patches, "b h w (p q x) -> b (h p) (w q) x", p=f, q=f, x=3)


@functools.cache
def _basis(factor: int, spreads) -> tuple[np.ndarray, np.ndarray]:
  """Orthonormal columns float32[3 f f, C] and their deviations float32[C]."""
  k = np.arange(factor)
  waves = np.cos(np.pi * (k + 0.5) * k[:, None] / factor)
  waves /= np.linalg.norm(waves, axis=1, keepdims=True)
  columns, spread = [], []
  for color in range(3):
    allowed = spreads[min(color, 1)]
    for u in range(factor):
      for v in range(factor):
        if u + v < len(allowed):
          wave = np.einsum("a,b,x->abx", waves[u], waves[v], COLORS[color])
          columns.append(wave.ravel())
          spread.append(allowed[u + v])
  return np.stack(columns, 1).astype(np.float32), np.array(spread, np.float32)
