"""Finetunes the quickstart's model on 200 digits; reads held-out ones before and after.

    python benchmarks/finetune.py [--quickstart=runs/quickstart] \
        [--target=runs/digits] [--config.FIELD=VALUE ...]

Run it from the root of the repository. The 200 pictures are of the split that the model
was trained on, with the captions of that split; nothing of the held-out split is shown
in training. The evaluation is the quickstart's own: captions of held-out digits name
the digit (chance is 0.1), captions of held-out scenes with one object name its color
and shape. Then the base is compared with what it was, and the merged language model is
exported; with torch and transformers installed, LlamaForCausalLM reads the export and
its logits are compared with ours.
"""

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from lavit_jax import LaVIT, convert, toy_study  # noqa: E402
from lavit_jax.data import digits  # noqa: E402
from lavit_jax.evaluate import toy_language  # noqa: E402
from lavit_jax.generate import tasks  # noqa: E402
from lavit_jax.weights import model_directory  # noqa: E402

PICTURES = 200
MOST = 300  # captions of a kind, as in the quickstart


def write_pictures(folder: pathlib.Path) -> None:
  """A folder as a user would have it: pictures beside texts."""
  folder.mkdir(parents=True, exist_ok=True)
  source = digits.Digits("train", PICTURES, seed=1)
  for i in range(PICTURES):
    record = source[i]
    (folder / f"{i:03d}.png").write_bytes(record["image"])
    (folder / f"{i:03d}.txt").write_text(record["texts"][0]["turns"][0][1])


def verb(name: str, *arguments: str) -> None:
  """Runs a command of the project."""
  paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  subprocess.run(
    [sys.executable, "-m", f"lavit_jax.{name}", *arguments],
    env=os.environ | {"PYTHONPATH": paths},
    check=True,
  )


def figures(model: pathlib.Path, data: pathlib.Path) -> dict[str, dict]:
  """Held-out digits and scenes, as the quickstart evaluates them."""
  loaded = LaVIT.load(model, batch_size=64)
  split = toy_study.load_split(f"{data}/test", loaded.coder.tower.image_size)
  of = lambda chosen: [split.truth.truths[i] for i in chosen]
  said = lambda chosen: loaded.caption(split.image[chosen], how=tasks.PLAIN_CAPTION)
  numbers = np.flatnonzero(~split.truth.scene)[:MOST]
  scenes = split.truth.single[:MOST]
  return {
    "digits": toy_language.digit_figure(said(numbers), of(numbers)),
    "scenes": toy_language.caption_figure(said(scenes), of(scenes), False),
  }


def tensors(model: pathlib.Path) -> dict[str, str]:
  """Checksum of every tensor of a model directory."""
  return {
    f"{part}/{name}": hashlib.sha256(np.asarray(tensor).tobytes()).hexdigest()
    for part in model_directory.read_manifest(model)["parts"]
    for name, tensor in model_directory.part_tensors(model, part).items()
  }


def main() -> None:
  """Command line entry."""
  flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  flags.add_argument("--quickstart", type=pathlib.Path, default="runs/quickstart")
  flags.add_argument("--target", type=pathlib.Path, default="runs/digits")
  found, overrides = flags.parse_known_args()
  base, data = found.quickstart / "pretrain/model", found.quickstart / "data"
  own, target = found.target / "own", found.target
  write_pictures(target / "pictures")
  verb(
    "prepare", "--source=folder", f"--input={target / 'pictures'}", f"--target={own}"
  )
  verb("tokenize", f"--model={base}", f"--data={own}")
  before, sums = figures(base, data), tensors(base)
  verb(
    "train",
    "--config=configs/finetune.py:tiny",
    f"--workdir={target / 'run'}",
    f"--config.init_from={base}",
    f"--config.data.train={own}",
    f"--config.data.eval={data / 'test'}",
    *overrides,
  )
  model = target / "run/model"
  after, now = figures(model, data), tensors(model)
  changed = [name for name in sums if now[name] != sums[name]]
  for name, old in before.items():
    print(f"{name}, base       {json.dumps(old)}")
    print(f"{name}, finetuned  {json.dumps(after[name])}")
  print(f"base untouched: {tensors(base) == sums}")
  print(f"tensors that differ after merging: {len(changed)} of {len(sums)}")
  print(f"  {sorted({name.rsplit('.', 2)[1] for name in changed})} of all layers")
  convert.export_model("llama", model, target / "llama")
  convert.verify("llama", target / "llama", model)


if __name__ == "__main__":
  main()
