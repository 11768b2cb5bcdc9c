"""Webdataset tars as img2dataset writes them: KEY.jpg, KEY.txt, KEY.json together.

The tar is indexed first and read by position, so members may stand in any order, and a
damaged header costs its own members only. Nothing is ever extracted.
"""

import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from lavit_jax.data import bad
from lavit_jax.data.sources import fields as naming
from lavit_jax.data.sources import folder, jsonl
from lavit_jax.data.sources import parts as cutting

SUFFIXES = (".tar",)
TEXTS = (".txt", ".caption")
JSON = ".json"
END_MARK = tarfile.RECORDSIZE + 2 * tarfile.BLOCKSIZE  # zeros at the end, at most
Member = tuple[str, int, int]  # name, first byte, bytes


def parts(inputs: list[str], records_per_part: int) -> list[cutting.Part]:
  """Makes one part of every tar, whatever its number of records."""
  del records_per_part
  found, paths = [], cutting.expand(inputs, SUFFIXES)
  for name, path in zip(cutting.names(paths), paths):
    if not os.fspath(path).lower().endswith(SUFFIXES):
      raise ValueError(
        f"expected uncompressed tars ending in .tar, got {path}; unpack compressed ones"
        " with gunzip first"
      )
    size = path.stat().length
    found.append(cutting.Part(name, os.fspath(path), 0, size, size))
  return found


def members(file: BinaryIO, size: int) -> Iterator[tuple[str, Member | bad.BadRecord]]:
  """Finds the members of a tar, and what is wrong with it.

  Args:
    file: the tar.
    size: its bytes.

  Yields:
    A name and where its bytes are, or why they cannot be used.
  """
  try:
    archive = tarfile.TarFile(fileobj=file, ignore_zeros=True, errors="surrogateescape")
  except Exception as error:  # tarfile lets ValueError and others through
    yield "byte 0", bad.BadRecord("no tar file", str(error)[:100])
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
      detail = f"bytes {expected} to {info.offset} hold no members"
      yield f"byte {expected}", bad.BadRecord("a hole in a tar", detail)
    expected = archive.offset = max(archive.offset, expected + tarfile.BLOCKSIZE)
    found = _member(info, size)
    if found is not None:
      yield info.name, found
  if expected == size:
    yield f"byte {size}", bad.BadRecord("a tar cut short", "no end mark")


def _tail(file: BinaryIO, start: int, size: int) -> Iterator[tuple[str, bad.BadRecord]]:
  """Says whether the bytes behind the last member are more than an end mark."""
  file.seek(start)
  zeros = size - start <= END_MARK and not file.read().strip(b"\0")
  if not zeros:
    detail = f"bytes {start} to {size} hold no members"
    yield f"byte {start}", bad.BadRecord("a hole in a tar", detail)


def _member(info: tarfile.TarInfo, size: int) -> Member | bad.BadRecord | None:
  if info.isdir():
    return None
  if not info.isreg() or info.issparse():
    return bad.BadRecord("a link in a tar", f"of type {info.type!r}")
  if cutting.escapes(info.name):
    return bad.BadRecord("a path outside its folder", info.name)
  if info.size < 0 or info.offset_data + info.size > size:
    return bad.BadRecord("a tar cut short", f"{info.name} needs {info.size} bytes")
  if info.size > cutting.MAX_BYTES:
    return bad.BadRecord("a file too large", f"{info.name} of {info.size} bytes")
  return info.name, info.offset_data, info.size


def read(
  part: cutting.Part, fields: naming.Fields
) -> Iterator[tuple[str, dict | bad.BadRecord]]:
  """Reads the pairs of a tar; see `parts`."""
  with cutting.open_input(part.path) as file:
    groups: dict[str, dict[str, Member]] = {}
    for name, found in members(file, part.size):
      key, suffix = os.path.splitext(name)
      suffix = suffix.lower()
      if isinstance(found, bad.BadRecord):
        yield name, found
      elif suffix not in (*folder.PICTURES, *TEXTS, JSON):
        yield name, bad.BadRecord(bad.OTHER_KIND)
      elif suffix in groups.setdefault(key, {}):
        yield name, bad.BadRecord("a duplicate key", "the tar holds the name twice")
      else:
        groups[key][suffix] = found
    for key, group in groups.items():
      try:
        yield key, _record(file, group, fields)
      except bad.BadRecord as error:
        yield key, error


def _record(file: BinaryIO, group: dict[str, Member], fields: naming.Fields) -> dict:
  """Makes the record of one key; the text file goes before the JSON."""

  def content(suffix: str) -> bytes:
    _, start, size = group[suffix]
    file.seek(start)
    return file.read(size)

  pictures = [suffix for suffix in folder.PICTURES if suffix in group]
  texts = [suffix for suffix in TEXTS if suffix in group]
  if not pictures:
    raise bad.BadRecord("a text without picture", f"only {', '.join(group)}")
  if len(pictures) > 1:
    raise bad.BadRecord("a duplicate key", f"{', '.join(pictures)} share it")
  if texts:
    entries = naming.captions(content(texts[0]))
  elif JSON in group:
    entries = naming.entries(jsonl.parse(content(JSON)), fields)
  else:
    raise bad.BadRecord("a picture without text", f"only {', '.join(group)}")
  return {"image": content(pictures[0]), "texts": entries}
