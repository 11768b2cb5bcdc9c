"""Weights in and out: `python -m lavit_jax.convert VERB KIND --source=A --target=B`.

    import eva    --source=eva_vitg_psz14.bin --target=models/eva
    import llama  --source=Llama-2-7b-hf      --target=models/llama
    import lavit  --source=LaVIT-7B-v2        --target=models/lavit
    export llama  --source=models/llama       --target=exports/llama --dtype=bfloat16

`import` makes a model directory of published weights; --base=DIR takes over the other
parts of a model directory. `export` writes the published layout again. Tensors pass
through memory one at a time; a target appears whole or not at all, and an existing one
is left alone. A .bin needs torch, safetensors files do not.
"""

import os
import pathlib
import sys
from collections.abc import Mapping

from absl import app, flags

from lavit_jax.weights import eva, files, lavit_directory, llama, model_directory
from lavit_jax.weights.part import Part

KINDS = ("eva", "llama", "lavit")
SUFFIXES = {"bin": files.TORCH, "safetensors": files.SAFETENSORS}
# The reference reads .bin only; everything else prefers safetensors.
DEFAULT_FORMAT = {"lavit": "bin"}
# Parts that each kind is made of, "eva" being one of several layouts.
PART = {"eva": "vit", "llama": "llama"}


def define_flags() -> None:
  """Defines the flags, in this program only: other verbs have flags of these names."""
  flags.DEFINE_string("source", None, "What to read.", required=True)
  flags.DEFINE_string("target", None, "What to write; must be new.", required=True)
  flags.DEFINE_string("base", None, "import: model directory to add the parts to.")
  flags.DEFINE_integer("num_heads", eva.NUM_HEADS, "import eva: attention heads.")
  flags.DEFINE_enum("format", None, sorted(SUFFIXES), "export: kind of weight files.")
  flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16", "float16"], "export: stored dtype."
  )


def read_published(
  kind: str, source: str | os.PathLike, num_heads: int = eva.NUM_HEADS
) -> dict[str, Part]:
  """Opens published weights as parts, with their tensors unread.

  Args:
    kind: one of `KINDS`.
    source: file or folder.
    num_heads: attention heads of an encoder, which its file does not tell.
  """
  source = pathlib.Path(source)
  if kind == "eva":
    return {"vit": eva.read(files.open_file(source), num_heads)}
  if not source.is_dir():
    raise ValueError(f"expected a folder for {kind}, found none at {source}")
  if kind == "llama":
    return {"llama": llama.read(source)}
  return lavit_directory.read(source)


def text_tokenizer_of(source: str | os.PathLike) -> pathlib.Path | None:
  """The folder of a published model that holds its text tokenizer."""
  for folder in (pathlib.Path(source), pathlib.Path(source) / lavit_directory.LANGUAGE):
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
      return folder
  return None


def import_model(
  kind: str,
  source: str | os.PathLike,
  target: str | os.PathLike,
  base: str | os.PathLike | None = None,
  num_heads: int = eva.NUM_HEADS,
) -> None:
  """Makes a model directory of published weights.

  Args:
    kind: one of `KINDS`.
    source: file or folder of published weights.
    target: new model directory.
    base: model directory whose other parts are taken over.
    num_heads: see `read_published`.
  """
  target = files.check_new(target)
  parts = read_published(kind, source, num_heads)
  words = text_tokenizer_of(source)
  model_directory.save(target, parts, base=base, text_tokenizer=words)


def export_model(
  kind: str,
  source: str | os.PathLike,
  target: str | os.PathLike,
  suffix: str = files.SAFETENSORS,
  dtype: str | None = None,
) -> None:
  """Writes a model directory in a published layout.

  Args:
    kind: one of `KINDS`.
    source: model directory.
    target: new file (an encoder) or folder.
    suffix: ".bin" or ".safetensors", for folders.
    dtype: stored dtype, None for that of the source.
  """
  target = files.check_new(target)
  manifest = model_directory.read_manifest(source)
  if kind == "lavit":
    parts = {
      name: model_directory.read_part(source, name) for name in manifest["parts"]
    }
    _check_lavit(source, parts)
    with files.appearing(target) as folder:
      lavit_directory.write(parts, folder, suffix, dtype)
      _add_text_tokenizer(source, folder / lavit_directory.LANGUAGE)
    return
  part = model_directory.read_part(source, PART[kind])
  if kind == "llama":
    with files.appearing(target) as folder:
      llama.write(part, folder, suffix, dtype)
      _add_text_tokenizer(source, folder)
  else:
    with files.appearing_file(target) as file:
      files.write_file(file, files.stored_as(eva.write(part), dtype))


def _check_lavit(source, parts: Mapping[str, Part]) -> None:
  missing = {"vit", "visual_tokenizer", "codebook"} - set(parts)
  if missing:
    raise ValueError(
      f"expected a model directory with a visual tokenizer at {source}, got one without"
      f" {sorted(missing)}; export the encoder or the language model alone"
    )


def _add_text_tokenizer(source, folder: pathlib.Path) -> None:
  words = model_directory.text_tokenizer_folder(source)
  if words is not None:
    model_directory.copy_text_tokenizer(words, folder)


def main(argv: list[str]) -> None:
  """Command line entry."""
  verbs = ("import", "export")
  if len(argv) != 3 or argv[1] not in verbs or argv[2] not in KINDS:
    raise app.UsageError(
      f"expected one of {', '.join(verbs)} and one of {', '.join(KINDS)}, got"
      f" {' '.join(argv[1:]) or 'nothing'}; for example: python -m lavit_jax.convert"
      " import llama --source=Llama-2-7b-hf --target=models/llama"
    )
  given, kind = flags.FLAGS, argv[2]
  try:
    if argv[1] == "import":
      import_model(kind, given.source, given.target, given.base, given.num_heads)
    else:
      suffix = SUFFIXES[given.format or DEFAULT_FORMAT.get(kind, "safetensors")]
      export_model(kind, given.source, given.target, suffix, given.dtype)
  except ValueError as error:
    sys.exit(f"error: {error}")
  except OSError as error:
    sys.exit(f"error: {error.strerror or error}: {error.filename}")
  print(f"{argv[1]}ed {given.source} to {given.target}")


if __name__ == "__main__":
  define_flags()
  app.run(main)
