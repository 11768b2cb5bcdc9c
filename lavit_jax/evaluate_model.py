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

from lavit_jax.evaluate import annotations, benchmark, model_tasks, vqa_protocol
from lavit_jax.inference import meshes
from lavit_jax.inference.api import LaVIT
from lavit_jax.training import hosts


def make_task(name: str, model: LaVIT, given: Any) -> benchmark.Task:
  """The task of a name; `given` holds the flags."""
  folder = given.images
  if name == "caption":
    return benchmark.Task(
      *model_tasks.captioning(model, folder, given.prompt, given.target, given.truth),
      {"prompt": given.prompt, "decoding": model.defaults["caption"]},
    )
  if name == "vqa":
    asked = {"min_new": given.min_new}
    own, how = benchmark.decoding_of(model, "answer", asked)
    return benchmark.Task(
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
    own, how = benchmark.decoding_of(model, "draw", asked)
    judges = (given.ranker, given.inception)
    counts = {"n": given.n, "seed": given.seed}
    found = model_tasks.drawing(model, folder, given.target, *judges, how=how, **counts)
    facts = {"prompt": "{}", "decoding": own, "ranker": given.ranker or given.model}
    facts["pixels"] = dataclasses.asdict(model.pixel_decoder.settings)
    if given.inception:
      facts["inception"] = benchmark.identity(given.inception)
    return benchmark.Task(*found, counts | facts)
  return benchmark.Task(
    *model_tasks.tokenizing(model, folder), {"selection": "sampled"}
  )


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
  flags.DEFINE_list("mesh", [], "Mesh of this host, such as tensor=4; all devices.")


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
    model = LaVIT.load(
      given.model,
      mesh=meshes.parse(given.mesh) if given.mesh else None,
      seed=given.seed,
      batch_size=given.batch_size,
    )
    task = make_task(name, model, given)
    made = benchmark.run(
      name, task, entries, given.annotations, given.model, given.target
    )
  except ValueError as error:
    sys.exit(f"error: {error}")
  if made is not None:
    print(json.dumps(made["figures"], indent=2))


if __name__ == "__main__":
  define_flags()
  app.run(main)
