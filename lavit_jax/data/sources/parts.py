"""Parts of a source: what one worker turns into one output shard.

Every source is a module with two functions:

    parts(inputs, records_per_part) -> [Part]
    read(part, fields) -> (key, record | BadRecord), ...

`read` depends on the part alone, so any worker may do it, and do it again.
"""

import dataclasses
import os
from typing import BinaryIO

from etils import epath

from lavit_jax.data import bad

MAX_BYTES = 100_000_000  # of one picture or line


@dataclasses.dataclass(frozen=True)
class Part:
  """A piece of a source.

  Attributes:
    name: unique in the run; the ids of its records begin with it.
    path: file or folder.
    start: begin of the piece: bytes, row groups or positions, as the source counts.
    stop: end of the piece.
    size: bytes of the file or files; another size on a restart is noticed.
    root: folder that paths inside the data are relative to.
  """

  name: str
  path: str
  start: int
  stop: int
  size: int
  root: str = ""


def expand(patterns: list[str], suffixes: tuple[str, ...]) -> list[epath.Path]:
  """Finds the files of patterns or folders, each once and in sorted order.

  Args:
    patterns: files, folders (all their files, at any depth) or patterns with * ? [].
    suffixes: endings of the wanted files inside folders.
  """
  found = {}
  for pattern in patterns:
    path = epath.Path(pattern)
    if any(sign in pattern for sign in "*?["):
      at = min(i for i, step in enumerate(path.parts) if set(step) & set("*?["))
      hits = epath.Path(*path.parts[:at]).glob("/".join(path.parts[at:]))
    elif path.is_dir():
      below = (at / name for at, _, names in path.walk() for name in names)
      hits = [file for file in below if file.name.lower().endswith(suffixes)]
    else:
      hits = [path] if path.exists() else []
    hits = sorted(hits, key=os.fspath)
    if not hits:
      raise ValueError(
        f"expected files for the input {pattern}, got none; give a file, a folder or a"
        " pattern"
      )
    found |= {
      os.path.abspath(hit) if "://" not in os.fspath(hit) else hit: hit for hit in hits
    }
  return list(found.values())


def names(paths: list[epath.Path]) -> list[str]:
  """Names files by their path below the folder that they share, without suffix."""
  texts = [os.fspath(path) for path in paths]
  shared = os.path.dirname(texts[0])
  if len(texts) > 1:
    shared = os.path.commonpath([os.path.dirname(text) for text in texts])
  names = [os.path.splitext(os.path.relpath(text, shared))[0] for text in texts]
  if len(set(names)) < len(names):  # a.json beside a.jsonl
    names = [os.path.relpath(text, shared) for text in texts]
  return [bad.printable(name) for name in names]


def pieces(
  name: str, path: epath.PathLike, end: int, step: int, size: int, root: str = ""
) -> list[Part]:
  """Cuts [0, end) into parts of `step`; a single one keeps the bare name."""
  starts = range(0, end, max(step, 1))
  wanted = f"{name}-{{:05d}}" if len(starts) > 1 else name
  return [
    Part(wanted.format(i), os.fspath(path), at, min(at + step, end), size, root)
    for i, at in enumerate(starts)
  ]


def open_input(path: str) -> BinaryIO:
  """Opens a file of the source, from a bucket too; a vanished file is a user error."""
  try:
    return epath.Path(path).open("rb")
  except OSError as error:
    raise ValueError(
      f"expected the input file {path}, got {error.strerror or error}; check the input"
      " and run the same command again"
    ) from error


def read_below(root: str, name: str) -> bytes:
  """Reads a file that data names.

  Args:
    root: folder that must hold the file.
    name: path relative to it.

  Raises:
    BadRecord: the path leaves the folder, is missing, or holds too much.
  """
  if escapes(name):
    raise bad.BadRecord("a path outside its folder", name)
  path = epath.Path(root) / name
  try:
    size = path.stat().length
    if size > MAX_BYTES:
      raise bad.BadRecord("a file too large", f"{name} of {size} bytes")
    return path.read_bytes()
  except OSError as error:
    raise bad.BadRecord("a missing file", f"{name}: {error.strerror}") from error
  except ValueError as error:
    if isinstance(error, bad.BadRecord):
      raise
    raise bad.BadRecord("a missing file", f"{name!r}: {error}") from error


def escapes(name: str) -> bool:
  """Whether a path inside data would leave the folder it is relative to."""
  steps = name.replace("\\", "/").split("/")
  return name.startswith(("/", "\\", "~")) or ".." in steps or ":" in steps[0]
