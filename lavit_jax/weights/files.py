"""Weights on disk: one file or a folder of shards with an index, and atomic targets."""

import contextlib
import fnmatch
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lavit_jax.weights import stand_ins, tensors, torch_files
from lavit_jax.weights.tensors import Tensor

SAFETENSORS, TORCH = ".safetensors", ".bin"
TORCH_SUFFIXES = (TORCH, ".pt", ".pth")
SHARD_BYTES = 5_000_000_000  # as the Hugging Face libraries cut them
# What the libraries put before the suffix of weights of another precision.
VARIANTS = ("fp32", "bf16", "fp16")
# Buffers that old indices name and that no shard holds: they follow from the sizes.
BUFFERS = (
  "*.inv_freq",
  "*.position_ids",
  "*.attn.masked_bias",
  "*.num_batches_tracked",
)
# What torch.compile puts into keys, and what data parallel training puts before them.
COMPILED, PARALLEL = "_orig_mod.", "module."


def open_file(path: str | os.PathLike) -> dict[str, Tensor]:
  """Tensors by key of one `.safetensors` or `.bin` file."""
  path = pathlib.Path(path)
  stand_ins.refuse(path)
  if path.suffix == SAFETENSORS:
    return unwrapped(tensors.open_safetensors(path), path)
  if path.suffix in TORCH_SUFFIXES:
    return unwrapped(torch_files.open_torch(path), path)
  raise ValueError(
    f"expected a weight file ending in {', '.join((SAFETENSORS, *TORCH_SUFFIXES))}, got"
    f" {path}; give the file itself"
  )


def unwrapped(source: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
  """The same under the keys that the model itself has: wrappers' prefixes removed.

  Args:
    source: tensors, or anything else, by key.
    path: their file, for the complaint.

  Raises:
    ValueError: two keys become one.
  """

  def bare(key):
    key = key.replace(COMPILED, "")
    return key.removeprefix(PARALLEL) if parallel else key

  parallel = bool(source) and all(
    key.replace(COMPILED, "").startswith(PARALLEL) for key in source
  )
  found = {bare(key): value for key, value in source.items()}
  if len(found) != len(source):
    twice = sorted({bare(k) for k in source if bare(k) != k and bare(k) in source})
    raise ValueError(
      f"expected every key of {path} once, got {twice} also with {COMPILED} in them;"
      " save the state dict of the model alone"
    )
  return found


def is_file_name(path: pathlib.Path) -> bool:
  """True for the name of a weight file, false for that of a folder."""
  return path.suffix in (SAFETENSORS, *TORCH_SUFFIXES)


def open_either(folder: pathlib.Path, stem: str) -> dict[str, Tensor] | None:
  """Tensors of `stem.safetensors` or `stem.bin` in a folder, None without either."""
  for suffix in (SAFETENSORS, *TORCH_SUFFIXES):
    if (folder / f"{stem}{suffix}").is_file():
      return open_file(folder / f"{stem}{suffix}")
  return None


def open_folder(
  folder: str | os.PathLike, stems: Sequence[str] = ("model", "pytorch_model")
) -> dict[str, Tensor]:
  """Tensors of a Hugging Face folder: one file, or shards with an index.

  Args:
    folder: the folder.
    stems: names that its files may begin with.

  Returns:
    All tensors by key.

  Raises:
    ValueError: no weights, a missing shard, a key in two shards, or an index that
      points outside the folder.
  """
  folder = pathlib.Path(folder)
  for suffix in (SAFETENSORS, TORCH):
    for stem in stems:
      if (folder / f"{stem}{suffix}").is_file():
        return open_file(folder / f"{stem}{suffix}")
      if (folder / f"{stem}{suffix}.index.json").is_file():
        return _open_shards(folder, folder / f"{stem}{suffix}.index.json")
  found = _open_variant(folder, stems)
  if found is not None:
    return found
  raise ValueError(
    f"expected weights in {folder}, one of {[f'{s}{SAFETENSORS}' for s in stems]} or"
    f" {[f'{s}{TORCH}' for s in stems]} or their shards with an index, found none; give"
    " the folder that holds them"
  )


def _open_variant(
  folder: pathlib.Path, stems: Sequence[str]
) -> dict[str, Tensor] | None:
  """Tensors of the one precision that a folder holds under a name of its own."""
  for suffix in (SAFETENSORS, TORCH):
    ways = [
      (folder / f"{stem}.{kind}{suffix}", folder / f"{stem}{suffix}.index.{kind}.json")
      for stem in stems
      for kind in VARIANTS
    ]
    found = [path for way in ways for path in way if path.is_file()]
    if len(found) > 1:
      raise ValueError(
        f"expected weights of one precision in {folder}, got"
        f" {[path.name for path in found]}; name the one to use {stems[0]}{suffix}"
      )
    if found and found[0].suffix == ".json":
      return _open_shards(folder, found[0])
    if found:
      return open_file(found[0])
  return None


def _open_shards(folder: pathlib.Path, index: pathlib.Path) -> dict[str, Tensor]:
  places = read_json(index).get("weight_map")
  if not isinstance(places, dict) or not places:
    raise ValueError(
      f"expected a weight_map from keys to files in {index}, got none; download the"
      " index again"
    )
  places = unwrapped(places, index)
  files = sorted({str(name) for name in places.values()})
  for name in files:
    if pathlib.PurePath(name).name != name or name in ("", ".", "..") or "\\" in name:
      raise ValueError(
        f"expected plain file names in {index}, got {name!r}; an index must stay inside"
        " its folder, so do not use this one"
      )
  missing = [name for name in files if not (folder / name).is_file()]
  if missing:
    raise ValueError(
      f"expected {len(files)} shards in {folder}, but {missing} are missing; download"
      " them too"
    )
  found: dict[str, Tensor] = {}
  for name in files:
    shard = open_file(folder / name)
    twice = sorted(set(shard) & set(found))
    absent = sorted(
      k
      for k, place in places.items()
      if place == name and k not in shard and not _is_buffer(k)
    )
    if twice or absent:
      raise ValueError(
        f"expected every key once, where {index.name} says, got {twice} in two shards"
        f" and {absent} not in {name}; download the shards and the index again"
      )
    found |= shard
  return found


def _is_buffer(key: str) -> bool:
  return any(fnmatch.fnmatchcase(key, pattern) for pattern in BUFFERS)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object of a file, or one sentence."""
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except OSError as error:
    raise ValueError(f"expected the file {path}, found none; add it") from error
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f"expected JSON in {path}, got something else; download it again"
    ) from error
  if not isinstance(found, dict):
    raise ValueError(f"expected a JSON object in {path}, got a {type(found).__name__}")
  return found


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file, indented, with an end of line."""
  path.write_text(json.dumps(value, indent=2) + "\n")


def stored_as(content: Mapping[str, Tensor], dtype: str | None) -> dict[str, Tensor]:
  """The same tensors in one dtype; None leaves each as it is."""
  return {key: tensors.cast(tensor, dtype) for key, tensor in content.items()}


def write_file(path: pathlib.Path, content: Mapping[str, Tensor]) -> None:
  """Writes one file, in the format of its suffix."""
  if path.suffix in TORCH_SUFFIXES:
    torch_files.write_torch(path, content)
  else:
    tensors.write_safetensors(path, content, {"format": "pt"})


def write_folder(
  folder: pathlib.Path, content: Mapping[str, Tensor], stem: str, suffix: str
) -> None:
  """Writes shards of at most `SHARD_BYTES` and their index; one file needs none.

  Args:
    folder: an existing folder.
    content: what to write.
    stem: e.g. "model" or "diffusion_pytorch_model".
    suffix: ".safetensors" or ".bin".
  """
  shards: list[dict[str, Tensor]] = [{}]
  for key, tensor in content.items():
    held = sum(other.nbytes for other in shards[-1].values())
    if shards[-1] and held + tensor.nbytes > SHARD_BYTES:
      shards.append({})
    shards[-1][key] = tensor
  if len(shards) == 1:
    write_file(folder / f"{stem}{suffix}", shards[0])
    return
  places = {}
  for number, shard in enumerate(shards, start=1):
    name = f"{stem}-{number:05d}-of-{len(shards):05d}{suffix}"
    write_file(folder / name, shard)
    places |= dict.fromkeys(shard, name)
  total = sum(tensor.nbytes for tensor in content.values())
  index = {"metadata": {"total_size": total}, "weight_map": places}
  write_json(folder / f"{stem}{suffix}.index.json", index)


def check_new(target: str | os.PathLike) -> pathlib.Path:
  """Refuses a target that stands already, so that nothing is lost by a slip."""
  target = pathlib.Path(target)
  if target.is_dir() and not any(target.iterdir()):
    target.rmdir()
  if target.exists():
    raise ValueError(
      f"expected a new target, but {target} exists; choose another or delete it first"
    )
  return target


@contextlib.contextmanager
def appearing_file(target: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A file to write that takes the target's name when it is whole."""
  target = pathlib.Path(target)
  target.parent.mkdir(parents=True, exist_ok=True)
  writing = target.with_name(f"writing.{target.name}")
  try:
    yield writing
    writing.rename(target)
  finally:
    writing.unlink(missing_ok=True)


@contextlib.contextmanager
def appearing(target: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A folder to fill that takes the target's place whole, or not at all.

  Args:
    target: where the folder will stand; an older one is replaced.

  Yields:
    A new folder beside the target.
  """
  target = pathlib.Path(target)
  writing = target.with_name(target.name + ".writing")
  old = target.with_name(target.name + ".old")
  shutil.rmtree(writing, ignore_errors=True)
  writing.mkdir(parents=True)
  try:
    yield writing
  except BaseException:
    shutil.rmtree(writing, ignore_errors=True)
    raise
  shutil.rmtree(old, ignore_errors=True)
  if target.exists():
    target.rename(old)
  writing.rename(target)
  shutil.rmtree(old, ignore_errors=True)
