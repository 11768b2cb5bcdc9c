"""Weights of Llama-2-7B's size in and out, beside copying the same bytes.

    python benchmarks/convert.py --folder=/scratch/convert [--runs=3]

Writes a Hugging Face folder of random bfloat16 (13.5 GB), then measures in turns: a
plain copy of it, `convert import` of it; a copy of the model directory, `convert
export` of it. Each side starts with nothing of its source in the page cache and ends
with its bytes on the disk (fsync). Prints seconds, speed relative to the copy, and the
peak memory of the command, and takes the medians. Needs 41 GB of disk; what it writes
is deleted in the end. --phase runs one part of it, and a next call goes on.
"""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

import numpy as np
from absl import app, flags

from lavit_jax.models import llama as llama_model
from lavit_jax.weights import files, llama
from lavit_jax.weights.tensors import DTYPES, Tensor

PHASES = ("write", "import", "export", "report")
FOLDER = flags.DEFINE_string("folder", None, "Scratch folder.", required=True)
RUNS = flags.DEFINE_integer("runs", 3, "Runs of each side.")
LAYERS = flags.DEFINE_integer("layers", 32, "Layers; fewer for a quick look.")
PHASE = flags.DEFINE_enum("phase", None, PHASES, "One part; all of them without.")
ROWS = 32_000


def write_source(folder: pathlib.Path) -> None:
  """A Llama-2-7B folder of random bfloat16."""
  fields = llama_model.VARIANTS["7b"] | {"num_layers": LAYERS.value}
  rng = np.random.default_rng(0)

  def random(shape: tuple[int, ...]) -> Tensor:
    # Random bits of small numbers: sign, an exponent about 2^-8, the fraction.
    def read() -> np.ndarray:
      bits = rng.integers(0, 2**16, shape, np.uint16)
      return ((bits & 0x80FF) | 0x3B80).view(DTYPES["BF16"])

    return Tensor(shape, DTYPES["BF16"], read)

  wide, mlp = fields["embed_dim"], fields["mlp_dim"]
  content = {llama.EMBEDDING: random((ROWS, wide))}
  for i in range(fields["num_layers"]):
    layer = f"model.layers.{i}"
    for name in ("input_layernorm", "post_attention_layernorm"):
      content[f"{layer}.{name}.weight"] = random((wide,))
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
      content[f"{layer}.self_attn.{name}.weight"] = random((wide, wide))
    for name in ("gate_proj", "up_proj"):
      content[f"{layer}.mlp.{name}.weight"] = random((mlp, wide))
    content[f"{layer}.mlp.down_proj.weight"] = random((wide, mlp))
  content["model.norm.weight"] = random((wide,))
  content[llama.HEAD] = random((ROWS, wide))
  with files.appearing(folder) as writing:
    files.write_folder(writing, content, "model", files.SAFETENSORS)
    facts = fields | {"vocab_size": ROWS}
    files.write_json(writing / "config.json", llama.config_of(facts, "bfloat16"))


def forget(folder: pathlib.Path) -> None:
  """Drops a folder's files from the page cache."""
  for path in folder.iterdir():
    with path.open("rb") as stream:
      os.fsync(stream.fileno())
      os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy(source: pathlib.Path, target: pathlib.Path) -> float:
  """Seconds of a plain copy, on the disk."""
  forget(source)
  started = time.monotonic()
  subprocess.run(["cp", "-r", str(source), str(target)], check=True)
  for path in target.iterdir():
    with path.open("rb") as stream:
      os.fsync(stream.fileno())
  return time.monotonic() - started


def convert(verb: str, source: pathlib.Path, target: pathlib.Path) -> tuple[float, int]:
  """Seconds and peak bytes of the command."""
  forget(source)
  command = [sys.executable, "-m", "lavit_jax.convert", verb, "llama"]
  command += [f"--source={source}", f"--target={target}"]
  started = time.monotonic()
  child = subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"})
  _, status, usage = os.wait4(child.pid, 0)
  seconds = time.monotonic() - started
  if status:
    raise ValueError(f"{' '.join(command)} ended with status {status}")
  return seconds, usage.ru_maxrss * 1024


def one_run(verb: str, folder: pathlib.Path) -> dict[str, float]:
  """A copy and a conversion of the same bytes."""
  model = folder / "model"
  source = folder / "llama" if verb == "import" else model
  target = model if verb == "import" else folder / "out"
  shutil.rmtree(target, ignore_errors=True)
  copied = copy(source, folder / "copy")
  shutil.rmtree(folder / "copy")
  seconds, peak = convert(verb, source, target)
  size = sum(path.stat().st_size for path in source.iterdir())
  if verb == "export":
    shutil.rmtree(target)
  figures = dict(gigabytes=size / 1e9, copy=copied, convert=seconds, peak=peak / 1e9)
  print(verb, {name: round(value, 2) for name, value in figures.items()}, flush=True)
  return figures


def report(found: dict[str, list]) -> None:
  """Prints the medians."""
  for verb, runs in found.items():
    copied, seconds = (
      statistics.median(run[name] for run in runs) for name in ("copy", "convert")
    )
    speed = statistics.median(run["copy"] / run["convert"] for run in runs)
    print(
      f"{verb}: {runs[0]['gigabytes']:.1f} GB, copy {copied:.1f} s, convert"
      f" {seconds:.1f} s, {speed:.0%} of the speed of copying, peak memory"
      f" {max(run['peak'] for run in runs):.2f} GB, {len(runs)} runs"
    )


def main(argv: list[str]) -> None:
  """Runs the phases asked for."""
  del argv
  folder = pathlib.Path(FOLDER.value)
  folder.mkdir(parents=True, exist_ok=True)
  notes = folder / "found.json"
  found = json.loads(notes.read_text()) if notes.exists() else {}
  for phase in [PHASE.value] if PHASE.value else PHASES:
    if phase == "write" and not (folder / "llama").exists():
      write_source(folder / "llama")
    elif phase in ("import", "export"):
      for _ in range(1 if PHASE.value else RUNS.value):
        found.setdefault(phase, []).append(one_run(phase, folder))
        notes.write_text(json.dumps(found))
    elif phase == "report":
      report(found)
      for name in ("llama", "model"):
        shutil.rmtree(folder / name, ignore_errors=True)


if __name__ == "__main__":
  app.run(main)
