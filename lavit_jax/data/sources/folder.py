"""A folder of pictures, each with its caption in a .txt file of the same name.

A folder with metadata.jsonl (`{"file_name": ..., "text": ...}` per line) is read by
`jsonl` instead, paths relative to the folder.
"""

import functools
import os
from collections.abc import Iterator

from etils import epath

from lavit_jax.data import bad
from lavit_jax.data.sources import fields as naming
from lavit_jax.data.sources import jsonl
from lavit_jax.data.sources import parts as cutting

PICTURES = (
  *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"),
  *(".tif", ".tiff", ".ppm"),
)
METADATA = "metadata.jsonl"


@functools.lru_cache(4)
def listing(folder: str) -> tuple[tuple[str, ...], ...]:
  """Groups the files of a folder by stem: ("a.jpg", "a.txt"), ("sub/b.png",), ..."""
  groups = {}
  for at, _, names in os.walk(folder, followlinks=True):
    below = os.path.relpath(at, folder)
    for name in names:
      path = name if below == "." else f"{below}/{name}"
      stem, suffix = os.path.splitext(path)
      known = suffix.lower() in (*PICTURES, ".txt")
      groups.setdefault(stem if known else path, []).append(path)
  return tuple(tuple(sorted(groups[stem])) for stem in sorted(groups))


def parts(inputs: list[str], records_per_part: int) -> list[cutting.Part]:
  """Cuts folders into runs of pictures in sorted order."""
  found = []
  for name, path in zip(_names(inputs), inputs):
    if not os.path.isdir(path):
      raise ValueError(
        f"expected a folder of pictures, got {path}; give a mounted folder, or name the"
        " kind of your files with --source"
      )
    if (epath.Path(path) / METADATA).exists():
      found += jsonl.parts([f"{path}/{METADATA}"], records_per_part)
      continue
    number = len(listing(path))
    found += cutting.pieces(name, path, number, records_per_part, number, path)
  return found


def _names(inputs: list[str]) -> list[str]:
  names = [os.path.basename(os.path.abspath(path)) for path in inputs]
  if len(set(names)) < len(names):
    raise ValueError(
      f"expected folders of different names, got {', '.join(inputs)}; rename one, ids"
      " begin with them"
    )
  return names


def read(
  part: cutting.Part, fields: naming.Fields
) -> Iterator[tuple[str, dict | bad.BadRecord]]:
  """Reads the pictures of a part; see `parts`."""
  if part.path.endswith(METADATA):
    yield from jsonl.read(part, fields)
    return
  for group in listing(part.path)[part.start : part.stop]:
    pictures = [name for name in group if name.lower().endswith(PICTURES)]
    texts = [name for name in group if name.lower().endswith(".txt")]
    if not pictures:
      other = bad.BadRecord("a text without picture" if texts else bad.OTHER_KIND)
      yield group[0], other
    for extra in pictures[1:]:
      yield extra, bad.BadRecord("a duplicate key", f"{pictures[0]} has it too")
    if pictures:
      try:
        yield pictures[0], _record(part.path, pictures[0], texts)
      except bad.BadRecord as error:
        yield pictures[0], error


def _record(folder: str, picture: str, texts: list[str]) -> dict:
  if not texts:
    raise bad.BadRecord("a picture without text", "no .txt of its name")
  text = cutting.read_below(folder, texts[0])
  return {
    "image": cutting.read_below(folder, picture),
    "texts": naming.captions(text),
  }
