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
