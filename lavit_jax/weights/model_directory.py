"""Model directories: a manifest and safetensors, one tensor per layer.

    model/manifest.json            parts with their configs, files and checksums, and
                                   decoding defaults (`generate.decoding`)
    model/vit.safetensors ...      tensors named like our paths, layers unstacked
    model/text_tokenizer/          the Hugging Face folder, when the model has one

A part is one module's parameters ("vit", "merger", "llama"); stages add and replace
parts. A directory appears whole or not at all.
"""

import functools
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from lavit_jax.weights import files, lavit_directory, sums, tensors
from lavit_jax.weights.part import STACKED, Part, layer_name, named_tensors, tree_of
from lavit_jax.weights.tensors import Tensor

MANIFEST = "manifest.json"
VERSION = 1
MAX_SHARD_BYTES = 4 * 2**30
BLOCKS = "blocks"  # sums of the files that loading compares
DECODING = "decoding"
TEXT_TOKENIZER = "text_tokenizer"
TEXT_TOKENIZER_FILES = (
  "tokenizer.json",
  "tokenizer.model",
  "vocab.json",
  "merges.txt",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
)


def save(
  folder: str | os.PathLike,
  parts: Mapping[str, Part],
  *,
  base: str | os.PathLike | None = None,
  text_tokenizer: str | os.PathLike | None = None,
  decoding: Mapping[str, Any] | None = None,
) -> None:
  """Writes a model directory, atomically and tensor by tensor.

  On several hosts all must call; host 0 writes, the others hand over what they hold.

  Args:
    folder: where the directory will stand; an older one there is replaced.
    parts: parts to write.
    base: a model directory whose other parts are taken over.
    text_tokenizer: folder to copy; that of `base` when None.
    decoding: decoding defaults by task; those of `base`, if it has any, when None.
  """
  if jax.process_index() != 0:
    for part in parts.values():
      for shard in _shards(part):
        tensors.read_all(shard)
    return
  with files.appearing(folder) as temporary:
    entries = {}
    if base is not None:
      base = pathlib.Path(base)
      known = read_manifest(base)
      decoding = known.get(DECODING) if decoding is None else decoding
      for name, entry in known["parts"].items():
        if name not in parts:
          entries[name] = entry
          for file in entry["files"]:
            shutil.copyfile(base / file, temporary / file)
      if text_tokenizer is None:
        text_tokenizer = text_tokenizer_folder(base)
    for name, part in parts.items():
      entries[name] = _write_part(temporary, name, part)
    if text_tokenizer is not None:
      copy_text_tokenizer(text_tokenizer, temporary / TEXT_TOKENIZER)
    manifest = {"version": VERSION, "parts": entries}
    manifest |= {} if decoding is None else {DECODING: dict(decoding)}
    files.write_json(temporary / MANIFEST, manifest)


def _shards(part: Part) -> list[dict[str, Tensor]]:
  """The tensors of each file of a part."""
  shards: list[dict[str, Tensor]] = [{}]
  size = 0
  for key, tensor in named_tensors(part.params):
    if shards[-1] and size + tensor.nbytes > MAX_SHARD_BYTES:
      shards.append({})
      size = 0
    shards[-1][key] = tensor
    size += tensor.nbytes
  return shards


def _write_part(folder: pathlib.Path, name: str, part: Part) -> dict[str, Any]:
  whole, blocks = {}, {}
  for number, shard in enumerate(_shards(part)):
    file = f"{name}-{number:05d}.safetensors"
    found = tensors.write_safetensors(folder / file, shard)
    whole[file], blocks[file] = found.sha256, found.blocks
  digest = hashlib.sha256("".join(whole.values()).encode()).hexdigest()
  config = dict(part.config)
  return {"config": config, "files": whole, BLOCKS: blocks, "checksum": digest}


def copy_text_tokenizer(source: str | os.PathLike, target: pathlib.Path) -> None:
  """Copies the files of a text tokenizer, and nothing else of its folder."""
  target.mkdir(exist_ok=True)
  for name in TEXT_TOKENIZER_FILES:
    if (pathlib.Path(source) / name).is_file():
      shutil.copyfile(pathlib.Path(source) / name, target / name)


def text_tokenizer_folder(folder: str | os.PathLike) -> pathlib.Path | None:
  """Where a model directory keeps its text tokenizer, None if it has none."""
  folder = pathlib.Path(folder)
  published = is_published(folder)
  inside = folder / (lavit_directory.LANGUAGE if published else TEXT_TOKENIZER)
  return inside if inside.is_dir() else None


def is_published(folder: str | os.PathLike) -> bool:
  """Whether this is LaVIT's published layout, and no model directory of ours."""
  folder = pathlib.Path(folder)
  return not (folder / MANIFEST).is_file() and lavit_directory.is_published(folder)


@functools.lru_cache(maxsize=1)
def _published(folder: pathlib.Path) -> tuple[dict[str, Part], dict[str, Any]]:
  """Parts and manifest of a directory in the published layout."""
  parts = lavit_directory.read(folder)
  entries = {name: _PublishedEntry(part) for name, part in parts.items()}
  said = {DECODING: lavit_directory.own_facts(folder).get(DECODING, {})}
  return parts, {"version": VERSION, "parts": entries} | said


class _PublishedEntry(dict):
  """The entry of a part without a manifest; its checksum is made when asked for."""

  def __init__(self, part: Part):
    super().__init__(config=dict(part.config), files={})
    self._part = part

  def __missing__(self, key: str) -> str:
    if key != "checksum":
      raise KeyError(key)
    self[key] = _fingerprint(self._part)
    return self[key]


def _fingerprint(part: Part) -> str:
  """A checksum of the names, shapes and bytes of all tensors: reads the whole part."""
  digest = hashlib.sha256()
  for name, tensor in named_tensors(part.params):
    blocks = sums.BlockSum()
    blocks.update(np.ascontiguousarray(tensor.read()).reshape(-1).view(np.uint8))
    digest.update(f"{name}{tensor.shape}{tensor.dtype}".encode())
    digest.update(blocks.hexdigest().encode())
  return digest.hexdigest()


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
  """Reads the manifest; says what is missing when there is none.

  A directory in LaVIT's published layout is read as if it had one.
  """
  if is_published(folder):
    return _published(pathlib.Path(folder))[1]
  path = pathlib.Path(folder) / MANIFEST
  if not path.is_file():
    raise ValueError(
      f"expected a model directory at {folder}, but it has no {MANIFEST}; give the"
      " `model` folder that a finished `train` wrote"
    )
  manifest = files.read_json(path)
  if manifest.get("version") != VERSION:
    raise ValueError(
      f"{path} has version {manifest.get('version')}, this program reads {VERSION}"
    )
  return manifest


def decoding_of(folder: str | os.PathLike) -> dict[str, Any]:
  """Decoding defaults by task, as far as the directory carries any."""
  return read_manifest(folder).get(DECODING, {})


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


def identity(folder: str | os.PathLike) -> str:
  """One checksum of everything a result depends on: weights, sizes, words, decoding."""
  manifest, own = read_manifest(folder), text_tokenizer_folder(folder)
  facts = {
    "parts": {n: [p["config"], p["checksum"]] for n, p in manifest["parts"].items()},
    "decoding": manifest.get(DECODING, {}),
    "words": {
      name: hashlib.sha256((own / name).read_bytes()).hexdigest()
      for name in TEXT_TOKENIZER_FILES
      if own and (own / name).is_file()
    },
  }
  text = json.dumps(facts, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


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
    ValueError: a tensor is missing or has another shape, all of them listed; or a file
      is not what was written.
  """
  finish_check = begin_check(folder, name)
  index = {
    key: tensor
    for key, tensor in part_tensors(folder, name).items()
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
  finish_check()
  return jax.tree_util.tree_unflatten(structure, arrays)


def begin_check(folder: str | os.PathLike, name: str) -> Callable[[], None]:
  """Begins to compare the files of a part with their sums; see `sums.begin_check`."""
  part_config(folder, name)
  folder = pathlib.Path(folder)
  if is_published(folder):
    expected = lavit_directory.file_sums(folder, name)
    return sums.begin_check(folder, expected, sums.of_file)
  entry = read_manifest(folder)["parts"][name]
  if BLOCKS in entry:
    return sums.begin_check(folder, entry[BLOCKS], sums.of_file)
  return sums.begin_check(folder, entry["files"], sums.sha256_of_file)


def part_tensors(folder: str | os.PathLike, name: str) -> dict[str, Tensor]:
  """The tensors of one part by name, layers apart; each is read when asked for."""
  part_config(folder, name)
  if is_published(folder):
    return dict(named_tensors(_published(pathlib.Path(folder))[0][name].params))
  found = {}
  for file in read_manifest(folder)["parts"][name]["files"]:
    found |= tensors.open_safetensors(pathlib.Path(folder) / file)
  return found


def read_part(folder: str | os.PathLike, name: str) -> Part:
  """One part with its tensors unread, once its files are found to be whole."""
  begin_check(folder, name)()
  return Part(tree_of(part_tensors(folder, name)), part_config(folder, name))


def damaged_files(folder: str | os.PathLike) -> list[str]:
  """Files whose content is not what was written: reads all of them."""
  wrong = []
  for entry in read_manifest(folder)["parts"].values():
    for file, expected in entry["files"].items():
      with (pathlib.Path(folder) / file).open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != expected:
          wrong.append(file)
  return wrong


def _problems(index: Mapping[str, Tensor], leaves: list) -> list[str]:
  expected = {}
  for path, leaf in leaves:
    keys = [entry.key for entry in path]
    if STACKED in keys:
      for layer in range(leaf.shape[0]):
        expected[layer_name(keys, layer)] = leaf.shape[1:]
    else:
      expected[".".join(keys)] = leaf.shape
  problems = [f"missing {key}" for key in expected if key not in index]
  problems += [f"unused {key}" for key in index if key not in expected]
  for key in set(expected) & set(index):
    found = index[key].shape
    if found != tuple(expected[key]):
      problems.append(f"{key} is {found}, expected {tuple(expected[key])}")
  return problems


def _read(index, keys, leaf, sharding, dtype):
  """One leaf; where slices cannot be read apart, it is read whole once."""
  target = np.dtype(dtype) if dtype else leaf.dtype
  stacked = STACKED in keys
  names = [layer_name(keys, i) for i in range(leaf.shape[0])] if stacked else []
  parts = [index[name] for name in names or [".".join(keys)]]

  def piece(slices):
    if not stacked:
      return _cut(parts[0], slices, target)
    chosen = parts[slices[0]]
    return np.stack([_cut(tensor, slices[1:], target) for tensor in chosen])

  if any(tensor.read_part is None for tensor in parts):
    whole = np.stack([t.read() for t in parts]) if stacked else parts[0].read()
    piece = lambda slices: np.asarray(whole[slices], target)
  return jax.make_array_from_callback(leaf.shape, sharding, piece)


def _cut(tensor: Tensor, slices: tuple[slice, ...], dtype) -> np.ndarray:
  return tensor.read_part(slices).astype(dtype, copy=False)
