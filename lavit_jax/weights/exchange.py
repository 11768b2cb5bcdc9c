"""Published weights as model directories, and the other way round."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from lavit_jax.weights import (
  eva,
  files,
  lavit_directory,
  llama,
  model_card,
  model_directory,
  openai_clip,
  parity,
  pixel_folders,
  torch_side,
)
from lavit_jax.weights.part import Part

KINDS = (*eva.LAYOUTS, "llama", "lavit", "diffusion", openai_clip.PART)
CERTIFICATE, CARD = "parity.json", "README.md"


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
  if kind in eva.LAYOUTS:
    return {"vit": eva.read(files.open_file(source), num_heads, kind)}
  if kind == openai_clip.PART:
    return {openai_clip.PART: openai_clip.read(source)}
  if not source.is_dir():
    raise ValueError(f"expected a folder for {kind}, found none at {source}")
  if kind == "llama":
    return {"llama": llama.read(source)}
  if kind == "diffusion":
    found = pixel_folders.read(source)
    if not found:
      raise ValueError(
        f"expected folders unet or vae with their config.json in {source}, found"
        " neither; give the folder of a diffusers pipeline"
      )
    return found
  return lavit_directory.read(source)


def text_tokenizer_of(kind: str, source: str | os.PathLike) -> pathlib.Path | None:
  """The folder of published weights of a kind that holds their text tokenizer."""
  if kind == openai_clip.PART:
    return openai_clip.text_tokenizer_of(pathlib.Path(source))
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
  if base is not None and kind == openai_clip.PART:
    raise ValueError(
      f"expected no --base for {kind}, got {base}: its text tokenizer is not that of a"
      " language model; import it alone"
    )
  parts = read_published(kind, source, num_heads)
  words = text_tokenizer_of(kind, source)
  said = None  # that of `base`, unless a language model comes with its own
  if kind == "lavit" and "llama" in parts:
    said = lavit_directory.own_facts(source).get("decoding", {})
  model_directory.save(target, parts, base=base, text_tokenizer=words, decoding=said)


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
    target: new file (an encoder; OpenAI's own layout of CLIP) or folder.
    suffix: ".bin" or ".safetensors", for folders.
    dtype: stored dtype, None for that of the source.
  """
  target = files.check_new(target)
  if kind in eva.LAYOUTS:
    part = model_directory.read_part(source, "vit")
    with files.appearing_file(target) as file:
      files.write_file(file, files.stored_as(eva.write(part, kind), dtype))
  elif kind == openai_clip.PART and files.is_file_name(target):
    part = model_directory.read_part(source, kind)
    with files.appearing_file(target) as file:
      openai_clip.write_file(part, file, dtype)
  else:
    parts = _exported_parts(kind, source)
    with files.appearing(target) as folder:
      said = model_directory.decoding_of(source)
      _write_folder(kind, parts, said, folder, suffix, dtype)
      card = model_card.text(kind, pathlib.Path(source), parts)
      (folder / CARD).write_text(card)
      if kind != "diffusion":
        inside = lavit_directory.LANGUAGE if kind == "lavit" else "."
        _add_text_tokenizer(source, folder / inside)


def _exported_parts(kind: str, source) -> dict[str, Part]:
  """The parts of a model directory that a kind of folder holds."""
  present = model_directory.read_manifest(source)["parts"]
  if kind == "diffusion":
    wanted = _pixel_names(present, source)
  else:
    wanted = list(present) if kind == "lavit" else [kind]
  parts = {name: model_directory.read_part(source, name) for name in wanted}
  for name in wanted:
    if kind == "diffusion" and name.endswith("condition") and "null" not in name:
      parts[name] = Part({}, parts[name].config)  # for what it says of sampling alone
  if kind == "lavit":
    _check_lavit(source, parts)
  return parts


def _pixel_names(present: Mapping[str, Any], source) -> list[str]:
  """Names of one pixel decoder's parts: that of low resolution, if there are two."""
  names = ("unet", "vae", "scheduler", "null_condition", "condition")
  for prefix in lavit_directory.PIXELS:
    if {f"{prefix}unet", f"{prefix}vae"} & set(present):
      return [prefix + name for name in names if prefix + name in present]
  raise ValueError(
    f"expected a model directory with a U-Net or a VAE at {source}, got only"
    f" {sorted(present)}; train configs/pixel_decoder.py first"
  )


def _write_folder(kind: str, parts, said, folder: pathlib.Path, *how) -> None:
  """Writes parts in the layout of a kind; `how` is the suffix and the dtype.

  Only LaVIT's own layout has a place for the decoding defaults `said`.
  """
  if kind == "lavit":
    lavit_directory.write(parts, folder, *how, decoding=said)
  elif kind == "diffusion":
    prefix = lavit_directory.prefix_of(parts)
    own = lavit_directory.pixel_parts_out(parts, prefix)
    side = lavit_directory.side_of(parts, prefix)
    pixel_folders.write(own, folder, *how, side=side)
  elif kind == "llama":
    llama.write(parts[kind], folder, *how)
  else:
    openai_clip.write_folder(parts[kind], folder, *how)


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


def verify(
  kind: str,
  source: str | os.PathLike,
  target: str | os.PathLike,
  num_heads: int = eva.NUM_HEADS,
) -> dict[str, Any]:
  """Compares published weights with a model directory and writes a certificate.

  Args:
    kind: one of `KINDS`.
    source: published weights.
    target: model directory.
    num_heads: see `read_published`.

  Returns:
    The certificate, written to `parity.json` in the target.

  Raises:
    ValueError: a module or a tensor differs, or a file of the target is damaged.
  """
  published = read_published(kind, source, num_heads)
  parts = {name: model_directory.read_part(target, name) for name in published}
  runs = {}
  if parity.has("torch"):
    runs = _torch_runs(kind, pathlib.Path(source), published)
  else:
    print("torch is not installed: the published side runs through our own reader")
  certificate = {
    "kind": kind,
    "source": str(source),
    "torch": bool(runs),
    "tolerance": parity.TOLERANCE,
    "modules": parity.compare(parts, published, runs),
    "different_tensors": parity.different_tensors(parts, published),
    "damaged_files": model_directory.damaged_files(target),
    "checksums": model_directory.read_manifest(target)["parts"],
  }
  files.write_json(pathlib.Path(target) / CERTIFICATE, certificate)
  _report(certificate, target)
  return certificate


def _report(certificate: Mapping[str, Any], target) -> None:
  """Prints the deviations of every module, and complains about what differs."""
  records = certificate["modules"]
  for record in records:
    print(
      f"{record['module']}: largest deviation {record['largest_deviation']:.1e} of"
      f" values up to {record['largest_value']:.3g}, other side {record['other_side']}"
    )
  wrong = [record["module"] for record in records if not record["passed"]]
  wrong += certificate["different_tensors"] + certificate["damaged_files"]
  if wrong:
    raise ValueError(
      f"expected {target} to compute what {certificate['source']} computes, but these"
      f" differ: {wrong}; import it again"
    )


def _torch_runs(kind: str, source: pathlib.Path, published: Mapping[str, Part]):
  if kind in eva.LAYOUTS:
    bare = eva.write(published["vit"])  # the same tensors under LaVIT's keys
    return torch_side.encoder(bare, published["vit"].config)
  if kind == "llama":
    return torch_side.language(source, published["llama"].config)
  if kind == "diffusion":
    return torch_side.pixels(source, published)
  if kind == openai_clip.PART:
    return torch_side.openai_clip(source, published[kind])
  return torch_side.lavit(source, published)
