r"""Evaluates by a benchmark's own files: `python -m lavit_jax.evaluate_model TASK`.

    python -m lavit_jax.evaluate_model caption --model=DIR --annotations=test.json \
        --images=DIR --target=DIR [--truth=coco_karpathy_test_gt.json]
    python -m lavit_jax.evaluate_model vqa ... --protocol=vqa|gqa|vizwiz \
        [--lemmas]
    python -m lavit_jax.evaluate_model text_to_image ... --n=4 [--ranker=DIR] \
        [--inception=FILE]
    python -m lavit_jax.evaluate_model tokenizer ...

Writes TARGET/TASK.json: the figure together with prompt, decoding, split and versions,
and TARGET/TASK-results.json with what the model said. Several hosts share the records
and give the result of one (--coordinator, --hosts, --host).
"""

import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
from absl import app, flags
from jax.experimental import multihost_utils
from tqdm import tqdm

from lavit_jax.data import shards
from lavit_jax.evaluate import annotations, model_tasks, vqa_protocol
from lavit_jax.generate import decoding
from lavit_jax.inference.api import LaVIT
from lavit_jax.training import hosts

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
    "split": _identity(split),
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


def _identity(path: str) -> dict[str, str]:
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


def make_task(name: str, model: LaVIT, given: Any) -> Task:
  """The task of a name; `given` holds the flags."""
  folder = given.images
  if name == "caption":
    return Task(
      *model_tasks.captioning(model, folder, given.prompt, given.target, given.truth),
      {"prompt": given.prompt, "decoding": model.defaults["caption"]},
    )
  if name == "vqa":
    asked = {"min_new": given.min_new}
    own, how = _decoding(model, "answer", asked)
    return Task(
      *model_tasks.answering(model, folder, given.protocol, given.lemmas, how),
      {
        "prompt": "Question: {} Answer:",
        "protocol": given.protocol,
        "decoding": own,
        "lemmas": given.lemmas,
      },
    )
  if name == "text_to_image":
    asked = {"guidance": given.guidance, "top_k": given.top_k}
    own, how = _decoding(model, "draw", asked)
    judges = (given.ranker, given.inception)
    counts = {"n": given.n, "seed": given.seed}
    found = model_tasks.drawing(model, folder, given.target, *judges, how=how, **counts)
    facts = {"prompt": "{}", "decoding": own, "ranker": given.ranker or given.model}
    facts["pixels"] = dataclasses.asdict(model.pixel_decoder.settings)
    if given.inception:
      facts["inception"] = _identity(given.inception)
    return Task(*found, counts | facts)
  return Task(*model_tasks.tokenizing(model, folder), {"selection": "sampled"})


def _decoding(model: LaVIT, task: str, asked: dict[str, Any]) -> tuple[dict, Any]:
  """The numbers that a task is decoded by, and its settings."""
  own = decoding.changed(task, model.defaults[task], asked)
  return own, model.how(task, **asked)


def define_flags() -> None:
  """Defines the flags, in this program only: other verbs have flags of these names."""
  flags.DEFINE_string("model", None, "Model directory.", required=True)
  flags.DEFINE_string("annotations", None, "Annotation file (JSON).", required=True)
  flags.DEFINE_string("images", None, "Folder of the pictures.", required=True)
  flags.DEFINE_string("target", None, "Folder to write.", required=True)
  flags.DEFINE_string("prompt", "", "What a caption continues.")
  flags.DEFINE_string("truth", "", "COCO file of reference captions, for CIDEr.")
  flags.DEFINE_enum("protocol", "vqa", vqa_protocol.PROTOCOLS, "Asking and scoring.")
  flags.DEFINE_bool("lemmas", False, "Lemmatize answers as the reference (spaCy).")
  flags.DEFINE_integer("min_new", None, "Least ids of an answer.", lower_bound=0)
  flags.DEFINE_integer("n", 4, "Drawings per text; the best by score counts.")
  flags.DEFINE_string("ranker", "", "Imported CLIP that scores; else own stage 0.")
  flags.DEFINE_string("inception", "", "Weight file of Inception, for the FID.")
  flags.DEFINE_float("guidance", None, "Guidance of the codes.")
  flags.DEFINE_integer("top_k", None, "Codes to sample from.")
  flags.DEFINE_integer("seed", 0, "Seed of drawing.")
  flags.DEFINE_integer("batch_size", 8, "Requests per program call.", lower_bound=1)


def main(argv: list[str]) -> None:
  """Command line entry."""
  if len(argv) != 2 or argv[1] not in annotations.FIELDS:
    raise app.UsageError(
      f"expected one of {', '.join(annotations.FIELDS)}, got"
      f" {' '.join(argv[1:]) or 'nothing'}; for example: python -m"
      " lavit_jax.evaluate_model vqa --model=DIR --annotations=vqa.json ..."
    )
  name, given = argv[1], flags.FLAGS
  try:
    entries = annotations.read(given.annotations, name)
    hosts.start()
    model = LaVIT.load(given.model, seed=given.seed, batch_size=given.batch_size)
    task = make_task(name, model, given)
    made = run(name, task, entries, given.annotations, given.model, given.target)
  except ValueError as error:
    sys.exit(f"error: {error}")
  if made is not None:
    print(json.dumps(made["figures"], indent=2))


if __name__ == "__main__":
  define_flags()
  app.run(main)
