"""Folders of array_record shards: atomic files, manifest, random access.

A folder holds `name-00000-of-00004.array_record` ... and `manifest.json`, which is
written last: without it the folder is unfinished.
"""

import bisect
import errno
import functools
import io
import itertools
import json
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np
from array_record.python import array_record_module
from etils import epath

from lavit_jax.data import bad, readers

MANIFEST = "manifest.json"


def temporary(path: epath.PathLike) -> epath.Path:
  """Names a file that is being written, beside its final place.

  A bucket has no half-written files, and array_record writes to local ones only: for a
  bucket the file stands in the local folder of temporary files.
  """
  path = epath.Path(path)
  name = f"{path.name}.{os.uname().nodename}.{os.getpid()}.tmp"
  if "://" in os.fspath(path):
    return epath.Path(tempfile.gettempdir()) / name
  return path.parent / name


def publish(written: epath.PathLike, path: epath.PathLike) -> None:
  """Gives a written file its final name, after its bytes have reached the disk.

  A reader sees all of the file or none of it, even after a power failure.
  """
  if "://" in os.fspath(path):
    epath.Path(path).write_bytes(epath.Path(written).read_bytes())
    os.unlink(written)
    return
  _sync(written)
  os.replace(written, path)
  _sync(os.path.dirname(os.fspath(path)) or ".")


def _sync(path: epath.PathLike) -> None:
  """Waits until a file, or the names in a folder, are on the disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  except OSError as error:
    if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # mounted buckets
      raise
  finally:
    os.close(handle)


def write_bytes(path: epath.PathLike, data: bytes) -> None:
  """Writes a file so that a reader sees all of it or none of it."""
  written = temporary(path)
  written.write_bytes(data)
  publish(written, path)


def write_arrays(path: epath.PathLike, **arrays: np.ndarray) -> None:
  """Writes an .npz file atomically."""
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  write_bytes(path, buffer.getvalue())


def read_arrays(path: epath.PathLike) -> dict[str, np.ndarray]:
  """Reads every array of an .npz file."""
  with np.load(io.BytesIO(epath.Path(path).read_bytes()), allow_pickle=False) as file:
    return {name: file[name] for name in file.files}


def write_json(path: epath.PathLike, value: dict) -> None:
  """Writes a JSON file atomically."""
  write_bytes(path, json.dumps(value, indent=1, sort_keys=True).encode())


def read_json(path: epath.PathLike) -> dict:
  """Reads a JSON file."""
  return json.loads(epath.Path(path).read_text())


def make_folder(folder: epath.PathLike) -> epath.Path:
  """Makes a folder for shards; array_record itself cannot write to a bucket."""
  if "://" in os.fspath(folder):
    raise ValueError(
      f"expected a mounted folder for array_record shards, got {folder}; mount the "
      "bucket (gcsfuse) and give the mount point"
    )
  folder = epath.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  return folder


def open_writer(path: epath.PathLike) -> array_record_module.ArrayRecordWriter:
  """Opens a shard whose entries can be read one by one."""
  return array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1")


def entry(path: epath.PathLike, count: int) -> dict:
  """What a manifest holds of a finished shard."""
  path = epath.Path(path)
  return {"file": path.name, "count": count, "bytes": path.stat().length}


def read_manifest(folder: epath.PathLike, schema: str, verb: str) -> dict:
  """Reads and checks the manifest of a finished folder of shards.

  Args:
    folder: folder of shards.
    schema: expected schema string.
    verb: entry point that makes such folders, for messages.

  Returns:
    The manifest.
  """
  folder = epath.Path(folder)
  if not (folder / MANIFEST).exists():
    state = "an unfinished folder" if folder.exists() else "no such folder"
    raise ValueError(
      f"expected a finished folder with {MANIFEST}, got {state} at {folder}; run "
      f"python -m lavit_jax.{verb} to the end"
    )
  manifest = read_json(folder / MANIFEST)
  if manifest.get("schema") != schema:
    raise ValueError(
      f"expected the schema {schema!r}, got {manifest.get('schema')!r} in {folder}; "
      f"give a folder made by python -m lavit_jax.{verb}"
    )
  present = {path.name for path in folder.iterdir()}  # one look, not one per shard
  missing = [s["file"] for s in manifest["shards"] if s["file"] not in present]
  if missing:
    raise ValueError(
      f"expected {len(manifest['shards'])} shards in {folder}, got none at "
      f"{', '.join(missing[:3])}; copy the folder again or run {verb} again"
    )
  for entry in manifest["shards"]:
    size = (folder / entry["file"]).stat().length
    if size != entry.get("bytes", size):
      raise ValueError(
        f"expected {entry['bytes']} bytes in {folder / entry['file']}, got {size}: a"
        f" damaged shard; copy it again, or run the same {verb} again, which repairs it"
      )
  return manifest


class Shards:
  """Random access to the raw entries of a folder; pickles, and threads may share it.

  Attributes:
    folder: where the shards lie.
    manifest: names and counts of the shards, among other facts.
  """

  def __init__(self, folder: epath.PathLike, manifest: dict):
    make_folder(folder)
    self.folder = epath.Path(folder)
    self.manifest = manifest
    self._files = [s["file"] for s in manifest["shards"]]
    counts = [s["count"] for s in manifest["shards"]]
    self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    for file in self._files:  # it may have been written again since
      readers.forget(os.fspath(self.folder / file))
    if not len(self):
      raise ValueError(f"expected records in {folder}, got an empty set; add sources")

  def __len__(self) -> int:
    return int(self._starts[-1])

  def __getitem__(self, index: int) -> dict:
    index = int(index)
    self._check(index, index)
    file, position = self.place(index)
    path = os.fspath(self.folder / file)
    return self.unpacked(_unpacked([(path, [position])])[0][0])

  def place(self, index: int) -> tuple[str, int]:
    """Shard file and position in it of an entry."""
    number = bisect.bisect_right(self._starts, index) - 1
    return self._files[number], int(index - self._starts[number])

  def _check(self, lowest: int, highest: int) -> None:
    if lowest < 0 or highest >= len(self):
      raise ValueError(
        f"expected positions from 0 to {len(self) - 1} in {self.folder}, got"
        f" {lowest if lowest < 0 else highest}; ask for one of these"
      )

  def spread(self, indices: np.ndarray) -> list[tuple["Shards", np.ndarray]]:
    """What to read for i64 positions: folders and positions in them, in order."""
    return [(self, indices)]

  def unpacked(self, entry: dict) -> dict:
    """An entry as it is given out."""
    return entry

  def asked(
    self, indices: np.ndarray
  ) -> tuple[list[tuple[str, list[int]]], np.ndarray]:
    """Files and positions in them, and the place of each among i64 `indices`."""
    if len(indices):
      self._check(int(indices.min()), int(indices.max()))
    shard = np.searchsorted(self._starts, indices, side="right") - 1
    order = np.argsort(shard, kind="stable")
    numbers, first = np.unique(shard[order], return_index=True)
    groups = np.split(order, first[1:]) if len(order) else []
    files = [os.fspath(self.folder / self._files[number]) for number in numbers]
    own = indices - self._starts[shard]
    return [(file, own[g].tolist()) for file, g in zip(files, groups)], order


def read_together(wanted: Sequence[tuple[Any, Sequence[int]]]) -> list[list[dict]]:
  """Reads entries of several folders at once: on a slow disk they wait together.

  Args:
    wanted: `Shards`, or `corpora.Chain`, and positions in it.

  Returns:
    The entries of each, in the order of their positions.

  Raises:
    BadRecord: a shard is damaged at one of them.
  """
  pieces, asked = [], []
  for number, (source, indices) in enumerate(wanted):
    for folder, own in source.spread(np.asarray(indices, np.int64)):
      files, order = folder.asked(own)
      pieces.append((number, folder, len(files), order))
      asked += files
  read = iter(_unpacked(asked) if asked else ())
  found: list[list[dict]] = [[] for _ in wanted]
  for number, folder, files, order in pieces:
    entries = itertools.chain(*itertools.islice(read, files))
    placed = sorted(zip(order.tolist(), entries), key=lambda pair: pair[0])
    found[number] += [folder.unpacked(entry) for _, entry in placed]
  return found


def _unpacked(asked: Sequence[tuple[str, list[int]]]) -> list[list[dict]]:
  unpack = functools.partial(msgpack.unpackb, strict_map_key=False)
  try:
    return [[unpack(entry) for entry in entries] for entries in readers.read(asked)]
  except Exception as error:  # array_record and msgpack raise many types
    for path, _ in asked:
      readers.forget(path)
    path, positions = asked[0]
    several = "" if len(asked) == len(positions) == 1 else " or of those read with it"
    detail = f"entry {positions[0]} of {path}{several}: {str(error)[:100]}"
    raise bad.BadRecord("a damaged shard", detail) from error
