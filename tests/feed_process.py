"""One process of several that read the same stream; prints digests of every row.

  python feed_process.py PORT PROCESSES INDEX '[{"folder": ..., "mesh": ..., ...}]'

The eight devices are shared out evenly. Every process prints the digests of the whole
global batch, so that hosts which load the same row show whether they loaded the same.
"""

import hashlib
import json
import os
import pathlib
import sys

DEVICES = 8


def digests(batch) -> list[str]:
  """Digest of each row of a batch, over all of its arrays."""
  import numpy as np
  from jax.experimental import multihost_utils

  whole = {
    name: np.asarray(multihost_utils.process_allgather(value, tiled=True))
    for name, value in sorted(batch.items())
  }
  rows = len(next(iter(whole.values())))
  made = [hashlib.sha256() for _ in range(rows)]
  for name, value in whole.items():
    for row, digest in enumerate(made):
      digest.update(f"{name} {value.dtype} {value.shape[1:]}".encode())
      digest.update(np.ascontiguousarray(value[row]).tobytes())
  return [digest.hexdigest()[:16] for digest in made]


def packed_rows(folder: pathlib.Path):
  """Rows of a mixture over the toy shards that the test wrote."""
  import toy_shards

  from lavit_jax.data import pack_plan, records, rows

  prepared = records.Records(folder / "records")
  sidecar = records.Sidecar(folder / "sidecar")
  weights = {"caption": 0.4, "answer": 0.2, "text_image": 0.2, "text": 0.2}
  plan = pack_plan.plan_rows(sidecar.lengths, weights, 0, 21, 48)
  slots = plan.images_per_row
  return rows.Rows(
    plan, prepared, sidecar, 48, slots, toy_shards.SIZE, toy_shards.VOCABULARY
  )


def run(task: dict) -> dict:
  """Reads some batches from a position on: digests and what this process loaded."""
  import ml_collections

  from lavit_jax.core import sharding
  from lavit_jax.training import feed

  mesh = sharding.make_mesh(task["mesh"])
  source = packed_rows(pathlib.Path(task["folder"]))
  fields = {"batch_size": task["batch_size"], "data_threads": task["threads"]}
  config = ml_collections.ConfigDict(fields | {"data": {"shuffle_seed": 3, "skip": ""}})
  batches = feed.device_batches(source, config, mesh, task["position"])
  found = []
  for _ in range(task["batches"]):
    batch, position = next(batches)
    found.append(digests(batch))
  result = {"digests": found, "position": position, **batches.figures()}
  batches.close()
  result["loaded"] = feed.local_rows(mesh, task["batch_size"])
  return result | {"own": sorted(feed.own_rows(mesh, task["batch_size"]))}


def main(port: str, processes: str, index: str, tasks: str, target: str) -> None:
  count = int(processes)
  flag = f"--xla_force_host_platform_device_count={DEVICES // count}"
  os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
  import jax

  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(f"localhost:{port}", count, int(index))
  results = [run(task) for task in json.loads(tasks)]
  # Not printed: gloo's own messages fall into the middle of a line.
  pathlib.Path(target).write_text(json.dumps(results))


if __name__ == "__main__":
  main(*sys.argv[1:])
