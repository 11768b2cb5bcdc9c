"""Weights in and out: `python -m lavit_jax.convert VERB KIND --source=A --target=B`.

    import eva    --source=eva_vitg_psz14.bin --target=models/eva
    import llama  --source=Llama-2-7b-hf      --target=models/llama
    import lavit  --source=LaVIT-7B-v2        --target=models/lavit
    export llama  --source=models/llama       --target=exports/llama --dtype=bfloat16
    export gpu    --source=models/lavit       --target=exports/gpu   --dtype=bfloat16

    import diffusion --source=stable-diffusion-v1-5 --target=models/sd15
    import openai_clip --source=clip-vit-large-patch14 --target=models/clip
    verify lavit  --source=LaVIT-7B-v2        --target=models/lavit

`import` makes a model directory of published weights; --base=DIR takes over the other
parts of a model directory. `export` writes the published layout again. `verify` runs
every module of both sides on random inputs (PyTorch's side when torch is installed),
compares every bit, and writes parity.json beside the target's weights. Tensors pass
through memory one at a time; a target appears whole or not at all, and an existing one
is left alone. A .bin needs torch, safetensors files do not.
"""

from absl import app, flags

from lavit_jax.core import command_line
from lavit_jax.inference import gpu_folder, gpu_parity
from lavit_jax.weights import (
  eva,
  exchange,
  files,
)

DONE = {"import": "imported to", "export": "exported to", "verify": "verified"}
GPU = "gpu"  # a folder for torch, transformers and diffusers: docs/gpu.md
KINDS = (*exchange.KINDS, GPU)
SUFFIXES = {"bin": files.TORCH, "safetensors": files.SAFETENSORS}
# The reference reads .bin only; everything else prefers safetensors.
DEFAULT_FORMAT = {"lavit": "bin"}


def define_flags() -> None:
  """Defines the flags, in this program only: other verbs have flags of these names."""
  command_line.define_path("source", None, "What to read.", required=True)
  command_line.define_path("target", None, "What to write; must be new.", required=True)
  command_line.define_path("base", None, "import: model directory to add the parts to.")
  flags.DEFINE_integer("num_heads", eva.NUM_HEADS, "import eva: attention heads.")
  flags.DEFINE_enum("format", None, sorted(SUFFIXES), "export: kind of weight files.")
  flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16", "float16"], "export: stored dtype."
  )


def main(argv: list[str]) -> None:
  """Command line entry."""
  if len(argv) != 3 or argv[1] not in DONE or argv[2] not in KINDS:
    raise app.UsageError(
      f"expected one of {', '.join(DONE)} and one of {', '.join(KINDS)}, got"
      f" {' '.join(argv[1:]) or 'nothing'}; for example: python -m lavit_jax.convert"
      " import llama --source=Llama-2-7b-hf --target=models/llama"
    )
  given, kind, done = flags.FLAGS, argv[2], DONE[argv[1]]
  with command_line.in_sentences():
    if kind == GPU:
      _gpu(argv[1], given)
    elif argv[1] == "import":
      exchange.import_model(
        kind, given.source, given.target, given.base, given.num_heads
      )
    elif argv[1] == "verify":
      found = exchange.verify(kind, given.source, given.target, given.num_heads)
      if not found["torch"]:
        done = "read back alike, but NOT compared with PyTorch (pip install torch):"
    else:
      suffix = SUFFIXES[given.format or DEFAULT_FORMAT.get(kind, "safetensors")]
      exchange.export_model(kind, given.source, given.target, suffix, given.dtype)
  print(f"{done} {given.target}")


def _gpu(verb: str, given: flags.FlagValues) -> None:
  """Exports or verifies the folder for GPUs."""
  if verb == "import" or given.base or given.format:
    raise ValueError(
      "expected export or verify of gpu, without --base and --format, got something"
      " else; the folder is made from a model directory and is always safetensors"
    )
  if verb == "verify":
    gpu_parity.verify(given.source, given.target)
  else:
    gpu_folder.export(given.source, given.target, given.dtype)


if __name__ == "__main__":
  define_flags()
  app.run(main)
