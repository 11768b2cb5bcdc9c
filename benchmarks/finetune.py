"""Finetunes the quickstart's model on 200 digits; reads held-out ones before and after.

    python benchmarks/finetune.py [--quickstart=runs/quickstart] \
        [--target=runs/digits] [--config.FIELD=VALUE ...]

Run it from the root of the repository. Neither the 200 pictures nor the 197 others that
are read were shown to the base: together they are the test split of the digits.
Captions of the 197 name the digit (chance is 0.1); captions of the quickstart's
held-out scenes with one object name its color and shape. Then the base is compared with
what it was, and the merged language model is exported; with torch and transformers
installed, LlamaForCausalLM reads the export and its logits are compared with ours.
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

from lavit_jax import LaVIT, convert
from lavit_jax.data import images
from lavit_jax.toy import (
  digits,  # noqa: E402
  language_figures,  # noqa: E402
  study,  # noqa: E402
)
from lavit_jax.weights import model_directory  # noqa: E402

OWN = slice(0, 200)  # of the test split, shown in finetuning
REST = slice(200, 397)
MOST = 300  # scenes, as in the quickstart


def records(part: slice) -> list[dict]:
  """Records of the digits' test split."""
  source = digits.Digits("test", REST.stop, seed=1)
  return [source[i] for i in range(part.start, part.stop)]


def write_pictures(folder: pathlib.Path, part: slice) -> None:
  """A folder as a user would have it: pictures beside texts."""
  folder.mkdir(parents=True, exist_ok=True)
  for i, record in enumerate(records(part)):
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
  """Digits that were never shown, and the quickstart's held-out scenes."""
  loaded = LaVIT.load(model, batch_size=64)
  size = loaded.coder.tower.image_size
  said = lambda pictures: loaded.caption(pictures)
  rest = records(REST)
  numbers = np.stack([images.decode(record["image"], size) for record in rest])
  split = study.load_split(f"{data}/test", size)
  scenes = split.truth.single[:MOST]
  truths = [split.truth.truths[i] for i in scenes]
  return {
    "digits": language_figures.digit_figure(said(numbers), [r["truth"] for r in rest]),
    "scenes": language_figures.caption_figure(said(split.image[scenes]), truths, False),
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
  target = found.target
  for name, part in (("own", OWN), ("rest", REST)):
    pictures = target / f"{name}-pictures"
    write_pictures(pictures, part)
    places = f"--input={pictures}", f"--target={target / name}"
    verb("prepare", "--source=folder", *places)
    verb("tokenize", f"--model={base}", f"--data={target / name}")
  before, sums = figures(base, data), tensors(base)
  verb(
    "train",
    "--config=configs/finetune.py:tiny",
    f"--workdir={target / 'run'}",
    f"--config.init_from={base}",
    f"--config.data.train={target / 'own'}",
    f"--config.data.eval={target / 'rest'}",
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
