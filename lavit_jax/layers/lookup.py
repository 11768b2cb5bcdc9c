"""Looking up vectors of a table, whose gradient is summed in float32.

    table f32[V, D], ids int32[B, T] -> vectors dtype[B, T, D]

A common id occurs ten thousands of times in a batch, and a bfloat16 sum stands still
after some 256 equal terms. So each device adds up its tokens in float32. Only what
devices send each other is in the compute dtype: vectors and their gradients over
`fsdp`, and one finished sum of each device over `data` and `sequence`.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lavit_jax.core import sharding
from lavit_jax.core.sharding import constrain

TABLE_AXES = (None, "embed")
# All tokens of a group of `fsdp`, and of their vectors the part that a device holds.
ROW_AXES = ("act_data_batch", "act_length")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(table: jax.Array, ids: jax.Array, dtype: str) -> jax.Array:
  """Rows of a table.

  Args:
    table: float[V, D], split over fsdp along D.
    ids: int32[B, T].
    dtype: of the result.

  Returns:
    dtype[B, T, D].
  """
  # The table is split along D over fsdp, and so are the vectors at first; then each
  # device takes its own rows. Left to itself, XLA replicates the global batch. A group
  # of fsdp looks up more tokens than the table has rows, so the table is cast.
  vectors = constrain(table.astype(dtype)[ids], *ROW_AXES, "embed")
  return constrain(vectors, "act_batch", "act_length", None)


def _forward(table, ids, dtype):
  return lookup(table, ids, dtype), (table, ids)


def _backward(dtype, saved, gradient):
  table, ids = saved
  gradient = constrain(gradient, "act_batch", "act_length", None)
  gradient = constrain(gradient, *ROW_AXES, "embed")
  return _sums(ids, gradient, table.shape).astype(table.dtype), None


lookup.defvjp(_forward, _backward)


def _sums(ids: jax.Array, gradient: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """Sums dtype[B, T, D] gradients by id: float[V, D], whole on every device's part."""
  if not sharding.is_partitioned():
    return _sums_by_id(ids, gradient, shape[0])
  # Automatic sharding would exchange the float32 sums: twice the bytes.
  rows = sharding.dividing_spec(ids.shape, ROW_AXES)
  split = sharding.dividing_spec(shape, TABLE_AXES)
  mesh = jax.sharding.get_abstract_mesh()
  sharing = [axis for axis in jax.tree.leaves(tuple(rows)) if mesh.shape[axis] > 1]

  def of_device(ids, gradient):
    sums = _sums_by_id(ids, gradient, shape[0])
    return jax.lax.psum(sums.astype(gradient.dtype), sharing) if sharing else sums

  spread = jax.shard_map(
    of_device,
    in_specs=(rows, P(*rows, split[1])),
    out_specs=split,
    check_vma=False,  # `tensor`, along which all is the same, carries no such types
  )
  return spread(ids, gradient)


def _sums_by_id(ids: jax.Array, gradient: jax.Array, size: int) -> jax.Array:
  zeros = jnp.zeros((size, gradient.shape[-1]), jnp.float32)
  return zeros.at[ids].add(gradient.astype(jnp.float32))
