"""Prepared records and their sidecars: array_record shards of msgpack dicts.

A folder holds `name-00000-of-00004.array_record` ..., `index.npz` with one row per
record, and `manifest.json`, which is written last: without it the folder is unfinished.

  record   {"id", "image": encoded bytes or b"", "texts": [entry], "labels"?, "truth"?}
  entry    {"task": "caption" | "answer" | "text", "turns": [[prompt, text], ...]}
  sidecar  {"id", "codes": u16[T], "keep": bits[P], "count": T, "texts": [entry of ids]}

`packed` states the sidecar's bytes. A sidecar has the shards of its records, in the
same order.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator

import msgpack
import numpy as np
from etils import epath

from lavit_jax.data import numerics, record_index, shards, standing_for
from lavit_jax.data.packed import (
  pack_codes,
  pack_ids,
  pack_keep,
  unpack_codes,
  unpack_ids,
  unpack_keep,
)
from lavit_jax.data.shards import MANIFEST

RECORD_SCHEMA = "lavit_jax record 1"
SIDECAR_SCHEMA = "lavit_jax sidecar 1"
TASKS = ("caption", "answer", "text")
INDEX = "index.npz"
PLAN = "sidecar.json"  # what an unfinished sidecar is being made of
SIDECAR_FACTS = (
  "visual_tokenizer",  # checksum of the weights that chose the codes
  "text_tokenizer",  # checksum of the text tokenizer
  "resize",  # images.RESIZE_VERSION
  "image_size",
  "patches",  # P
  "num_codes",  # K
  "dtype",  # compute dtype: another one may give other codes
  "numerics",  # numerics.VERSION
)


# Records


def check_record(record: dict) -> None:
  """Raises ValueError where a record breaks the schema."""
  name = record.get("id")
  if not isinstance(name, str) or not isinstance(record.get("image"), bytes):
    raise ValueError(
      f"expected a str 'id' and bytes 'image', got id {name!r}; fix the source"
    )
  for entry in record.get("texts", []):
    task, turns = entry["task"], entry["turns"]
    if task not in TASKS or not turns or (task == "text") == bool(record["image"]):
      raise ValueError(
        f"expected captions and answers beside a picture and text without one, got "
        f"task {task!r} with {len(turns)} turns and {len(record['image'])} image bytes "
        f"in record {name!r}; fix the source"
      )


def write_shards(
  records: Iterable[dict],
  folder: epath.PathLike,
  name: str,
  records_per_shard: int,
) -> dict:
  """Writes records as shards, then their index and manifest.

  Args:
    records: dicts of the record schema, in order.
    folder: target; must not hold a finished set.
    name: prefix of the shard files.
    records_per_shard: records in every shard but the last.

  Returns:
    The manifest.
  """
  folder = shards.make_folder(folder)
  if (folder / MANIFEST).exists():
    raise ValueError(f"expected a new folder, got a finished set in {folder}; empty it")
  for old in folder.glob("*.tmp"):
    old.unlink()
  digest, rows, counts, writer = hashlib.sha256(), [], [], None
  for record in records:
    check_record(record)
    if writer is None or counts[-1] == records_per_shard:
      if writer is not None:
        writer.close()
      path = folder / f"{name}-{len(counts):05d}.tmp"
      writer = shards.open_writer(path)
      counts.append(0)
    packed = msgpack.packb(record)
    writer.write(packed)
    digest.update(packed)
    counts[-1] += 1
    rows.append(record_index.row(record, TASKS))
  if writer is not None:
    writer.close()
  number = len(counts)
  files = [f"{name}-{i:05d}-of-{number:05d}.array_record" for i in range(number)]
  for i, file in enumerate(files):
    shards.publish(folder / f"{name}-{i:05d}.tmp", folder / file)
  entries = [shards.entry(folder / file, n) for file, n in zip(files, counts)]
  return finish(folder, entries, record_index.arrays(rows), digest.hexdigest())


def finish(
  folder: epath.Path,
  files: list[dict],
  index: dict[str, np.ndarray],
  fingerprint: str,
) -> dict:
  """Writes index and manifest of a folder whose shards all stand.

  Args:
    folder: folder of the shards.
    files: what the manifest holds of each shard, in order: file, count, bytes, and the
      fingerprint of its records where it has one.
    index: `record_index.arrays` of all records.
    fingerprint: checksum of all records in order.

  Returns:
    The manifest.
  """
  shards.write_arrays(folder / INDEX, **index)
  entries = index["entries"].sum(axis=0, dtype=np.int64)
  manifest = {
    "schema": RECORD_SCHEMA,
    "count": len(index["image"]),
    "pictures": int(index["image"].sum()),
    "entries": {task: int(n) for task, n in zip(TASKS, entries)},
    "pictures_without_text": int((index["entries"].sum(axis=1) == 0).sum()),
    "fingerprint": fingerprint,
    "shards": files,
  }
  shards.write_json(folder / MANIFEST, manifest)
  return manifest


class Records(shards.Shards):
  """The records of a prepared folder, by position.

  Attributes:
    manifest: counts, shards, fingerprint of the ids.
    image: bool[N] which records have a picture.
    entries: u16[N, 3] number of caption, answer and text entries.
    size: i32[N, 2] height and width of the pictures, upright, 0 without one; None in
      folders of earlier versions.
  """

  def __init__(self, folder: epath.PathLike):
    folder = standing_for.records_of(folder)
    super().__init__(folder, shards.read_manifest(folder, RECORD_SCHEMA, "prepare"))
    index = shards.read_arrays(self.folder / INDEX)
    self.image, self.entries = index["image"], index["entries"]
    self.size = index.get("size")

  def shard(self, number: int) -> Iterator[dict]:
    """Yields the records of one shard, in order."""
    counts = [s["count"] for s in self.manifest["shards"]]
    start = sum(counts[:number])
    for index in range(start, start + counts[number]):
      yield self[index]


# Sidecars


@dataclasses.dataclass(frozen=True)
class Lengths:
  """All that planning needs to know of N records with E text entries.

  Attributes:
    count: u16[N] visual tokens of the picture, 0 without one.
    offsets: i64[N + 1] entries of record n are offsets[n] .. offsets[n + 1].
    task: u8[E] position in TASKS.
    turns: u16[E] number of turns.
    text: u32[E] text ids of all turns, prompts included, without marks.
  """

  count: np.ndarray
  offsets: np.ndarray
  task: np.ndarray
  turns: np.ndarray
  text: np.ndarray


def lengths_of(sidecars: Iterable[dict]) -> Lengths:
  """Collects the lengths of packed sidecar dicts."""
  count, number, entries = [], [], []
  for sidecar in sidecars:
    count.append(sidecar["count"])
    number.append(len(sidecar["texts"]))
    for entry in sidecar["texts"]:
      size = sum(len(prompt) + len(text) for prompt, text in entry["turns"]) // 4
      entries.append((TASKS.index(entry["task"]), len(entry["turns"]), size))
  entries = np.array(entries, np.int64).reshape(-1, 3)
  return Lengths(
    count=np.array(count, np.uint16),
    offsets=np.concatenate([[0], np.cumsum(number, dtype=np.int64)]).astype(np.int64),
    task=entries[:, 0].astype(np.uint8),
    turns=entries[:, 1].astype(np.uint16),
    text=entries[:, 2].astype(np.uint32),
  )


def join_lengths(parts: list[Lengths]) -> Lengths:
  """Joins the lengths of consecutive shards."""
  number = np.concatenate([np.diff(part.offsets) for part in parts])
  joined = {
    name: np.concatenate([getattr(part, name) for part in parts])
    for name in ("count", "task", "turns", "text")
  }
  offsets = np.concatenate([[0], np.cumsum(number)]).astype(np.int64)
  return Lengths(offsets=offsets, **joined)


def pack_sidecar(
  name: str, codes: np.ndarray, keep: np.ndarray | None, texts: list[dict]
) -> dict:
  """Builds one sidecar dict.

  Args:
    name: id of the record.
    codes: [T] codes of the kept patches, in raster order; empty without a picture.
    keep: bool[P] with T true values, or None without a picture.
    texts: entries {"task", "turns": [[prompt ids, text ids], ...]}.

  Returns:
    The dict to store.
  """
  kept = 0 if keep is None else int(np.sum(keep))
  if kept != len(codes):
    raise ValueError(
      f"expected one code per kept patch, got {len(codes)} codes for {kept} patches in "
      f"record {name!r}; tokenize it again"
    )
  return {
    "id": name,
    "codes": pack_codes(codes),
    "keep": b"" if keep is None else pack_keep(keep),
    "count": len(codes),
    "texts": [
      {
        "task": entry["task"],
        "turns": [
          [pack_ids(prompt), pack_ids(text)] for prompt, text in entry["turns"]
        ],
      }
      for entry in texts
    ],
  }


class SidecarWriter:
  """Writes the sidecar of a prepared folder shard by shard; restarts where it stopped.

  Several hosts may write different shards of one folder; one of them calls `finish`.

  Attributes:
    records: the prepared records.
    folder: target folder.
  """

  def __init__(self, records: Records, folder: epath.PathLike, facts: dict):
    """Starts or continues a sidecar.

    Args:
      records: the prepared records.
      folder: target folder.
      facts: a value for each of SIDECAR_FACTS.
    """
    if set(facts) != set(SIDECAR_FACTS):
      raise ValueError(
        f"expected the facts {SIDECAR_FACTS}, got {tuple(facts)}; set all"
      )
    self.records, self.folder = records, shards.make_folder(folder)
    plan = {**facts, "fingerprint": records.manifest["fingerprint"]}
    path = self.folder / PLAN
    if path.exists() and shards.read_json(path) != plan:
      raise ValueError(
        f"expected to continue a sidecar of {plan}, got one of {path.read_text()} in "
        f"{folder}; give a new folder or empty this one"
      )
    if not path.exists():
      shards.write_json(path, plan)
    self.plan = plan

  def _file(self, number: int) -> str:
    return self.records.manifest["shards"][number]["file"]

  def _lengths(self, number: int) -> epath.Path:
    return self.folder / (self._file(number) + ".lengths.npz")

  def figures(self, number: int) -> epath.Path:
    """Path of a shard's `token_figures`; to be written before the shard."""
    return self.folder / (self._file(number) + ".figures.npz")

  def missing(self) -> list[int]:
    """Returns the numbers of the shards that are still to be written."""
    numbers = range(len(self.records.manifest["shards"]))
    return [n for n in numbers if not self._lengths(n).exists()]

  def write(self, number: int, sidecars: Iterable[dict]) -> None:
    """Writes one shard of packed sidecar dicts, in the order of its records."""
    sidecars = list(sidecars)
    expected = self.records.manifest["shards"][number]["count"]
    if len(sidecars) != expected:
      raise ValueError(
        f"expected {expected} sidecar records for shard {number}, got {len(sidecars)}; "
        "give one per record"
      )
    file = self._file(number)
    written = shards.temporary(self.folder / file)
    writer = shards.open_writer(written)
    for sidecar in sidecars:
      writer.write(msgpack.packb(sidecar))
    writer.close()
    shards.publish(written, self.folder / file)
    shards.write_arrays(
      self._lengths(number), **dataclasses.asdict(lengths_of(sidecars))
    )

  def finish(self) -> dict:
    """Joins the lengths and writes the manifest; every shard must be there."""
    if self.missing():
      raise ValueError(
        f"expected every shard, got none for {self.missing()}; write these first"
      )
    files = [
      shards.entry(self.folder / shard["file"], shard["count"])
      for shard in self.records.manifest["shards"]
    ]
    parts = [Lengths(**shards.read_arrays(self._lengths(n))) for n in range(len(files))]
    lengths = join_lengths(parts)
    shards.write_arrays(self.folder / "lengths.npz", **dataclasses.asdict(lengths))
    count = len(lengths.count)
    tokens = int(lengths.count.sum())
    manifest = {"schema": SIDECAR_SCHEMA, "count": count, "visual_tokens": tokens}
    manifest |= {**self.plan, "shards": files}
    shards.write_json(self.folder / MANIFEST, manifest)
    return manifest


def check_sidecar(manifest: dict, expected_checksum: str) -> None:
  """Refuses a sidecar that another visual tokenizer made."""
  found = manifest["visual_tokenizer"]
  if found != expected_checksum:
    raise ValueError(
      f"expected a sidecar of the visual tokenizer {expected_checksum}, got one of "
      f"{found}; run python -m lavit_jax.tokenize again with this visual tokenizer"
    )
  numerics.check(manifest)


class Sidecar(shards.Shards):
  """The sidecar of a prepared folder, by position.

  Items are {"id", "codes": i32[T], "keep": bool[P], "count", "texts"} where texts hold
  turns of i32 id arrays.

  Attributes:
    manifest: the facts of SIDECAR_FACTS, counts, shards.
    lengths: lengths of all records, for planning.
  """

  def __init__(self, folder: epath.PathLike):
    super().__init__(folder, shards.read_manifest(folder, SIDECAR_SCHEMA, "tokenize"))
    self.lengths = Lengths(**shards.read_arrays(self.folder / "lengths.npz"))

  def unpacked(self, item: dict) -> dict:
    """Arrays in place of bytes."""
    item["codes"] = unpack_codes(item["codes"])
    item["keep"] = unpack_keep(item["keep"], self.manifest["patches"])
    for entry in item["texts"]:
      entry["turns"] = [[unpack_ids(p), unpack_ids(t)] for p, t in entry["turns"]]
    return item
