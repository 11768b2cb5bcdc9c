"""Temporaries of packed attention: the splash kernel against the einsum.

  python -m benchmarks.plan_attention

Forward and backward over 4 rows per chip of 2048 tokens, 32 heads of 128, bfloat16,
compiled for absent chips.
"""

import jax
import jax.numpy as jnp

from lavit_jax.core import sequence, sharding
from lavit_jax.layers import attention, splash
from lavit_jax.planning import compiling, topology

ROWS, LENGTH, HEADS, SIZE = 4, 2048, 32, 128
PODS = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2")


def einsum(query, key, value, segment_ids):
  """Attention with a table of scores."""
  mask = sequence.packed_mask(segment_ids)
  return attention.attend(query, key, value, mask)


def temporaries(attend, mesh: jax.sharding.Mesh) -> int:
  """Bytes on a chip between arguments and results."""

  def loss(query, key, value, segment_ids):
    return attend(query, key, value, segment_ids).astype(jnp.float32).sum()

  spread = sharding.batch_sharding(mesh)
  of = lambda dtype, *sizes: jax.ShapeDtypeStruct(
    (ROWS * mesh.size, *sizes), dtype, sharding=spread
  )
  arrays = (of(jnp.bfloat16, LENGTH, HEADS, SIZE),) * 3
  with jax.set_mesh(mesh):
    step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    lowered = step.lower(*arrays, of(jnp.int32, LENGTH))
  return compiling.compile_lowered(lowered, mesh).memory.temporaries


def main() -> None:
  """Prints the pair and the ratio of every kind of chip."""
  topology.without_chips()
  for name in PODS:
    devices = topology.devices(topology.parse(name))
    mesh = sharding.make_mesh({"data": -1}, devices)
    kernel, table = (temporaries(a, mesh) for a in (splash.attend, einsum))
    print(
      f"{name.split(':')[0]:4} splash {kernel / 1e6:8.1f} MB, einsum"
      f" {table / 1e6:8.1f} MB, ratio {kernel / table:.3f}",
      flush=True,
    )


if __name__ == "__main__":
  main()
