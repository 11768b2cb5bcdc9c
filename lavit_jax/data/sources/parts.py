"""Parts of a source: what one worker turns into one output shard.

Every source is a module with three functions:

    parts(inputs, records_per_part, known) -> Listing
    read(part, fields) -> Item, ...
    stamp(part) -> str

`read` depends on the part alone, so any worker may do it, and again. A part keeps its
name and its bounds when inputs are added, or grow at their end; `stamp` changes when
its bytes do.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from lavit_jax.data import bad

SAMPLES, SAMPLE = 4, 65_536  # pieces of a file that tell it from another, their bytes
PACKED = (".gz", ".bz2", ".xz", ".zst")
Bound = int | str  # bytes, row groups or positions; names in a folder


@dataclasses.dataclass(frozen=True)
class Part:
  """A piece of a source.

  Attributes:
    name: unique in the target; the ids of its records begin with it.
    path: file or folder.
    start: begin of the piece: bytes, row groups, positions or names, as the source
      counts.
    stop: end of the piece.
    size: bytes of the piece.
    root: folder that paths inside the data are relative to.
    input: name of the file or folder.
  """

  name: str
  path: str
  start: Bound
  stop: Bound
  size: int
  root: str = ""
  input: str = ""


@dataclasses.dataclass(frozen=True)
class Item:
  """What a part holds in one place.

  Attributes:
    key: names it inside the part.
    found: what was found there, or why it is not used.
    size: bytes of the part that it takes; for compressed parts in any unit.
    cut: "surely" where the part held more once, "likely" where that is a guess.
  """

  key: str
  found: Any
  size: int = 0
  cut: str = ""


@dataclasses.dataclass(frozen=True)
class Known:
  """An input that the target holds already.

  Attributes:
    name: its name.
    bounds: where it was cut, from its begin to its end.
  """

  name: str
  bounds: tuple[Bound, ...]


NOTHING: Mapping[str, Known] = {}


@dataclasses.dataclass(frozen=True)
class Listing:
  """What a source makes of its inputs.

  Attributes:
    parts: in order.
    unused: items for files that are no part of it, with the reason.
  """

  parts: list[Part]
  unused: list[Item]


def bounds(end: int, step: int, known: Sequence[int] = ()) -> list[int]:
  """Cuts [0, end) at every `step`, going on behind the bounds that are known."""
  found = [bound for bound in known if bound < end] or [0]
  while found[-1] + step < end:
    found.append(found[-1] + step)
  return [*found, end]


def pieces(
  name: str,
  path: epath.PathLike,
  found: Sequence[Bound],
  sizes: Iterable[int],
  root: str = "",
) -> list[Part]:
  """Makes a part of each pair of bounds; the first keeps the bare name."""
  path = os.fspath(path)
  return [
    Part(f"{name}+{i:05d}" if i else name, path, start, stop, size, root, name)
    for i, (start, stop, size) in enumerate(zip(found, found[1:], sizes))
    if start != stop
  ]


def stamp_file(path: epath.PathLike, start: int = 0, stop: int | None = None) -> str:
  """Tells the bytes of a file from others by a sample of them."""
  path = epath.Path(path)
  stop = path.stat().length if stop is None else stop
  digest = hashlib.sha256(f"{start}:{stop}".encode())
  steps = [start + (stop - start - SAMPLE) * i // 3 for i in range(SAMPLES)]
  with path.open("rb") as file:
    for at in steps if stop - start > SAMPLES * SAMPLE else [start]:
      file.seek(at)
      digest.update(file.read(min(stop - at, SAMPLES * SAMPLE)))
  return digest.hexdigest()


def named(
  paths: Sequence[epath.Path], known: Mapping[str, Known], whole: bool = False
) -> tuple[list[tuple[str, epath.Path, tuple]], list[Item]]:
  """Names files by their path below the folder that they share, without suffix.

  A file that the target knows keeps its name, also after it has moved.

  Args:
    paths: files, or folders.
    known: inputs of the target by path.
    whole: suffixes belong to the names, as with folders.

  Returns:
    (name, path, known bounds) of each, and items for copies of files that are in the
    target already.
  """
  natural = _natural([p for p in paths if os.fspath(p) not in known], whole)
  taken = {found.name: path for path, found in known.items()}
  found, copies = [], []
  for path in paths:
    text = os.fspath(path)
    if text in known:
      found.append((known[text].name, path, known[text].bounds))
      continue
    first, *full = natural[text]
    beside = os.path.dirname(text) == os.path.dirname(taken.get(first, ""))
    for name in (first, *(full if beside else ()), *_longer(text, whole)):
      earlier = taken.get(name)
      if earlier is None or earlier in known and not epath.Path(earlier).exists():
        taken[name] = text
        bounds = known[earlier].bounds if earlier else ()
        found.append((name, path, bounds))
        break
      if _same(epath.Path(earlier), path):
        other = bad.LeftOut("a copy of another input", earlier)
        copies.append(Item(text, other, path.stat().length))
        break
  return found, copies


def _same(one: epath.Path, other: epath.Path) -> bool:
  if one.is_dir() or other.is_dir():
    return False
  sizes = one.stat().length, other.stat().length
  return sizes[0] == sizes[1] and stamp_file(one) == stamp_file(other)


def _natural(paths: Sequence[epath.Path], whole: bool) -> dict[str, tuple[str, ...]]:
  """Names of files below their common folder, without and with suffix."""
  texts = [os.fspath(path) for path in paths]
  if not texts:
    return {}
  shared = os.path.commonpath([os.path.dirname(text) for text in texts])
  found = {}
  for text in texts:
    name = bad.printable(os.path.relpath(text, shared))
    found[text] = (name,) if whole else (_stem(name), name)
  return found


def _stem(name: str) -> str:
  stem, suffix = os.path.splitext(name)
  return os.path.splitext(stem)[0] if suffix in PACKED else stem


def _longer(text: str, whole: bool) -> list[str]:
  """Names with ever more folders before the file's."""
  text = text if whole else _stem(text)
  steps = [bad.printable(step) for step in text.strip("/").split("/")]
  return ["/".join(steps[-n:]) for n in range(2, len(steps) + 1)]
