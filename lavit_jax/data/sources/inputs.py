"""The files of a command line: patterns, braces, folders and links, each file once."""

import glob
import os
from collections.abc import Iterator

from etils import epath

from lavit_jax.core import command_line
from lavit_jax.data import bad
from lavit_jax.data.sources.parts import Item

SIGNS = "*?["
HIDDEN = ("._", ".DS_Store", "Thumbs.db", "desktop.ini")  # other systems' own files


def expand(
  patterns: list[str], suffixes: tuple[str, ...]
) -> tuple[list[epath.Path], list[Item]]:
  """Finds the files of patterns or folders, each once and in sorted order.

  Args:
    patterns: files, folders (all their files, at any depth) or patterns with * ? [] {}.
    suffixes: endings of the wanted files.

  Returns:
    The files, and an item for every other one that was met.
  """
  found, unused = {}, {}
  for pattern in patterns:
    hits = list(_hits(os.path.expanduser(pattern), suffixes))
    if not hits:
      raise ValueError(
        f"expected files for the input {pattern}, got none; give a file, a folder or a"
        " pattern"
      )
    for path in hits:
      text = os.fspath(path)
      real = text if "://" in text else os.path.realpath(text)
      error, size = None, 0
      if not path.exists():
        error = bad.BadRecord("a missing file", "a link to nothing")
      elif path.is_dir():
        error = bad.LeftOut("a folder read already", os.fspath(real))
      elif found.get(real, text) != text:
        error = bad.LeftOut("a second name of an input", found[real])
      elif hidden(text) or not path.name.lower().endswith(suffixes):
        error, size = bad.LeftOut(bad.OTHER_KIND), path.stat().length
      if error is None:
        found[real] = text
      else:
        unused[text] = Item(text, error, size)
  paths = [epath.Path(text) for text in sorted(found.values())]
  return paths, [unused[text] for text in sorted(unused)]


def _hits(pattern: str, suffixes: tuple[str, ...]) -> Iterator[epath.Path]:
  path = epath.Path(pattern)
  if not any(sign in pattern for sign in SIGNS + "{") or path.exists():
    if path.is_dir():
      yield from walk(path)
    elif path.exists() or path.is_symlink():
      if path.exists() and not path.name.lower().endswith(suffixes):
        raise ValueError(
          f"expected a file ending in {', '.join(suffixes)}, got {path}; name the kind"
          " of your files with --source"
        )
      yield path
    return
  for plain in command_line.braces(pattern):
    if not any(sign in plain for sign in SIGNS):
      if plain == pattern or not (one := epath.Path(plain)).exists():
        raise ValueError(
          f"expected the input {plain}, got no such file; check {pattern}"
        )
      yield from walk(one) if one.is_dir() else [one]
    elif "://" in plain:
      at = epath.Path(plain).parts
      first = min(i for i, step in enumerate(at) if set(step) & set(SIGNS))
      yield from sorted(epath.Path(*at[:first]).glob("/".join(at[first:])))
    else:
      for hit in sorted(glob.glob(plain, recursive=True)):
        at = epath.Path(hit)
        if at.is_dir() and "**" not in plain:
          yield from walk(at)
        elif not at.is_dir():
          yield at


def walk(folder: epath.Path) -> Iterator[epath.Path]:
  """Yields the files below a folder, and links to folders that were read already."""
  if "://" in os.fspath(folder):
    for at, _, names in folder.walk():
      yield from (at / name for name in sorted(names))
    return
  seen = set()
  for at, folders, names in os.walk(folder, followlinks=True):
    seen.add(os.path.realpath(at))
    for name in sorted(folders):
      inner = os.path.join(at, name)
      if os.path.islink(inner) and _inside(os.path.realpath(inner), seen, folder):
        folders.remove(name)
        yield epath.Path(inner)
      elif name == "__MACOSX":
        folders.remove(name)
        yield from (epath.Path(inner) / n for n in os.listdir(inner))
    folders.sort()
    yield from (epath.Path(at) / name for name in sorted(names))


def _inside(real: str, seen: set[str], folder: epath.Path) -> bool:
  """Whether a linked folder was read already, or is read as part of the whole."""
  top = os.path.realpath(folder)
  ours = os.path.commonpath([real, top]) == top
  around = os.path.commonpath([real, top]) == real
  if ours or around or real in seen:
    return True
  seen.add(real)
  return False


def hidden(name: str) -> bool:
  """Whether a file is another system's own and no data."""
  steps = name.split("/")
  return steps[-1].startswith(HIDDEN) or "__MACOSX" in steps
