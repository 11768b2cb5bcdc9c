"""Webdataset tars as img2dataset writes them: KEY.jpg, KEY.txt, KEY.json together.

A tar is indexed first and read by position, so members may stand in any order. A
compressed one is unpacked to a temporary file first. Nothing is ever extracted.
"""

from collections.abc import Iterator, Mapping
from typing import BinaryIO

from etils import epath

from lavit_jax.data import bad
from lavit_jax.data.sources import compressed, files, inputs, members, tar
from lavit_jax.data.sources import fields as naming
from lavit_jax.data.sources import parts as cutting
from lavit_jax.data.sources.parts import Item

SUFFIXES = (".tar", ".tgz", *(f".tar{s}" for s in (".gz", ".bz2", ".xz", ".zst")))


def parts(
  patterns: list[str],
  records_per_part: int,
  known: Mapping[str, cutting.Known] = cutting.NOTHING,
) -> cutting.Listing:
  """Makes one part of every tar, whatever its number of records."""
  del records_per_part
  paths, unused = inputs.expand(patterns, SUFFIXES)
  found = []
  named, copies = cutting.named(paths, known)
  for name, path, _ in named:
    size = path.stat().length
    found += cutting.pieces(name, path, (0, max(size, 1)), [size])
  return cutting.Listing(found, unused + copies)


def stamp(part: cutting.Part) -> str:
  """Tells the tar from another."""
  return cutting.stamp_file(part.path)


def read(part: cutting.Part, fields: naming.Fields) -> Iterator[Item]:
  """Reads the pairs of a tar; see `parts`."""
  with files.open_input(part.path) as file:
    if not compressed.packed(part.path):
      yield from _read(file, epath.Path(part.path).stat().length, fields)
      return
    unpacked, error = compressed.unpacked(part.path, file)
    with unpacked:
      size = unpacked.seek(0, 2)
      unpacked.seek(0)
      whole = size > 0
      for item in _read(unpacked, size, fields) if size else ():
        whole &= not item.cut
        yield item
      if error is None:
        return
      left = max(part.size - file.tell(), 0)
      ratio = size / max(file.tell(), 1)
      found, cut = compressed.failure(error, f"behind byte {size}")
      if whole:  # the tar has come to its end, only the wrapping has not
        found, cut = bad.LeftOut("a compressed file without its end", str(error)), ""
      yield Item("end", found, round(left * ratio) or 1, cut)


def _read(file: BinaryIO, size: int, fields: naming.Fields) -> Iterator[Item]:
  places: dict[str, tar.Member] = {}
  sizes: dict[str, int] = {}
  for item in tar.members(file, size):
    if isinstance(item.found, bad.BadRecord):
      yield item
    elif inputs.hidden(item.key) or members.suffix(item.key) not in members.KINDS:
      yield Item(item.key, bad.LeftOut(bad.OTHER_KIND), item.size)
    elif item.key in places:
      error = bad.BadRecord("a duplicate key", "the tar holds the name twice")
      yield Item(item.key, error, item.size)
    else:
      places[item.key], sizes[item.key] = item.found, item.size

  def content(name: str) -> bytes:
    start, length = places[name]
    file.seek(start)
    return file.read(length)

  for group in members.groups(places, fields.image):
    yield from group_items(group, fields, content, sizes, group.key)


def group_items(group, fields, content, sizes, key) -> Iterator[Item]:
  """Makes the record of one group of files, and names what it does not use.

  Args:
    group: names that belong together.
    fields: which of them to read.
    content: from a name to its bytes.
    sizes: bytes that each takes in the input.
    key: names the record.
  """
  for name in group.unused:
    yield Item(name, bad.LeftOut("a second picture of its key"), sizes[name])
  size = sum(sizes[name] for name in (group.picture, *group.others) if name)
  try:
    if not group.picture:
      detail = f"only {', '.join(group.others)}"
      raise bad.LeftOut("a text without picture", detail)
    entries, row = members.texts(group, fields, content)
    found = {"image": content(group.picture), "texts": entries}
    if fields.columns:
      found["row"] = row
    yield Item(key, found, size)
  except bad.BadRecord as error:
    yield Item(key, error, size)
