"""Damaged shards of a prepared folder, and more shards than files may be open."""

import concurrent.futures
import os
import subprocess
import sys

import pytest
import toy_shards

from lavit_jax.data import bad, loading, pipeline, readers, records


def flip(path):
  """Flips one byte in the middle of a shard."""
  data = bytearray(path.read_bytes())
  data[60_000 if len(data) > 70_000 else len(data) // 2] ^= 1
  path.write_bytes(bytes(data))


@pytest.fixture
def damaged(tmp_path):
  """Records whose first shard has one entry that cannot be read."""
  prepared, sidecar = toy_shards.write(tmp_path)
  path = prepared.folder / prepared.manifest["shards"][0]["file"]
  data = bytearray(path.read_bytes())
  place = data.index(prepared[2]["image"][:40])
  data[place + 20] ^= 1
  path.write_bytes(bytes(data))
  readers.forget(os.fspath(path))
  return records.Records(prepared.folder)


def test_a_flipped_byte_is_one_bad_record(damaged):
  with pytest.raises(bad.BadRecord, match="a damaged shard .*entry 2 of"):
    damaged[2]
  assert [damaged[i]["id"] for i in (1, 3, 15)] == ["r1", "r3", "r15"]


def test_the_feed_replaces_a_damaged_entry(damaged):
  source = pipeline.Pictures(damaged)
  item, reasons = pipeline.read(source, list(source.positions).index(2))
  assert item["id"] == "r4" and len(reasons) == 1  # r3 has no picture
  assert "a damaged shard" in reasons[0]


def test_tokenize_counts_a_damaged_entry(damaged):
  (batch,) = loading.batches(damaged, [0], 8, 4, lambda words: [1], 2)
  errors = [item.error and item.error.reason for item in batch.loaded]
  assert errors == [None, None, "a damaged shard", None, None, None]


def test_a_shard_cut_short_is_named_when_it_is_opened(tmp_path):
  prepared, _ = toy_shards.write(tmp_path)
  path = prepared.folder / prepared.manifest["shards"][1]["file"]
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(ValueError, match="expected .* bytes in .*00001.*damaged shard"):
    records.Records(prepared.folder)


def test_threads_share_few_open_files(tmp_path, monkeypatch):
  text = [{"task": "text", "turns": [["", "x"]]}]
  rows = ({"id": f"r{i}", "image": b"", "texts": text} for i in range(60))
  records.write_shards(rows, tmp_path, "x", 1)
  prepared = records.Records(tmp_path)
  monkeypatch.setattr(readers, "_limit", 8)
  before = len(os.listdir("/proc/self/fd"))
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    names = [r["id"] for r in pool.map(prepared.__getitem__, list(range(60)) * 3)]
  assert names == [f"r{i}" for i in range(60)] * 3
  assert len(os.listdir("/proc/self/fd")) <= before + 8 + 4


MANY = """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from lavit_jax.data import records
prepared = records.Records(os.environ["FOLDER"])
names = [prepared[i]["id"] for i in range(len(prepared))]
assert names == [f"r{i}" for i in range(len(prepared))]
print(len(os.listdir("/proc/self/fd")))
"""


def test_more_shards_than_files_may_be_open(tmp_path):
  text = [{"task": "text", "turns": [["", "x"]]}]
  number = 400
  rows = ({"id": f"r{i}", "image": b"", "texts": text} for i in range(number))
  records.write_shards(rows, tmp_path, "x", 1)
  environment = os.environ | {"FOLDER": str(tmp_path)}
  done = subprocess.run(
    [sys.executable, "-c", MANY], env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert int(done.stdout) < 160
