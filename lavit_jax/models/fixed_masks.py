"""Masks of a fixed number of patches: what a learnt, dynamic selection is compared to.

count i32[B], (noise | log_probs) f[B, P] -> keep f32[B, P], exactly 0 or 1

Each keeps as many patches of every picture as `count` says, whatever it shows. With
`counts_of_mean` they keep as many on average as a dynamic selection of that mean.
"""

import jax
import jax.numpy as jnp
import numpy as np


def counts_of_mean(mean: float, size: int) -> np.ndarray:
  """Counts int32[size] that differ by one at most, of a mean nearest to `mean`."""
  ends = np.floor(mean * np.arange(size + 1) + 0.5)
  return np.diff(ends).astype(np.int32)


def random(noise: jax.Array, count: jax.Array) -> jax.Array:
  """Keeps patches at random.

  Args:
    noise: float[B, P], independent and of one distribution.
    count: int32[B] patches to keep, 0 to P.
  """
  return _highest(noise, count)


def top_n(log_probs: jax.Array, count: jax.Array) -> jax.Array:
  """Keeps the patches that a selector would most probably keep.

  Args:
    log_probs: float[B, P] the selector's log-probability of keeping each patch.
    count: int32[B] patches to keep, 0 to P.
  """
  return _highest(log_probs, count)


def grid(num_patches: int, count: jax.Array) -> jax.Array:
  """Keeps patches that lie evenly spread, the same in all pictures of one count.

  Args:
    num_patches: P, a square number.
    count: int32[B] patches to keep, 0 to P.
  """
  place = np.empty(num_patches)
  place[_spread_order(num_patches)] = np.arange(num_patches)
  scores = jnp.broadcast_to(-place, (len(count), num_patches))
  return _highest(scores, count)


def _spread_order(num_patches: int) -> np.ndarray:
  """Patches int[P] in an order each of which lies farthest from all before it.

  Distances go around the borders. On a side of 2^n, 4^k patches are a regular grid.
  """
  side = round(num_patches**0.5)
  if side * side != num_patches:
    raise ValueError(
      f"expected a square number of patches, got {num_patches}; a grid needs as many"
      " rows as columns"
    )
  at = np.arange(num_patches)
  apart = lambda x: np.minimum(abs(x[:, None] - x), side - abs(x[:, None] - x))
  distance = np.hypot(apart(at // side), apart(at % side))
  order, nearest = [], np.full(num_patches, np.inf)
  for _ in at:
    order.append(int(nearest.argmax()))
    nearest = np.minimum(nearest, distance[order[-1]])
    nearest[order] = -1
  return np.array(order)


def _highest(scores: jax.Array, count: jax.Array) -> jax.Array:
  """float32[B, P], 1 at the `count` highest scores; the first of equal ones wins."""
  order = jnp.argsort(-scores, axis=1, stable=True)
  rank = jnp.argsort(order, axis=1)
  return (rank < jnp.asarray(count)[:, None]).astype(jnp.float32)
