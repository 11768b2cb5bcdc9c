"""Whitening of encoder features: a fixed linear map before selector and merger.

A small encoder trained for minutes has badly conditioned features: most of their
variance does not depend on the patch. Published EVA weights need no whitening.
"""

import flax.struct
import jax
import jax.numpy as jnp

# Ridge as a share of the mean eigenvalue: directions of no variance stay quiet.
RIDGE = 0.02


@flax.struct.dataclass
class Whitening:
  """x -> (x - mean) @ matrix.

  Attributes:
    mean: float32[D].
    matrix: float32[D, D], symmetric.
  """

  mean: jax.Array
  matrix: jax.Array


def whiten(whitening: Whitening | None, features: jax.Array) -> jax.Array:
  """Whitens float[..., D] features, same dtype out; None leaves them as they are."""
  if whitening is None:
    return features
  centered = features.astype(jnp.float32) - whitening.mean
  product = jnp.matmul(centered, whitening.matrix, precision="highest")
  return product.astype(features.dtype)


def fit_whitening(features: jax.Array) -> Whitening:
  """Fits U (S + ridge)^-1/2 U^T on float[n, D] rows with covariance U S U^T."""
  features = features.astype(jnp.float32)
  mean = features.mean(axis=0)
  centered = features - mean
  covariance = jnp.matmul(centered.T, centered, precision="highest") / len(features)
  spectrum, basis = jnp.linalg.eigh(covariance)
  scale = jax.lax.rsqrt(jnp.maximum(spectrum, 0) + RIDGE * spectrum.mean())
  matrix = jnp.matmul(basis * scale, basis.T, precision="highest")
  return Whitening(mean=mean, matrix=matrix)
