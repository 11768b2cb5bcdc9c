"""Model directories: a manifest and safetensors, one tensor per layer.

    model/manifest.json            parts with their configs, files and checksums
    model/vit.safetensors ...      tensors named like our paths, layers unstacked
    model/text_tokenizer/          the Hugging Face folder, when the model has one

A part is one module's parameters ("vit", "merger", "llama"); stages add and replace
parts. A directory appears whole or not at all.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

MANIFEST = "manifest.json"
VERSION = 1
STACKED = "blocks"  # below this name axis 0 is the layer
MAX_SHARD_BYTES = 4 * 2**30


@dataclasses.dataclass(frozen=True)
class Part:
  """One part to write.

  Attributes:
    params: tree of arrays.
    config: the module's sizes, enough to build it again.
  """

  params: Any
  config: Mapping[str, Any]


def save(
  folder: str | os.PathLike,
  parts: Mapping[str, Part],
  *,
  base: str | os.PathLike | None = None,
  text_tokenizer: str | os.PathLike | None = None,
) -> None:
  """Writes a model directory, atomically.

  Args:
    folder: where the directory will stand; an older one there is replaced.
    parts: parts to write.
    base: a model directory whose other parts are taken over.
    text_tokenizer: folder to copy; that of `base` when None.
  """
  folder = pathlib.Path(folder)
  temporary = folder.with_name(folder.name + ".writing")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  entries = {}
  if base is not None:
    base = pathlib.Path(base)
    for name, entry in read_manifest(base)["parts"].items():
      if name not in parts:
        entries[name] = entry
        for file in entry["files"]:
          shutil.copyfile(base / file, temporary / file)
    if text_tokenizer is None and (base / "text_tokenizer").is_dir():
      text_tokenizer = base / "text_tokenizer"
  for name, part in parts.items():
    entries[name] = _write_part(temporary, name, part)
  if text_tokenizer is not None:
    shutil.copytree(text_tokenizer, temporary / "text_tokenizer")
  manifest = {"version": VERSION, "parts": entries}
  (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2))
  shutil.rmtree(folder, ignore_errors=True)
  temporary.rename(folder)


def _write_part(folder: pathlib.Path, name: str, part: Part) -> dict[str, Any]:
  files, shard, size = {}, {}, 0
  for key, tensor in _tensors(part.params):
    if shard and size + tensor.nbytes > MAX_SHARD_BYTES:
      _write_shard(folder, name, shard, files)
      shard, size = {}, 0
    shard[key] = tensor
    size += tensor.nbytes
  _write_shard(folder, name, shard, files)
  digest = hashlib.sha256("".join(files.values()).encode()).hexdigest()
  return {"config": dict(part.config), "files": files, "checksum": digest}


def _write_shard(folder, name, shard, files) -> None:
  file = f"{name}-{len(files):05d}.safetensors"
  safetensors.numpy.save_file(shard, folder / file)
  with (folder / file).open("rb") as stream:
    files[file] = hashlib.file_digest(stream, "sha256").hexdigest()


def _tensors(params: Any) -> Iterator[tuple[str, np.ndarray]]:
  """Names and values, one layer at a time."""
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    keys = [entry.key for entry in path]
    if STACKED in keys:
      for layer in range(leaf.shape[0]):
        yield _name(keys, layer), np.ascontiguousarray(leaf[layer])
    else:
      yield ".".join(keys), np.ascontiguousarray(leaf)


def _name(keys: list[str], layer: int) -> str:
  split = keys.index(STACKED) + 1
  return ".".join([*keys[:split], str(layer), *keys[split:]])


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
  """Reads the manifest; says what is missing when there is none."""
  path = pathlib.Path(folder) / MANIFEST
  if not path.is_file():
    raise ValueError(
      f"expected a model directory at {folder}, but it has no {MANIFEST}; give the"
      " `model` folder that a finished `train` wrote"
    )
  manifest = json.loads(path.read_text())
  if manifest.get("version") != VERSION:
    raise ValueError(
      f"{path} has version {manifest.get('version')}, this program reads {VERSION}"
    )
  return manifest


def part_config(folder: str | os.PathLike, name: str) -> dict[str, Any]:
  """The sizes of one part."""
  parts = read_manifest(folder)["parts"]
  if name not in parts:
    raise ValueError(
      f"model directory {folder} has no part {name!r}, only {sorted(parts)}; run the"
      " stage that trains it first"
    )
  return parts[name]["config"]


def checksum(folder: str | os.PathLike, names: list[str]) -> str:
  """One checksum over the weights of several parts."""
  parts = read_manifest(folder)["parts"]
  joined = "".join(parts[name]["checksum"] for name in sorted(names))
  return hashlib.sha256(joined.encode()).hexdigest()[:16]


def load(
  folder: str | os.PathLike,
  name: str,
  abstract: Any,
  shardings: Any | Callable[[Any], Any],
  dtype: str | None = None,
  below: tuple[str, ...] = (),
) -> Any:
  """Reads one part straight into sharded arrays: each device's slice, layer by layer.

  Args:
    folder: model directory.
    name: part.
    abstract: abstract parameter tree of the module that will use it.
    shardings: a sharding per leaf, or one for all.
    dtype: cast to this dtype while reading, e.g. "bfloat16" for frozen towers.
    below: read only the tensors below these top-level names; () reads all.

  Returns:
    The parameter tree.

  Raises:
    ValueError: a tensor is missing or has another shape, all of them listed.
  """
  folder = pathlib.Path(folder)
  part_config(folder, name)
  files = read_manifest(folder)["parts"][name]["files"]
  handles = [_open(folder / file) for file in files]
  index = {
    key: handle
    for handle in handles
    for key in handle.keys()  # noqa: SIM118
    if not below or key.split(".")[0] in below
  }
  leaves, structure = jax.tree_util.tree_flatten_with_path(abstract)
  if isinstance(shardings, jax.sharding.Sharding):
    spread = [shardings] * len(leaves)
  else:
    spread = jax.tree.leaves(shardings)
  problems = _problems(index, leaves)
  if problems:
    raise ValueError(
      f"part {name!r} of {folder} does not fit this configuration: "
      + "; ".join(problems)
    )
  arrays = [
    _read(index, [entry.key for entry in path], leaf, s, dtype)
    for (path, leaf), s in zip(leaves, spread, strict=True)
  ]
  return jax.tree_util.tree_unflatten(structure, arrays)


def _open(path: pathlib.Path) -> Any:
  try:
    return safetensors.safe_open(path, "numpy")
  except (OSError, safetensors.SafetensorError) as error:
    raise ValueError(
      f"expected a whole tensor file {path}, got one that cannot be read ({error});"
      " copy the model directory again"
    ) from error


def _problems(index: Mapping[str, Any], leaves: list) -> list[str]:
  expected = {}
  for path, leaf in leaves:
    keys = [entry.key for entry in path]
    if STACKED in keys:
      for layer in range(leaf.shape[0]):
        expected[_name(keys, layer)] = leaf.shape[1:]
    else:
      expected[".".join(keys)] = leaf.shape
  problems = [f"missing {key}" for key in expected if key not in index]
  problems += [f"unused {key}" for key in index if key not in expected]
  for key in set(expected) & set(index):
    found = tuple(index[key].get_slice(key).get_shape())
    if found != tuple(expected[key]):
      problems.append(f"{key} is {found}, expected {tuple(expected[key])}")
  return problems


def _read(index, keys, leaf, sharding, dtype):
  target = np.dtype(dtype) if dtype else leaf.dtype

  def fetch(key, slices):
    return (
      index[key].get_slice(key)[slices].astype(target)
      if slices
      else (index[key].get_tensor(key).astype(target))
    )

  def piece(slices):
    if STACKED not in keys:
      return fetch(".".join(keys), slices)
    layers = range(*slices[0].indices(leaf.shape[0]))
    return np.stack([fetch(_name(keys, i), slices[1:]) for i in layers])

  return jax.make_array_from_callback(leaf.shape, sharding, piece)
