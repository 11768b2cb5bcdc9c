"""The README.md of an exported model: what, from which run, data, metrics, licences."""

import json
import math
import pathlib
from collections.abc import Mapping

from lavit_jax.weights import files
from lavit_jax.weights.part import Part, named_tensors

# Whose terms go on with weights that started from published ones.
LICENCES = {
  "llama": "LLaMA or Llama-2/3 weights: the license of Meta that came with them, its"
  " acceptable-use policy included",
  "vit": "EVA-CLIP ViT-g/14 weights: the MIT license of their authors",
  "openai_clip": "CLIP ViT-L/14 weights: the MIT license of OpenAI",
  "visual_tokenizer": "LaVIT weights: the license in the authors' repository; LaVIT is"
  " built on LLaMA",
  "unet": "Stable Diffusion 1.5 or SDXL weights: CreativeML Open RAIL(++)-M, its use"
  " restrictions included",
}
# Parts that a stage trains; one of another stage says nothing about their quality.
TRAINED = {
  "contrastive": {"vit", "clip"},
  "visual_tokenizer": {"visual_tokenizer"},
  "pixel_decoder": {"unet", "condition"},
  "pretrain": {"llama", "understanding"},
}


def text(kind: str, source: pathlib.Path, parts: Mapping[str, Part]) -> str:
  """The card.

  Args:
    kind: what was exported.
    source: model directory; when it lies in a run directory, the run is described.
    parts: what was exported.
  """
  lines = [f"# {kind}, exported from lavit_jax", "", "| part | parameters | dtype |"]
  lines.append("|---|---|---|")
  for name, part in parts.items():
    found = [tensor for _, tensor in named_tensors(part.params)]
    if found:
      count = sum(math.prod(tensor.shape) for tensor in found)
      kinds = ", ".join(sorted({str(tensor.dtype) for tensor in found}))
      lines.append(f"| {name} | {count:,} | {kinds} |")
  lines += ["", "## Training", "", *_run(source.resolve().parent, parts)]
  lines += ["", "## Licenses", ""]
  lines.append("Weights that started from published ones stay under their terms:")
  lines += ["", *(f"- {LICENCES[name]}" for name in LICENCES if name in parts)]
  return "\n".join(lines) + "\n"


def _run(folder: pathlib.Path, parts: Mapping[str, Part]) -> list[str]:
  """Stage, data and newest held-out figures of the run that trained the parts."""
  if not (folder / "config.json").is_file():
    return ["Imported weights, or a model directory apart from its run: nothing known."]
  config = files.read_json(folder / "config.json")
  trained = TRAINED.get(config.get("stage"))
  if trained is not None and not trained & {*parts}:
    return [
      f"Taken over by a run of stage {config['stage']}, which did not train these"
      " parts: data and figures stand with the run that did."
    ]
  data, start = config.get("data", {}), config.get("warm_start", "")
  facts = {
    "stage": config.get("stage"),
    "steps": config.get("num_steps"),
    "batch size": config.get("batch_size"),
    "training data": data.get("train") if isinstance(data, dict) else None,
    "started from": start if start not in ("", "random") else config.get("init_from"),
  }
  lines = [f"- {name}: {value}" for name, value in facts.items() if value]
  return lines + _figures(folder / "metrics.jsonl")


def _figures(path: pathlib.Path) -> list[str]:
  """The last record of evaluation in a metrics file."""
  last = {}
  for line in path.read_text().splitlines() if path.is_file() else ():
    try:
      record = json.loads(line)
    except ValueError:
      continue  # a line that was being written when the run was killed
    if isinstance(record, dict) and record.get("kind") == "eval":
      last = record
  own = {name: last[name] for name in last if name not in ("kind", "time", "step")}
  return [f"- held-out {name}: {value}" for name, value in own.items()]
