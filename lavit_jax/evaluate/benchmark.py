"""One evaluation over all hosts: predictions kept as they come, then figures of all."""

import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
from jax.experimental import multihost_utils
from tqdm import tqdm

from lavit_jax.data import shards
from lavit_jax.evaluate import annotations
from lavit_jax.generate import decoding
from lavit_jax.inference.api import LaVIT

CHUNK = 256  # records between two notes of what is done
PACKAGES = ("jax", "flax", "transformers", "pillow", "pycocoevalcap")


@dataclasses.dataclass(frozen=True)
class Task:
  """One kind of evaluation.

  Attributes:
    predict: entries of annotations -> one JSON value each.
    summarize: (entries, predictions) of all hosts -> figures.
    settings: prompt and decoding, as stored beside the figures.
  """

  predict: Callable[[list[dict]], list[Any]]
  summarize: Callable[[list[dict], list[Any]], dict[str, Any]]
  settings: dict[str, Any]


def run(
  name: str, task: Task, entries: list[dict], split: str, model: str, target: str
) -> dict[str, Any] | None:
  """Evaluates on all hosts; the same command continues an interrupted evaluation.

  Args:
    name: of the task; of its files, too.
    task: what to do.
    entries: annotations, in order.
    split: the annotation file.
    model: the model directory.
    target: folder to write, the same for all hosts.

  Returns:
    What was written, on the first host.
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
  done = _read_part(path, facts)
  own = [e for e in annotations.share(entries, index, count) if e["id"] not in done]
  _predict(task, own, path, facts, len(done))
  if count > 1:
    multihost_utils.sync_global_devices(f"evaluated {name}")
  if index:
    return None
  found = {}
  for part in range(count):
    found |= _read_part(folder / "parts" / f"{name}-{part}-of-{count}.jsonl", facts)
  said = [found[entry["id"]] for entry in entries]
  results = [{"id": e["id"], "result": value} for e, value in zip(entries, said)]
  shards.write_json(folder / f"{name}-results.json", results)
  made = facts | {
    "n": len(entries),
    "figures": task.summarize(entries, said),
    "versions": _versions(),
    "results": f"{name}-results.json",
  }
  shards.write_json(folder / f"{name}.json", made)
  return made


def _predict(task: Task, own, path, facts, done: int) -> None:
  """Appends one line per record to a part, behind a line of facts."""
  quiet = jax.process_index() != 0 or not sys.stderr.isatty()
  with open(path, "a", encoding="utf-8") as stream:
    if not stream.tell():
      stream.write(json.dumps(facts) + "\n")
    bar = tqdm(total=len(own) + done, initial=done, disable=quiet)
    for first in range(0, len(own), CHUNK):
      chunk = own[first : first + CHUNK]
      for entry, value in zip(chunk, task.predict(chunk), strict=True):
        stream.write(json.dumps({"id": entry["id"], "result": value}) + "\n")
      stream.flush()
      bar.update(len(chunk))
    bar.close()


def _read_part(path: pathlib.Path, facts: dict) -> dict[Any, Any]:
  """What a part holds already; a line cut off by a kill is dropped."""
  if not path.exists():
    return {}
  lines = path.read_bytes().splitlines(keepends=True)
  whole = [line for line in lines if line.endswith(b"\n")]
  if len(whole) < len(lines):
    path.write_bytes(b"".join(whole))
  if not whole:
    return {}
  if json.loads(whole[0]) != json.loads(json.dumps(facts)):
    raise ValueError(
      f"expected {path} from this evaluation, got one of other settings; choose a new"
      " --target or delete the folder parts"
    )
  return {line["id"]: line["result"] for line in map(json.loads, whole[1:])}


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
