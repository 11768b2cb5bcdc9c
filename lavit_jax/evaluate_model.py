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
import json
import sys
from typing import Any

from absl import app, flags

from lavit_jax.core import command_line
from lavit_jax.evaluate import annotations, benchmark, model_tasks, vqa_protocol
from lavit_jax.inference import pictures
from lavit_jax.inference.api import LaVIT
from lavit_jax.training import hosts
from lavit_jax.weights import model_directory

# What predicts and sums up, and the settings that stand beside the figures.
Made = tuple[model_tasks.Made, dict[str, Any]]


def make_task(name: str, model: LaVIT, given: Any) -> benchmark.Task:
  """The task of a name; `given` holds the flags."""
  made, settings = MADE[name](model, given)
  picture = lambda entry: annotations.picture_path(given.images, entry)
  read = lambda entry: pictures.stack(picture(entry), model.image_size)
  return benchmark.Task(*made, settings, read, picture)


def _captioning(model: LaVIT, given: Any) -> Made:
  folders = (given.images, given.prompt, given.target, given.truth)
  facts = {"prompt": given.prompt, "decoding": model.defaults["caption"]}
  return model_tasks.captioning(model, *folders), facts


def _answering(model: LaVIT, given: Any) -> Made:
  own, how = benchmark.decoding_of(model, "answer", {"min_new": given.min_new})
  made = model_tasks.answering(model, given.images, given.protocol, given.lemmas, how)
  facts = {"prompt": "Question: {} Answer:", "protocol": given.protocol}
  return made, facts | {"decoding": own, "lemmas": given.lemmas}


def _drawing(model: LaVIT, given: Any) -> Made:
  asked = {"guidance": given.guidance, "top_k": given.top_k}
  own, how = benchmark.decoding_of(model, "draw", asked)
  judges = (given.ranker, given.inception)
  counts = {"n": given.n, "seed": given.seed}
  made = model_tasks.drawing(
    model, given.images, given.target, *judges, how=how, **counts
  )
  ranker = model_directory.identity(given.ranker or given.model)
  facts = {"prompt": "{}", "decoding": own, "ranker": ranker}
  facts["pixels"] = dataclasses.asdict(model.pixel_decoder.settings)
  if given.inception:
    facts["inception"] = benchmark.identity(given.inception)
  return made, counts | facts


def _tokenizing(model: LaVIT, given: Any) -> Made:
  return model_tasks.tokenizing(model, given.images), {"selection": "sampled"}


MADE = {
  "caption": _captioning,
  "vqa": _answering,
  "text_to_image": _drawing,
  "tokenizer": _tokenizing,
}


def define_flags() -> None:
  """Defines the flags, in this program only: other verbs have flags of these names."""
  command_line.define_path("model", None, "Model directory.", required=True)
  command_line.define_path("annotations", None, "Annotations (JSON).", required=True)
  command_line.define_path("images", None, "Folder of the pictures.", required=True)
  command_line.define_path("target", None, "Folder to write.", required=True)
  flags.DEFINE_string("prompt", "", "What a caption continues.")
  command_line.define_path("truth", "", "COCO file of reference captions, for CIDEr.")
  flags.DEFINE_enum("protocol", "vqa", vqa_protocol.PROTOCOLS, "Asking and scoring.")
  flags.DEFINE_bool("lemmas", False, "Lemmatize answers as the reference (spaCy).")
  flags.DEFINE_integer("min_new", None, "Least ids of an answer.", lower_bound=0)
  flags.DEFINE_integer("n", 4, "Drawings per text; the best by score counts.")
  command_line.define_path("ranker", "", "Imported CLIP that scores; else own stage 0.")
  command_line.define_path("inception", "", "Weight file of Inception, for the FID.")
  flags.DEFINE_float("guidance", None, "Guidance of the codes.")
  flags.DEFINE_integer("top_k", None, "Codes to sample from.")
  flags.DEFINE_integer("seed", 0, "Seed of drawing.")
  flags.DEFINE_bool("retry_failed", False, "Try pictures that failed once more.")
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
  with command_line.in_sentences():
    entries = annotations.read(
      given.annotations, name, given.protocol if name == "vqa" else ""
    )
    hosts.start()
    model = LaVIT.load(given.model, seed=given.seed, batch_size=given.batch_size)
    task = make_task(name, model, given)
    facts = benchmark.facts_of(model)
    where = (given.annotations, facts, given.target, given.retry_failed)
    made = benchmark.run(name, task, entries, *where)
  if made is not None:
    print(json.dumps(made["figures"], indent=2))
    for own in made["failed"]["first"]:
      print(f"failed: {own['id']}: {own['error']}", file=sys.stderr)
    if made["failed"]["count"]:
      sys.exit(
        f"error: {made['failed']['count']} pictures could not be read and stand in no"
        " figure; mend them and give --retry_failed, or leave them out"
      )


if __name__ == "__main__":
  define_flags()
  app.run(main)
