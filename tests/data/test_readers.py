"""Open shards: their number is bounded, whatever the number of shards and folders."""

import os
import pickle
import subprocess
import sys

import msgpack
import numpy as np
import pytest

from lavit_jax.data import shards

SHARDS, EACH, LIMIT = 5000, 2, 256

# Runs where only a few files may be open: every shard is read, by eight threads.
PROGRAM = """
import concurrent.futures, os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]),) * 2)
from lavit_jax.data import readers, shards
folder = shards.Shards(sys.argv[1], shards.read_json(sys.argv[1] + "/manifest.json"))
with concurrent.futures.ThreadPoolExecutor(8) as pool:
  found = list(pool.map(lambda i: folder[i]["n"], range(len(folder))))
assert found == [0, 1] * (len(folder) // 2), found[:8]
print(len(os.listdir("/proc/self/fd")), readers._limit)
"""


def fill(folder, number):
  """A folder of many names for one shard."""
  first = folder / "s-00000.array_record"
  writer = shards.open_writer(first)
  for n in range(EACH):
    writer.write(msgpack.packb({"n": n}))
  writer.close()
  files = [f"s-{i:05d}.array_record" for i in range(number)]
  for file in files[1:]:
    os.link(first, folder / file)
  manifest = {"shards": [{"file": file, "count": EACH} for file in files]}
  shards.write_json(folder / "manifest.json", manifest)
  return manifest


def test_five_thousand_shards_where_256_files_may_be_open(tmp_path):
  fill(tmp_path, SHARDS)
  command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(LIMIT)]
  done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
  assert done.returncode == 0, done.stderr[-2000:]
  files, bound = map(int, done.stdout.split())
  assert bound == LIMIT // 2 and files < bound + 32


def test_positions_in_any_order_and_a_pickled_folder(tmp_path):
  folder = shards.Shards(tmp_path, fill(tmp_path, 7))
  order = np.random.default_rng(0).permutation(len(folder))
  for some in (folder, pickle.loads(pickle.dumps(folder))):
    assert [one["n"] for one in shards.read_together([(some, order)])[0]] == (
      order % EACH
    ).tolist()
  assert shards.read_together([(folder, []), (folder, [1])]) == [[], [{"n": 1}]]
  for wrong in (-1, len(folder)):
    with pytest.raises(ValueError, match="expected positions from 0 to 13"):
      folder[wrong]
