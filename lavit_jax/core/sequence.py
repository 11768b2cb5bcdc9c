"""Device side of dynamic tokens: gathers inside a row, and attention masks."""

import jax
import jax.numpy as jnp


def left_align(features: jax.Array, keep: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Moves kept tokens to the front, preserving order.

  Args:
    features: float[B, P, D] one row per patch.
    keep: bool[B, P] which patches survive.

  Returns:
    float[B, P, D] with dropped rows zeroed at the tail, and int32[B] the number kept.
  """
  order = jnp.argsort(~keep, axis=1, stable=True)  # [B, P], kept first
  length = keep.sum(axis=1, dtype=jnp.int32)
  aligned = jnp.take_along_axis(features, order[..., None], axis=1)
  filled = jnp.arange(keep.shape[1]) < length[:, None]
  return jnp.where(filled[..., None], aligned, 0), length


def gather_features(features: jax.Array, feature_index: jax.Array) -> jax.Array:
  """Takes each position's feature from its own row: no collective can arise.

  Args:
    features: float[B, S, D], S = image slots times patches.
    feature_index: int32[B, L] in [0, S), or -1 for none.

  Returns:
    float[B, L, D], zero where the index is -1.
  """
  index = jnp.maximum(feature_index, 0)[..., None]
  taken = jnp.take_along_axis(features, index, axis=1)
  return jnp.where(feature_index[..., None] >= 0, taken, 0)


def packed_mask(segment_ids: jax.Array) -> jax.Array:
  """Causal attention inside each segment of a packed or padded row.

  Args:
    segment_ids: int32[B, T] segment of each position; 0 is padding.

  Returns:
    bool[B, T, T], True where a query (second axis) may look.
  """
  same = segment_ids[:, :, None] == segment_ids[:, None, :]
  slots = jnp.arange(segment_ids.shape[1])
  causal = slots <= slots[:, None]
  return same & (segment_ids[:, :, None] > 0) & causal


def next_tokens(tokens: jax.Array) -> jax.Array:
  """Targets of int32[B, L] tokens: the token one to the right (0 after the last)."""
  return jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))


def percentiles(counts: jax.Array, most: int, valid: jax.Array) -> dict[str, jax.Array]:
  """The counts that a tenth, a half and nine tenths of all do not exceed.

  They are read off the share of every count, so that devices exchange `most` + 1
  numbers, and nothing is sorted over devices.

  Args:
    counts: int32[...] between 0 and `most`.
    most: the largest possible one.
    valid: bool[...] which count.

  Returns:
    int32[] each by name, "p10", "p50" and "p90"; 0 where nothing is valid.
  """
  below = (counts[..., None] <= jnp.arange(most + 1)) & valid[..., None]
  below = below.sum(tuple(range(counts.ndim)))  # [most + 1]
  total = below[-1]
  return {
    f"p{share}": jnp.argmax(below * 100 >= total * share).astype(jnp.int32)
    for share in (10, 50, 90)
  }
