"""How long `save()` holds the loop, beside a plain copy of the state to the host.

  python benchmarks/checkpoint_save.py [--megabytes=630]

Prints medians of five interleaved rounds, and their ratio.
"""

import argparse
import statistics
import tempfile
import time

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lavit_jax.core import sharding
from lavit_jax.training import checkpoint

ROUNDS = 5


def make_state(megabytes: int) -> dict[str, jax.Array]:
  """Sixty float32 arrays over all devices."""
  mesh = sharding.make_mesh({"fsdp": -1})
  rows = -(-megabytes * 10**6 // (60 * 4 * 2560 * mesh.size)) * mesh.size
  spread = NamedSharding(mesh, P("fsdp"))
  make = jax.jit(lambda key: jax.random.normal(key, (rows, 2560)), out_shardings=spread)
  return jax.block_until_ready({f"a{i}": make(jax.random.key(i)) for i in range(60)})


def copy_seconds(state: dict[str, jax.Array]) -> float:
  """Seconds to copy every shard into memory of the host."""
  began = time.monotonic()
  kept = [
    np.array(shard.data, copy=True)
    for leaf in state.values()
    for shard in leaf.addressable_shards
  ]
  del kept
  return time.monotonic() - began


def main() -> None:
  """Command line entry."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--megabytes", type=int, default=630)
  state = make_state(parser.parse_args().megabytes)
  size = sum(leaf.nbytes for leaf in state.values())
  copies, saves, writes = [], [], []
  with tempfile.TemporaryDirectory() as folder:
    saved = checkpoint.Checkpoints(folder, checkpoint.Keep(last=1))
    for number in range(ROUNDS):
      copies.append(copy_seconds(state))
      began = time.monotonic()
      saved.save(number, state, {})
      saves.append(time.monotonic() - began)
      saved.wait()
      writes.append(time.monotonic() - began)
    saved.close()
  copied, held = statistics.median(copies), statistics.median(saves)
  device = jax.devices()[0].device_kind
  print(f"{size / 1e6:.0f} MB on {jax.device_count()} devices ({device})")
  print(f"copy to host   {copied:.3f} s")
  print(f"save() returns {held:.3f} s, ratio {held / copied:.2f} (bound 1.2)")
  print(f"whole, checked {statistics.median(writes):.3f} s, in the background")


if __name__ == "__main__":
  main()
