"""From somebody's data to prepared shards: one pure function from part to shard.

    source -> parts -> convert(job) in any process, in any order -> finish -> manifest

A shard counts once its report is there; the report is written last. A killed run leaves
nothing but finished shards and files ending in .tmp, so the same call continues it.
"""

import dataclasses
import fcntl
import hashlib
import io
import os
import socket
from collections.abc import Iterator

import msgpack
import numpy as np
from etils import epath

from lavit_jax.data import bad, images, records, shards
from lavit_jax.data.sources import fields as naming
from lavit_jax.data.sources import folder, jsonl, parquet, tfds, webdataset
from lavit_jax.data.sources.parts import Part

SOURCES = {
  "folder": folder,
  "jsonl": jsonl,
  "parquet": parquet,
  "tfds": tfds,
  "webdataset": webdataset,
}
PLAN = "prepare.json"  # what an unfinished folder is being made of
REPORT = "report.json"
LONGEST_KEY = 500  # characters


@dataclasses.dataclass(frozen=True)
class Job:
  """All that makes one output shard.

  Attributes:
    source: name in SOURCES.
    part: what to read.
    fields: which fields of a row to read.
    target: folder of the shards.
    file: name of the shard in it.
  """

  source: str
  part: Part
  fields: naming.Fields
  target: str
  file: str

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


def plan(
  source: str,
  inputs: list[str],
  target: str,
  fields: naming.Fields,
  records_per_shard: int,
) -> list[Job]:
  """Lists the jobs of a run; equal inputs give an equal list."""
  parts = SOURCES[source].parts(inputs, records_per_shard)
  if not parts:
    raise ValueError(
      f"expected data in {', '.join(inputs)}, got none; give more inputs"
    )
  number = len(parts)
  if len({part.name for part in parts}) < number:
    raise ValueError(
      "expected inputs of different names, got two alike; ids begin with the name of"
      " their input, so rename one"
    )
  return [
    Job(source, part, fields, target, f"{source}-{i:05d}-of-{number:05d}.array_record")
    for i, part in enumerate(parts)
  ]


def read(job: Job) -> Iterator[tuple[str, dict | bad.BadRecord]]:
  """Yields (id, checked record or what is wrong with it), in the part's order."""
  seen = set()
  for key, found in SOURCES[job.source].read(job.part, job.fields):
    name = bad.printable(f"{job.part.name}/{key}")
    try:
      if isinstance(found, bad.BadRecord):
        raise found
      if key in seen:
        raise bad.BadRecord("a duplicate key", "an earlier record of the part has it")
      if len(key) > LONGEST_KEY:
        raise bad.BadRecord("a key too long", f"{len(key)} characters")
      if not found["image"] and found["texts"][0]["task"] != "text":
        raise bad.BadRecord("a picture of zero bytes")
      if found["image"]:
        images.check(found["image"])
      seen.add(key)
      yield name, {"id": name, **found}
    except bad.BadRecord as error:
      yield name, error


def convert(job: Job) -> None:
  """Turns one part into one shard, its index and its report: the same bytes each time.

  Raises:
    ValueError: the input itself is missing or is not what the source says.
  """
  tally, digest, rows = bad.Tally(), hashlib.sha256(), []
  written = shards.temporary(job.shard)
  writer = shards.open_writer(written)
  for name, found in read(job):
    if isinstance(found, bad.BadRecord):
      tally.add(name, found)
      continue
    packed = msgpack.packb(found)
    writer.write(packed)
    digest.update(packed)
    rows.append(records.index_row(found))
    tally.good += 1
  writer.close()
  shards.publish(written, job.shard)
  shards.write_arrays(job.index, **records.index_arrays(rows))
  facts = {"part": job.part.name, "fingerprint": digest.hexdigest()}
  shards.write_json(job.report, facts | tally.as_dict())


# Runs


class Run:
  """A run of `prepare` over a target folder: begun, continued or finished.

  A local folder is its own until `close`: a second run there is refused.

  Attributes:
    jobs: all jobs, in shard order.
    target: folder of the shards.
  """

  def __init__(self, jobs: list[Job]):
    """Begins or continues a run; a run of other inputs is refused."""
    self.jobs, self.target = jobs, epath.Path(jobs[0].target)
    (self.target / "parts").mkdir(parents=True, exist_ok=True)
    self._lock = _lock(self.target)
    try:
      self._begin()
    except BaseException:
      self.close()  # else whoever keeps the error would keep the lock
      raise

  def _begin(self) -> None:
    """Writes what is being made, or checks that it is the same."""
    path, facts = self.target / PLAN, _facts(self.jobs)
    if path.exists():
      _check_same(shards.read_json(path), facts, self.target)
    else:
      if (self.target / shards.MANIFEST).exists():
        raise ValueError(
          f"expected a new folder, got other records in {self.target}; give another"
          " --target"
        )
      shards.write_json(path, facts)
    for old in (*self.target.glob("*.tmp"), *self.target.glob("parts/*.tmp")):
      old.unlink()

  def close(self) -> None:
    """Lets another run have the folder, whether this one finished or failed."""
    if self._lock is not None:
      self._lock.close()

  def missing(self) -> list[Job]:
    """Returns the jobs still to be done."""
    done = {path.name for path in (self.target / "parts").iterdir()}
    return [job for job in self.jobs if job.report.name not in done]

  def tally(self) -> bad.Tally:
    """Returns the counts of all finished shards."""
    return bad.merge(tally_of(job) for job in self.jobs if job.report.exists())

  def finish(self, max_bad: float) -> dict:
    """Writes report, index and manifest; every shard must be there.

    Args:
      max_bad: largest share of bad records.

    Returns:
      The manifest.
    """
    tally = self.tally()
    shards.write_json(self.target / REPORT, tally.as_dict())
    check(tally, max_bad, self.target)
    rows, counts, digest = [], [], hashlib.sha256()
    for job in self.jobs:
      report = shards.read_json(job.report)
      digest.update(report["fingerprint"].encode())
      rows.append(shards.read_arrays(job.index))
      counts.append(report["good"])
    index = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    files = [job.file for job in self.jobs]
    return records.finish(self.target, files, counts, index, digest.hexdigest())


def tally_of(job: Job) -> bad.Tally:
  """Reads the counts of a finished shard."""
  report = shards.read_json(job.report)
  return bad.Tally(report["good"], report["reasons"])


def summary(target: epath.PathLike) -> str:
  """Describes the counts of a folder, commonest reason first."""
  found = shards.read_json(epath.Path(target) / REPORT)
  return bad.Tally(found["good"], found["reasons"]).summary()


def check(tally: bad.Tally, max_bad: float, target: epath.PathLike) -> None:
  """Stops a run with too many bad records; finished shards stay."""
  tally.check(
    max_bad,
    f"see {os.fspath(target)}/{REPORT}, repair the input into a new target, or accept"
    " them: the same command with a higher --max_bad goes on",
  )


def _facts(jobs: list[Job]) -> dict:
  """What must be equal for a run to continue another."""
  parts = [[j.part.name, j.part.start, j.part.stop, j.part.size] for j in jobs]
  fields = dataclasses.asdict(jobs[0].fields)
  return {"source": jobs[0].source, "fields": fields, "parts": parts}


def _check_same(found: dict, wanted: dict, target: epath.Path) -> None:
  if found == wanted:
    return
  names = [name for name in wanted if found.get(name) != wanted[name]]
  raise ValueError(
    f"expected to continue the run in {target}, got other inputs ({', '.join(names)}"
    " differ); repeat its flags and files, or give a new --target"
  )


def _lock(target: epath.Path) -> io.TextIOWrapper | None:
  """Keeps a second run out of a local folder until the file is closed."""
  if "://" in os.fspath(target):
    return None
  file = open(target / "prepare.lock", "w")
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    file.close()
    raise ValueError(
      f"expected to write {target} alone, got another prepare at work on"
      f" {socket.gethostname()}; wait for it, or give a new --target"
    ) from error
  except OSError:  # a mount without locks
    pass
  return file
