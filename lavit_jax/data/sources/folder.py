"""A folder of pictures, each with its caption in a .txt file of the same name.

A folder with metadata.jsonl (`{"file_name": ..., "text": ...}` per line) is read by
`jsonl` instead, paths relative to the folder.
"""

import bisect
import functools
import hashlib
import os
from collections.abc import Iterator, Mapping

from etils import epath

from lavit_jax.data import bad
from lavit_jax.data.sources import fields as naming
from lavit_jax.data.sources import files, inputs, jsonl, members, webdataset
from lavit_jax.data.sources import parts as cutting
from lavit_jax.data.sources.parts import Item

METADATA = "metadata.jsonl"
END = "\U0010ffff"  # sorts behind every name


@functools.lru_cache(4)
def listing(folder: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Names of the files of a folder, sorted by key and name, and their keys."""
  found = [os.path.relpath(path, folder) for path in inputs.walk(epath.Path(folder))]
  named = sorted((members.key(name), name) for name in found)
  return tuple(name for _, name in named), tuple(key for key, _ in named)


def parts(
  patterns: list[str],
  records_per_part: int,
  known: Mapping[str, cutting.Known] = cutting.NOTHING,
) -> cutting.Listing:
  """Cuts folders into runs of keys in sorted order."""
  listing.cache_clear()
  folders = [os.path.abspath(os.path.expanduser(path)) for path in patterns]
  for path in folders:
    if not os.path.isdir(path):
      raise ValueError(
        f"expected a folder of pictures, got {path}; give a mounted folder, or name the"
        " kind of your files with --source"
      )
  found, unused = [], []
  described = [path for path in folders if os.path.exists(f"{path}/{METADATA}")]
  if described:
    texts = [f"{path}/{METADATA}" for path in described]
    lines = jsonl.parts(texts, records_per_part, known)
    found += lines.parts
    unused += lines.unused
  for path in described:
    unused += _undescribed(path)
  plain = [epath.Path(path) for path in folders if path not in described]
  named, copies = cutting.named(plain, known, whole=True)
  for name, path, earlier in named:
    names, keys = listing(os.fspath(path))
    if not names:
      unused.append(Item(name, bad.LeftOut("an empty folder")))
    distinct = sorted(set(keys))
    bounds = _bounds(distinct, records_per_part, earlier)
    sizes = [_size(os.fspath(path), a, b) for a, b in zip(bounds, bounds[1:])]
    found += cutting.pieces(name, path, bounds, sizes, os.fspath(path))
  return cutting.Listing(found, unused + copies)


def _bounds(keys: list[str], step: int, known: tuple[str, ...]) -> list[str]:
  """Keys at which to cut; the last known part ends where it did, and new ones follow.

  A bound is the first key that a part does not hold.
  """
  if not keys:
    return []
  found = list(known) or [""]
  while (at := bisect.bisect_left(keys, found[-1])) < len(keys):
    behind = at + step
    found.append(keys[behind] if behind < len(keys) else keys[-1] + "\0")
  return found


def _range(folder: str, start: str, stop: str) -> tuple[str, ...]:
  names, keys = listing(folder)
  return names[bisect.bisect_left(keys, start) : bisect.bisect_left(keys, stop)]


def _size(folder: str, start: str, stop: str) -> int:
  names = _range(folder, start, stop)
  return sum(_length(f"{folder}/{name}") for name in names)


def _length(path: str) -> int:
  try:
    return os.stat(path).st_size if not os.path.isdir(path) else 0
  except OSError:
    return 0


def _undescribed(folder: str) -> list[Item]:
  """Names the files of a folder that its metadata does not name."""
  named = {METADATA}
  for part in jsonl.parts([f"{folder}/{METADATA}"], 10**9).parts:
    for item in jsonl.rows(part):
      if not isinstance(item.found, bad.BadRecord):
        named |= {str(item.found.get(n)) for n in naming.IMAGES if item.found.get(n)}
  names = [name for name in listing(folder)[0] if os.path.normpath(name) not in named]
  what = bad.LeftOut(f"a file that {METADATA} does not name")
  return [Item(f"{folder}/{n}", what, _length(f"{folder}/{n}")) for n in names]


def stamp(part: cutting.Part) -> str:
  """Tells the files of a part from others: by names, sizes and times."""
  if part.path.endswith(METADATA):
    return jsonl.stamp(part)
  os.stat(part.path)  # a folder that is gone is an OSError, as a file is
  digest = hashlib.sha256()
  for name in _range(part.path, part.start, part.stop):
    try:
      facts = os.stat(f"{part.path}/{name}")
      digest.update(f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode(*STRICT))
    except OSError:
      digest.update(f"{name}\0".encode(*STRICT))
  return digest.hexdigest()


STRICT = ("utf-8", "surrogateescape")


def read(part: cutting.Part, fields: naming.Fields) -> Iterator[Item]:
  """Reads the pictures of a part; see `parts`."""
  if part.path.endswith(METADATA):
    yield from jsonl.read(part, fields)
    return
  usable, sizes = [], {}
  for name in _range(part.path, part.start, part.stop):
    path = f"{part.path}/{name}"
    sizes[name] = _length(path)
    if os.path.isdir(path):
      yield Item(name, bad.LeftOut("a folder read already", os.path.realpath(path)))
    elif inputs.hidden(name) or members.suffix(name) not in members.KINDS:
      yield Item(name, bad.LeftOut(bad.OTHER_KIND), sizes[name])
    else:
      usable.append(name)

  def content(name: str) -> bytes:
    return files.read_below(part.path, name)

  for group in members.groups(usable, fields.image):
    key = group.picture or group.others[0]
    yield from webdataset.group_items(group, fields, content, sizes, key)
