"""Tokenizes once: `python -m lavit_jax.tokenize --model=DIR --data=DIR`.

For every prepared shard it writes a sidecar shard below DATA/codes, in the same order:
text ids, visual codes, keep mask and count, no pixels. From then on every length is
known without reading a picture. An interrupted run continues with the missing shards;
several hosts share the shards between them, each on a mesh of its own devices, and so
do machines that are given `--part=3/16`, which need not wait for each other. A set that
is unlike what the model was trained on is named.
"""

import os

import jax
from absl import app, flags

from lavit_jax.core import command_line
from lavit_jax.data import shards, shares, token_figures
from lavit_jax.inference import sidecars
from lavit_jax.training import hosts

MODEL = command_line.define_path("model", None, "Model with a visual tokenizer.")
DATA = command_line.define_path("data", None, "Prepared folder; codes go to it.")
DTYPE = flags.DEFINE_string("dtype", "", "Compute dtype; that of inference if empty.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Pictures per device batch.")
MESH = flags.DEFINE_list("mesh", ["data=-1"], "Mesh of this host, such as tensor=2.")
THREADS = flags.DEFINE_integer("threads", 0, "Decoding threads; 0 is one per core.")
TARGET = flags.DEFINE_string(
  "target",
  "",
  "Folder for the codes, which then stands for DATA; DATA if empty.",
  allow_override=True,
)
PART = flags.DEFINE_string(
  "part",
  "",
  "Share of this machine, 3/16 from 0/16; auto asks SLURM.",
  allow_override=True,
)
MAX_BAD = flags.DEFINE_float(
  "max_bad", 0.01, "Share of bad records that stops a run.", allow_override=True
)


def parse_mesh(axes: list[str]) -> dict[str, int]:
  """Reads mesh sizes such as ["data=-1", "tensor=2"]; what is left goes to data."""
  try:
    sizes = {name: int(size) for name, size in (axis.split("=") for axis in axes)}
  except ValueError as error:
    raise ValueError(
      f"expected a mesh such as data=-1,tensor=2, got {','.join(axes)}; name each axis"
      " with a number"
    ) from error
  return {"data": -1} | sizes if -1 not in sizes.values() else sizes


def main(argv: list[str]) -> None:
  """Command line entry."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}")
  with command_line.in_sentences():
    part = shares.parse(PART.value, os.environ)
    hosts.start()
    found = sidecars.run(
      MODEL.value,
      DATA.value,
      BATCH_SIZE.value,
      DTYPE.value,
      mesh_sizes=parse_mesh(MESH.value),
      threads=THREADS.value,
      max_bad=MAX_BAD.value,
      target=TARGET.value,
      part=part,
    )
  print(f"host {jax.process_index()}: {found['images_per_second']:.1f} images/s")
  if "count" in found:
    print(f"{found['count']} records, {found['visual_tokens']} visual tokens")
    codes = f"{TARGET.value or DATA.value}/codes"
    print(token_figures.summary(shards.read_json(f"{codes}/{sidecars.REPORT}")))
  elif part != shares.ALL:
    print(f"part {part.index}/{part.of} stands; others are still missing")


if __name__ == "__main__":
  flags.mark_flags_as_required(["model", "data"])
  app.run(main)
