"""Where the members of a tar lie, and what is wrong with it; nothing is extracted.

A damaged header costs its own members only: the next good one is looked for.
"""

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from lavit_jax.data import bad
from lavit_jax.data.sources import files
from lavit_jax.data.sources.parts import Item

END_MARK = tarfile.RECORDSIZE + 2 * tarfile.BLOCKSIZE  # zeros at the end, at most
Member = tuple[int, int]  # first byte, bytes


def members(file: BinaryIO, size: int) -> Iterator[Item]:
  """Finds the members of a tar.

  Args:
    file: the tar.
    size: its bytes.

  Yields:
    Names with where their bytes are, or why they cannot be used; each with the bytes
    that header, content and filling take.
  """
  try:
    archive = tarfile.TarFile(fileobj=file, ignore_zeros=True, errors="surrogateescape")
  except Exception as error:  # tarfile lets ValueError and others through
    found = bad.BadRecord("no tar file", str(error)[:100])
    yield Item("byte 0", found, size, "surely")
    return
  expected = 0  # where the next header should stand
  while expected < size:
    try:
      info = archive.next()
    except Exception:  # a broken extended header: look for the next good one
      archive.offset = max(archive.offset, expected) + tarfile.BLOCKSIZE
      if archive.offset < size:
        file.seek(archive.offset)
        continue
      info = None
    if info is None:
      yield from _tail(file, expected, size)
      return
    if info.offset > expected:
      yield _hole(expected, info.offset)
    begin = max(info.offset, expected)
    expected = archive.offset = max(archive.offset, expected + tarfile.BLOCKSIZE)
    if not info.isdir():
      yield _member(info, size, min(expected, size) - begin)
  if expected == size:  # webdataset reads it without a word, and so it may be whole
    found = bad.LeftOut("a tar without end mark", "perhaps cut short")
    yield Item(f"byte {size}", found, 0, "likely")


def _hole(start: int, stop: int, cut: str = "") -> Item:
  detail = f"bytes {start} to {stop} hold no members"
  found = bad.BadRecord("a hole in a tar", detail)
  return Item(f"byte {start}", found, stop - start, cut)


def _tail(file: BinaryIO, start: int, size: int) -> Iterator[Item]:
  """Says whether the bytes behind the last member are more than an end mark."""
  file.seek(start)
  zeros = size - start <= END_MARK and not file.read().strip(b"\0")
  if not zeros:
    # Less than a header is left where a file was cut; more is damage of another kind.
    yield _hole(start, size, "surely" if size - start < tarfile.BLOCKSIZE else "likely")


def _member(info: tarfile.TarInfo, size: int, extent: int) -> Item:
  if not info.isreg() or info.issparse():
    return Item(info.name, bad.LeftOut("a link in a tar", f"{info.type!r}"), extent)
  if info.size < 0 or info.offset_data + info.size > size:
    found = bad.BadRecord("a tar cut short", f"{info.name} needs {info.size} bytes")
    return Item(info.name, found, extent, "surely")
  if info.size > files.MAX_BYTES:
    found = bad.LeftOut("a file too large", f"{info.name} of {info.size} bytes")
    return Item(info.name, found, extent)
  return Item(info.name, (info.offset_data, info.size), extent)
