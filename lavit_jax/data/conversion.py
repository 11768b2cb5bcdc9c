"""From somebody's data to prepared shards: one pure function from part to shard.

    source -> parts -> convert(job) in any process, in any order -> shard, index, report

A shard counts once its report is there; the report is written last. It tells what the
shard was made of and its checksum, so that `ensure` makes again what is missing, has
been damaged, or whose input has changed.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from urllib.parse import quote

import msgpack
from etils import epath

from lavit_jax.data import bad, choosing, images, record_index, records, shards
from lavit_jax.data.sources import (
  coco,
  folder,
  jsonl,
  parquet,
  tfds,
  vqa,
  webdataset,
)
from lavit_jax.data.sources import fields as naming
from lavit_jax.data.sources.parts import Item, Part

SOURCES = {
  "coco": coco,
  "folder": folder,
  "jsonl": jsonl,
  "parquet": parquet,
  "tfds": tfds,
  "vqa": vqa,
  "webdataset": webdataset,
}
LONGEST_KEY, LONGEST_FILE = 500, 200  # characters
SUFFIX = ".array_record"


@dataclasses.dataclass(frozen=True)
class Job:
  """All that makes one output shard.

  Attributes:
    source: name in SOURCES.
    part: what to read.
    fields: which fields of a row to read.
    choice: which records are wanted.
    target: folder of the shards.
  """

  source: str
  part: Part
  fields: naming.Fields
  choice: choosing.Choice
  target: str

  @property
  def file(self) -> str:
    """Name of the shard: it follows from the part alone."""
    name = quote(self.part.name.replace("/", "--"), safe="+ ").replace(" ", "_")
    digest = hashlib.sha256(self.part.name.encode()).hexdigest()
    if len(name) > LONGEST_FILE or name != self.part.name:
      name = f"{name[:LONGEST_FILE]}-{digest[:8]}"
    return f"{self.source}-{name}{SUFFIX}"

  @property
  def shard(self) -> epath.Path:
    """The shard's path."""
    return epath.Path(self.target) / self.file

  @property
  def report(self) -> epath.Path:
    """The report's path; where it exists the shard is finished."""
    return epath.Path(self.target) / "parts" / f"{self.file}.json"

  @property
  def index(self) -> epath.Path:
    """Path of the shard's rows of the index."""
    return epath.Path(self.target) / "parts" / f"{self.file}.npz"

  @property
  def settings(self) -> dict:
    """What besides the input decides the records."""
    return dataclasses.asdict(self.fields) | dataclasses.asdict(self.choice)


@dataclasses.dataclass(frozen=True)
class ReadItem:
  """What becomes of one place of the input.

  Attributes:
    name: id of the record.
    found: the checked record, or why there is none.
    size: bytes of the part that it takes.
    cut: as `parts.Item`.
  """

  name: str
  found: dict | bad.BadRecord
  size: int
  cut: str


def read(job: Job) -> Iterator[ReadItem]:
  """Yields the records of a part, checked, and what is not one, in order."""
  seen = {}
  for item in SOURCES[job.source].read(job.part, job.fields):
    key = item.key
    if len(key) > LONGEST_KEY:
      digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
      key = f"{key[: LONGEST_KEY - 20]}~{digest[:16]}"
    if not isinstance(item.found, bad.BadRecord):
      seen[key] = seen.get(key, 0) + 1
      if seen[key] > 1:  # several questions about one picture share its id
        key = f"{key}#{seen[key]}"
    name = bad.printable(f"{job.part.name}/{key}")
    yield ReadItem(name, _checked(job, name, item), item.size, item.cut)


def _checked(job: Job, name: str, item: Item) -> dict | bad.BadRecord:
  if isinstance(item.found, bad.BadRecord):
    return item.found
  record, size = {"id": name, **item.found}, (0, 0)
  row = record.pop("row", {})
  try:
    if not record["image"] and not _is_text(record):
      raise bad.BadRecord("a picture of zero bytes")
    choosing.check_side(record, job.choice)
    if record["image"]:
      size = images.check(record["image"])
    choosing.check_filters(size, row, job.choice)
    if job.choice.max_image_size and record["image"]:
      record["image"] = images.shrink(record["image"], job.choice.max_image_size)
  except bad.BadRecord as error:
    return error
  return record


def _is_text(record: dict) -> bool:
  return bool(record["texts"]) and record["texts"][0]["task"] == "text"


def convert(job: Job) -> None:
  """Turns one part into one shard, its index and its report: the same bytes each time.

  Raises:
    ValueError: the input itself is missing or is not what the source says.
  """
  stamp = SOURCES[job.source].stamp(job.part)
  tally, digest, rows, cut = bad.Tally(), hashlib.sha256(), [], ""
  (epath.Path(job.target) / shards.MANIFEST).unlink(missing_ok=True)
  written = shards.temporary(job.shard)
  writer = shards.open_writer(written)
  for item in read(job):
    cut = max(cut, item.cut, key=("", "likely", "surely").index)
    if isinstance(item.found, bad.BadRecord):
      tally.add(item.name, item.found, item.size)
      continue
    packed = msgpack.packb(item.found)
    writer.write(packed)
    digest.update(packed)
    rows.append(record_index.row(item.found, records.TASKS))
    tally.good += 1
    tally.kept += item.size
  writer.close()
  facts = {
    "part": dataclasses.asdict(job.part),
    "settings": job.settings,
    "input": stamp,
    "cut": cut,
    "fingerprint": digest.hexdigest(),
    "shard": checksum(written),
    "bytes_of_shard": epath.Path(written).stat().length,
  }
  shards.publish(written, job.shard)
  shards.write_arrays(job.index, **record_index.arrays(rows))
  facts["index"] = checksum(job.index)
  _weigh(tally, job.part.size)
  report = facts | tally.as_dict()
  shards.write_json(job.report, report | {"seal": _seal(report)})


def _weigh(tally: bad.Tally, size: int) -> None:
  """Makes the bytes of all items add up to those of the part.

  Compressed parts count in another unit. What lies between the items of others, such
  as the end mark of a tar, belongs to what is kept.
  """
  others = [entry for entry in tally.reasons.values() if entry["bytes"]]
  total = tally.kept + sum(entry["bytes"] for entry in others)
  if total > size:
    for entry in others:
      entry["bytes"] = entry["bytes"] * size // total
  tally.kept = size - sum(entry["bytes"] for entry in others)


def checksum(path: epath.PathLike) -> str:
  """SHA-256 of a file."""
  with epath.Path(path).open("rb") as file:
    digest = hashlib.sha256()
    while data := file.read(1 << 20):
      digest.update(data)
    return digest.hexdigest()


def _seal(report: dict) -> str:
  """Tells a report that was changed: with another digit it is JSON still."""
  text = json.dumps(report, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def stands(job: Job) -> bool:
  """Whether a shard is there, whole, and made of the input as it is now."""
  if not (job.report.exists() and job.shard.exists() and job.index.exists()):
    return False
  try:
    report = shards.read_json(job.report)
    if report.pop("seal") != _seal(report):
      return False
    same = report["part"]["start"], report["part"]["stop"]
    if same != (job.part.start, job.part.stop):
      return False
    try:
      now = SOURCES[job.source].stamp(job.part)
    except OSError:  # the input is gone: what was made of it stays
      now = report["input"]
    if report["input"] != now:
      return False
    sums = report["shard"], report["index"]
    return sums == (checksum(job.shard), checksum(job.index))
  except (KeyError, TypeError, OSError, ValueError):
    return False  # the report itself is damaged


def ensure(job: Job) -> None:
  """Converts a part unless its shard stands."""
  if not stands(job):
    convert(job)
