"""A prepared folder in the making: begun, continued, repaired or added to.

    prepare.json     every input with its name and bounds, and what was left out
    parts/           a report and an index for each finished shard
    manifest.json    written when every part of every input stands

Machines that share the work (`Share`) write different parts of one folder without
waiting for each other; whoever finds the last part finished writes the manifest.
"""

import dataclasses
import fcntl
import hashlib
import io
import os
import socket
import statistics
from collections.abc import Sequence

import numpy as np
from etils import epath

from lavit_jax.data import bad, choosing, conversion, records, shards
from lavit_jax.data.conversion import SOURCES, Job
from lavit_jax.data.shares import ALL, Share
from lavit_jax.data.sources import fields as naming
from lavit_jax.data.sources import parts as cutting

PLAN = "prepare.json"
REPORT = "report.json"
VERSION = 2


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a command asks for.

  Attributes:
    target: folder of the shards.
    jobs: one for each part of its inputs.
    unused: items for files that are no part of them.
  """

  target: str
  jobs: list[Job]
  unused: list[cutting.Item]


def plan(
  source: str,
  inputs: list[str],
  target: str,
  fields: naming.Fields,
  records_per_shard: int,
  choice: choosing.Choice = choosing.Choice(),  # noqa: B008  (it is frozen)
) -> Plan:
  """Lists the jobs of a command; equal inputs give an equal list.

  Args:
    source: name in `conversion.SOURCES`.
    inputs: files, folders or patterns.
    target: folder of the shards; what it holds already keeps its names and bounds.
    fields: which fields of a row to read.
    records_per_shard: about so many records in a part.
    choice: which records are wanted.
  """
  known = {
    entry["path"]: cutting.Known(name, tuple(entry["bounds"]))
    for name, entry in _stored(target)["inputs"].items()
  }
  found = SOURCES[source].parts(inputs, records_per_shard, known)
  if not found.parts:
    told = [f"{item.key}: {item.found.reason}" for item in found.unused[:3]]
    raise ValueError(
      f"expected data in {', '.join(inputs)}, got none"
      f"{''.join(f' ({one})' for one in told)}; give more inputs"
    )
  columns = (*fields.columns, *choice.columns)
  fields = dataclasses.replace(fields, columns=columns)
  jobs = [Job(source, part, fields, choice, target) for part in found.parts]
  return Plan(target, jobs, found.unused)


def _stored(target: epath.PathLike) -> dict:
  """What a folder is being made of; nothing for a new one."""
  path = epath.Path(target) / PLAN
  if not path.exists():
    return {"version": VERSION, "inputs": {}, "unused": []}
  stored = shards.read_json(path)
  if stored.get("version") != VERSION:
    raise ValueError(
      f"expected a folder that this version of prepare began, got an earlier one's in"
      f" {os.fspath(target)}; it can be trained on, but not added to: give another"
      " --target"
    )
  return stored


def _entries(jobs: Sequence[Job]) -> dict:
  """What prepare.json holds of the inputs of jobs, by name."""
  found: dict[str, dict] = {}
  for job in jobs:
    part = job.part
    blank = {
      "source": job.source,
      "path": part.path,
      "root": part.root,
      "settings": job.settings,
      "bounds": [part.start],
      "sizes": [],
    }
    entry = found.setdefault(part.input, blank)
    entry["bounds"].append(part.stop)
    entry["sizes"].append(part.size)
  return found


def _jobs(inputs: dict, target: str) -> list[Job]:
  """The jobs of all inputs of a folder, by name of their parts."""
  names = [field.name for field in dataclasses.fields(naming.Fields)]
  found = []
  for name, entry in inputs.items():
    settings = {
      key: tuple(value) if isinstance(value, list) else value
      for key, value in entry["settings"].items()
    }
    fields = naming.Fields(**{key: settings.pop(key) for key in names})
    choice = choosing.Choice(**settings)
    bounds, sizes = entry["bounds"], entry["sizes"]
    for part in cutting.pieces(name, entry["path"], bounds, sizes, entry["root"]):
      found.append(Job(entry["source"], part, fields, choice, target))
  return sorted(found, key=lambda job: job.part.name)


class Run:
  """A run of `prepare` over a target folder.

  A local folder is its own until `close`: a second run there is refused, unless both
  have different shares.

  Attributes:
    jobs: all jobs of the folder, in the order of its shards.
    own: those of this share.
    target: folder of the shards.
  """

  def __init__(self, plan: Plan, share: Share = ALL):
    """Begins, continues or adds to a folder."""
    self.target, self.share = epath.Path(plan.target), share
    (self.target / "parts").mkdir(parents=True, exist_ok=True)
    self._locks = _lock(self.target, share)
    try:
      self._begin(plan)
    except BaseException:
      self.close()  # else whoever keeps the error would keep the lock
      raise

  def _begin(self, plan: Plan) -> None:
    """Joins what is asked for with what the folder holds."""
    path, stored = self.target / PLAN, _stored(self.target)
    if not path.exists() and (self.target / shards.MANIFEST).exists():
      raise ValueError(
        f"expected a new folder, got other records in {self.target}; give another"
        " --target"
      )
    asked, inputs = _entries(plan.jobs), stored["inputs"]
    for name in asked:
      _check_same(inputs.get(name, asked[name]), asked[name], name, self.target)
    earlier = _jobs(inputs, plan.target)
    self.jobs = _jobs(inputs | asked, plan.target)
    self.own = self.jobs[self.share.index :: self.share.of]
    unused = {item[0]: item for item in stored["unused"]}
    for item in plan.unused:
      left_out = isinstance(item.found, bad.LeftOut)
      facts = [item.found.reason, item.found.detail, item.size, left_out]
      unused[item.key] = [bad.printable(item.key), *facts]
    self.unused = [unused[key] for key in sorted(unused)]
    facts = {"version": VERSION, "inputs": inputs | asked, "unused": self.unused}
    if facts != stored or not path.exists():
      shards.write_json(path, facts)
    self._clean(earlier)

  def _clean(self, earlier: list[Job]) -> None:
    """Removes half-written files of the own parts, and parts that are no more."""
    own, here = {job.file for job in self.own}, {job.file for job in self.jobs}
    for old in (*self.target.glob("*.tmp"), *self.target.glob("parts/*.tmp")):
      head, mark, _ = old.name.partition(conversion.SUFFIX)
      if (head + mark in own) if mark else self.share == ALL:
        old.unlink(missing_ok=True)
    for job in earlier:
      if job.file not in here:
        for path in (job.report, job.index, job.shard):
          path.unlink(missing_ok=True)

  def close(self) -> None:
    """Lets another run have the folder, whether this one finished or failed."""
    for lock in self._locks:
      lock.close()

  def missing(self) -> list[Job]:
    """Returns the own jobs that are not known to be done; `ensure` looks closer."""
    done = {path.name for path in (self.target / "parts").iterdir()}
    return [job for job in self.own if job.report.name not in done]

  def tally(self) -> bad.Tally:
    """Returns the counts of all finished shards, and what broken inputs lost."""
    reports = [(job, shards.read_json(job.report)) for job in self._finished()]
    total = bad.merge(_tally(report) for _, report in reports)
    total.lost = lost(reports)
    for key, reason, detail, size, left_out in self.unused:
      kind = bad.LeftOut if left_out else bad.BadRecord
      total.add(key, kind(reason, detail), size)
    return total

  def _finished(self) -> list[Job]:
    return [job for job in self.jobs if job.report.exists()]

  def finish(self, max_bad: float) -> dict | None:
    """Writes report, index and manifest.

    Args:
      max_bad: largest share of bad records, and of bad bytes.

    Returns:
      The manifest, or None while other shares are not finished.
    """
    left = len(self.jobs) - len(self._finished())
    if left and self.share != ALL:
      return None
    tally = self.tally()
    shards.write_json(self.target / REPORT, tally.as_dict())
    check(tally, max_bad, self.target)
    if not tally.good:
      raise ValueError(
        "expected records, got none that can be used; choose another --source,"
        f" --image_field or --filter\n{tally.summary()}"
      )
    rows, files, digest = [], [], hashlib.sha256()
    for job in self.jobs:
      report = shards.read_json(job.report)
      digest.update(report["fingerprint"].encode())
      rows.append(shards.read_arrays(job.index))
      facts = shards.entry(job.shard, report["good"])
      files.append(facts | {"fingerprint": report["fingerprint"]})
    index = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    return records.finish(self.target, files, index, digest.hexdigest())


def _tally(report: dict) -> bad.Tally:
  return bad.Tally(report["good"], report["reasons"], report["bytes"]["kept"])


def tally_of(job: Job) -> bad.Tally:
  """Reads the counts of a finished shard."""
  return _tally(shards.read_json(job.report))


def lost(reports: Sequence[tuple[Job, dict]]) -> int:
  """Estimates the bytes that inputs held beyond the end at which they were cut.

  An input of several is taken to have been as long as the middle one of those that are
  whole; one that stands alone, twice as long as what is left of it.
  """
  whole: dict[str, list[int]] = {}
  for job, report in reports:
    if not report["cut"] and job.part.name == job.part.input:
      whole.setdefault(job.source, []).append(job.part.size)
  total = 0
  for job, report in reports:
    size = job.part.size
    if report["cut"] and job.source in whole:
      total += max(0, int(statistics.median(whole[job.source])) - size)
    elif report["cut"] == "surely":
      total += max(size, 1)
  return total


def summary(target: epath.PathLike) -> str:
  """Describes the counts of a folder, commonest reason first."""
  found = shards.read_json(epath.Path(target) / REPORT)
  size = found["bytes"]
  return bad.Tally(
    found["good"], found["reasons"], size["kept"], size["lost"]
  ).summary()


def check(tally: bad.Tally, max_bad: float, target: epath.PathLike) -> None:
  """Stops a run with too much that is bad; finished shards stay."""
  tally.check(
    max_bad,
    f"see {os.fspath(target)}/{REPORT}; repair the input and give the same command"
    " again, or accept them: a higher --max_bad goes on",
  )


def _check_same(found: dict, wanted: dict, name: str, target: epath.Path) -> None:
  """Refuses other settings for an input that the folder holds."""
  old, new = _plain(found["settings"]), _plain(wanted["settings"])
  differ = [key for key in new if old.get(key) != new[key]]
  if found["source"] != wanted["source"]:
    differ.append("source")
  if differ:
    raise ValueError(
      f"expected to continue the run in {target}, got other settings for its input"
      f" {name} ({', '.join(differ)} differ); repeat its flags, or give a new --target"
    )


def _plain(settings: dict) -> dict:
  return {
    key: list(value) if isinstance(value, tuple) else value
    for key, value in settings.items()
  }


def _lock(target: epath.Path, share: Share) -> list[io.TextIOWrapper]:
  """Keeps a second run with the same parts out of a local folder.

  A run over all parts has the folder alone; shares have it together.
  """
  if "://" in os.fspath(target):
    return []
  how = fcntl.LOCK_EX if share == ALL else fcntl.LOCK_SH
  locks = [(target / "prepare.lock", how)]
  if share != ALL:
    own = f"prepare-{share.index}-of-{share.of}.lock"
    locks.append((target / own, fcntl.LOCK_EX))
  held = []
  for path, kind in locks:
    held.append(open(path, "w"))
    try:
      fcntl.flock(held[-1], kind | fcntl.LOCK_NB)
    except BlockingIOError as error:
      for file in held:
        file.close()
      raise ValueError(
        f"expected to write {target} alone, got another prepare at work on"
        f" {socket.gethostname()}; wait for it, or give a new --target"
      ) from error
    except OSError:  # a mount without locks
      pass
  return held
