"""One evaluation over all hosts: predictions kept as they come, then figures of all."""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
from jax.experimental import multihost_utils

from lavit_jax.data import progress, shards
from lavit_jax.evaluate import annotations
from lavit_jax.generate import decoding
from lavit_jax.inference import pictures
from lavit_jax.inference.api import LaVIT
from lavit_jax.weights import model_directory

CHUNK = 64  # records between two notes of what is done
PACKAGES = ("jax", "flax", "transformers", "pillow", "pycocoevalcap")


@dataclasses.dataclass(frozen=True)
class Task:
  """One kind of evaluation.

  Attributes:
    predict: entries of annotations -> one JSON value each.
    summarize: (entries, predictions) of all hosts -> figures.
    settings: prompt and decoding, as stored beside the figures.
    read: reads the picture of one entry, or says in a ValueError why it cannot.
    picture: where the picture of an entry lies.
  """

  predict: Callable[[list[dict]], list[Any]]
  summarize: Callable[[list[dict], list[Any]], dict[str, Any]]
  settings: dict[str, Any]
  read: Callable[[dict], Any]
  picture: Callable[[dict], pathlib.Path]


def run(
  name: str,
  task: Task,
  entries: list[dict],
  split: str,
  model: dict[str, str],
  target: str,
  retry_failed: bool = False,
) -> dict[str, Any] | None:
  """Evaluates on all hosts; the same command continues an interrupted evaluation.

  Args:
    name: of the task; of its files, too.
    task: what to do.
    entries: annotations, in order.
    split: the annotation file.
    model: the model's `facts_of`.
    target: folder to write, the same for all hosts.
    retry_failed: entries whose picture could not be read are tried once more.

  Returns:
    What was written, on the first host. Entries whose pictures cannot be read stand
    under "failed", and no figure counts them.
  """
  folder = pathlib.Path(target)
  (folder / "parts").mkdir(parents=True, exist_ok=True)
  facts = {
    "task": name,
    "model": model,
    "split": identity(split),
    "settings": task.settings,
  }
  index, count = jax.process_index(), jax.process_count()
  path = folder / "parts" / f"{name}-{index}-of-{count}.jsonl"
  own = annotations.share(entries, index, count)
  done = _read_part(path, facts)
  _check_pictures(task, own, done, path)
  left = [e for e in own if e["id"] not in done]
  if retry_failed:
    left += [e for e in own if "error" in done.get(e["id"], {})]
  _predict(task, left, path, facts)
  if count > 1:
    multihost_utils.sync_global_devices(f"evaluated {name}")
  if index:
    return None
  found = {}
  for part in range(count):
    found |= _read_part(folder / "parts" / f"{name}-{part}-of-{count}.jsonl", facts)
  made = facts | _figures(name, task, entries, found, folder)
  shards.write_json(folder / f"{name}.json", made)
  return made


def _figures(
  name: str, task: Task, entries: list[dict], found: dict, folder: pathlib.Path
) -> dict[str, Any]:
  """Writes what was said, and gives the figures over all that could be asked."""
  results = [{"id": e["id"], **_said(found[e["id"]])} for e in entries]
  shards.write_json(folder / f"{name}-results.json", results)
  good = [entry for entry in entries if "error" not in found[entry["id"]]]
  failed = [own for own in results if "error" in own]
  if not good:
    raise ValueError(
      f"expected pictures that can be read, all {len(entries)} cannot, the first:"
      f" {failed[0]['error']}; check --images"
    )
  stamps = "".join(found[entry["id"]].get("picture", "") for entry in entries)
  return {
    "pictures": hashlib.sha256(stamps.encode()).hexdigest(),
    "n": len(good),
    "failed": {"count": len(failed), "first": failed[:10]},
    "figures": task.summarize(good, [found[e["id"]]["result"] for e in good]),
    "versions": _versions(),
    "results": f"{name}-results.json",
  }


def _said(line: dict[str, Any]) -> dict[str, Any]:
  return {name: line[name] for name in ("result", "error") if name in line}


def _predict(task: Task, own: list[dict], path: pathlib.Path, facts: dict) -> None:
  """Appends one line per record to a part, behind a line of facts."""
  failed = 0
  with (
    open(path, "a", encoding="utf-8") as stream,
    contextlib.closing(progress.Progress("records", len(own))) as told,
  ):
    if not stream.tell():
      stream.write(json.dumps(facts) + "\n")
    for first in range(0, len(own), CHUNK):
      for entry, line in _lines(task, own[first : first + CHUNK]):
        known = {"id": entry["id"], "picture": pictures.stamp(task.picture(entry))}
        stream.write(json.dumps(known | line) + "\n")
        failed += "error" in line
        told.step(f"{failed} failed")
      stream.flush()


def _lines(task: Task, chunk: list[dict]) -> list[tuple[dict, dict[str, Any]]]:
  """Entries with their results, or with what is wrong with their pictures."""
  try:
    said = task.predict(chunk)
  except (ValueError, OSError):
    errors = {entry["id"]: _error(task, entry) for entry in chunk}
    good = [entry for entry in chunk if not errors[entry["id"]]]
    if len(good) == len(chunk):
      raise  # no picture is to blame
    bad = [(e, {"error": errors[e["id"]]}) for e in chunk if errors[e["id"]]]
    return [*(_lines(task, good) if good else []), *bad]
  return [(e, {"result": value}) for e, value in zip(chunk, said, strict=True)]


def _error(task: Task, entry: dict) -> str:
  try:
    task.read(entry)
  except (ValueError, OSError) as error:
    return " ".join(str(error).split())
  return ""


def _read_part(path: pathlib.Path, facts: dict) -> dict[Any, dict[str, Any]]:
  """Lines of a part by id, later ones first; one cut off by a kill is dropped."""
  if not path.exists():
    return {}
  lines = path.read_bytes().splitlines(keepends=True)
  whole = [line for line in lines if line.endswith(b"\n")]
  if len(whole) < len(lines):
    path.write_bytes(b"".join(whole))
  if not whole:
    return {}
  stored, now = json.loads(whole[0]), json.loads(json.dumps(facts))
  if stored != now:
    other = [name for name in now if stored.get(name) != now[name]]
    raise ValueError(
      f"expected {path} from this evaluation, got one of other settings"
      f" ({', '.join(other)}); choose a new --target or delete the folder parts"
    )
  return {line["id"]: line for line in map(json.loads, whole[1:])}


def _check_pictures(task: Task, own: list[dict], done: dict, path) -> None:
  """Refuses results of other pictures; those that failed may have been mended."""
  for entry in own:
    line = done.get(entry["id"])
    if line is None or "error" in line:
      continue
    if line.get("picture") != pictures.stamp(task.picture(entry)):
      raise ValueError(
        f"expected {path} from these pictures, but {task.picture(entry)} is another"
        " than when it was evaluated; choose a new --target or delete the folder parts"
      )


def facts_of(model: LaVIT) -> dict[str, str]:
  """What tells a model's results from another's, wherever its folder lies."""
  return {"checksum": model_directory.identity(model.folder), "dtype": model.dtype}


def identity(path: str) -> dict[str, str]:
  """Name and checksum of a file that a figure rests on."""
  try:
    content = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise ValueError(
      f"expected a file at {path}, got: {error.strerror}; check the path"
    ) from error
  return {
    "file": pathlib.Path(path).name,
    "sha256": hashlib.sha256(content).hexdigest(),
  }


def _versions() -> dict[str, str]:
  """Versions of the packages that figures depend on, as far as installed."""
  found = {}
  for package in ("lavit_jax", *PACKAGES):
    try:
      found[package] = metadata.version(package)
    except metadata.PackageNotFoundError:
      continue
  return found


def decoding_of(model: LaVIT, task: str, asked: dict[str, Any]) -> tuple[dict, Any]:
  """The numbers that a task is decoded by, and its settings."""
  own = decoding.changed(task, model.defaults[task], asked)
  return own, model.how(task, **asked)
