"""Token selector: which patches of an image are worth a token (paper, section 3.1).

features f[B, P, D] -> Selector -> log_probs f32[B, P, 2] -> sample -> keep f32[B, P].
The Gumbel sample is the rule everywhere, since merger and decoder learnt on it.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lavit_jax.core.sharding import constrain
from lavit_jax.layers import linear, norm

EPS = 1e-5


class Selector(nn.Module):
  """Scores each patch from itself and the image's mean, in float32.

  Attributes:
    embed_dim: D.
  """

  embed_dim: int

  @nn.compact
  def __call__(self, features: jax.Array, policy: jax.Array | None = None) -> jax.Array:
    """Predicts the odds of keeping each patch.

    Args:
      features: float[B, P, D].
      policy: float[B, P] weight of each patch in the image's mean; None is ones.

    Returns:
      float32[B, P, 2] log-probabilities, index 0 = keep, index 1 = drop.
    """
    dim, half = self.embed_dim, self.embed_dim // 2
    layer = lambda inputs, outputs, name: linear.dense(
      inputs, outputs, ("embed", None), dtype="float32", name=name
    )
    x = norm.LayerNorm(EPS, name="norm")(features.astype(jnp.float32))
    x = nn.gelu(layer(dim, dim, "in_proj")(x), approximate=False)
    x = constrain(x, "act_images", None, None)
    local, shared = x[..., :half], x[..., half:]
    if policy is None:
      mean = shared.mean(axis=1, keepdims=True)
    else:
      weight = policy.astype(jnp.float32)[..., None]
      mean = (shared * weight).sum(1, keepdims=True) / weight.sum(1, keepdims=True)
    x = jnp.concatenate([local, jnp.broadcast_to(mean, shared.shape)], axis=-1)
    x = nn.gelu(layer(dim, half, "out_proj1")(x), approximate=False)
    x = nn.gelu(layer(half, half // 2, "out_proj2")(x), approximate=False)
    return jax.nn.log_softmax(layer(half // 2, 2, "out_proj3")(x), axis=-1)


def sample(log_probs: jax.Array, gumbel: jax.Array) -> jax.Array:
  """Samples which patches to keep, straight-through at temperature 1.

  Args:
    log_probs: float32[B, P, 2], index 0 = keep.
    gumbel: float[B, P, 2] standard Gumbel noise.

  Returns:
    float32[B, P], exactly 0 or 1, with the gradient of the soft sample. An image
    that would lose every patch keeps its most probable one.
  """
  noisy = log_probs + gumbel
  soft = jax.nn.softmax(noisy, axis=-1)[..., 0]
  kept = noisy[..., 0] >= noisy[..., 1]
  best = jnp.argmax(log_probs[..., 0], axis=1)
  rescued = jax.nn.one_hot(best, kept.shape[1], dtype=bool)
  kept = jnp.where(kept.any(axis=1, keepdims=True), kept, rescued)
  # The difference is exactly zero, so that the value stays exactly 0 or 1.
  return kept.astype(jnp.float32) + (soft - jax.lax.stop_gradient(soft))


def most_probable(log_probs: jax.Array) -> jax.Array:
  """As `sample` without noise: keeps the patches more likely kept than dropped."""
  return sample(log_probs, jnp.zeros_like(log_probs))


def count_empty(log_probs: jax.Array, gumbel: jax.Array) -> jax.Array:
  """int32[] images that `sample` rescued from losing every patch."""
  noisy = log_probs + gumbel
  kept = noisy[..., 0] >= noisy[..., 1]
  return (~kept.any(axis=1)).sum(dtype=jnp.int32)


def gumbel(key: jax.Array, noise_ids: jax.Array, num_patches: int) -> jax.Array:
  """Selector noise float32[B, P, 2] from one key per picture.

  A picture's noise depends on the key and its own id alone: not on batch, mesh or host.

  Args:
    key: key of the seed (and step, in training).
    noise_ids: uint32[B], a checksum of each picture's pixels.
    num_patches: P.
  """

  def one(noise_id):
    return jax.random.gumbel(jax.random.fold_in(key, noise_id), (num_patches, 2))

  return jax.vmap(one)(noise_ids)
