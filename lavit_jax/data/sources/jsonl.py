"""JSON lines: pictures by path with captions, answers or conversations, or plain texts.

    {"image": "a/b.jpg", "caption": "..."}   also captions, file_name, text
    {"image": "b.jpg", "question": "...", "answer": "..."}
    {"image": "b.jpg", "conversations": [{"from": "human", "value": "..."}, ...]}
    {"messages": [{"role": "user", "content": ...}, ...], "images": ["b.jpg"]}
    {"text": "...", "meta": {...}}           RedPajama and its like

Files end in .jsonl, .json or .ndjson, and may hold one list instead of lines. With .gz,
.bz2, .xz or .zst added they are read whole by one worker.
"""

import functools
import json
import lzma
import os
from collections.abc import Iterator, Mapping
from typing import BinaryIO

from etils import epath

from lavit_jax.data import bad
from lavit_jax.data.sources import compressed, files, inputs, json_list
from lavit_jax.data.sources import fields as naming
from lavit_jax.data.sources import parts as cutting
from lavit_jax.data.sources.parts import Item

PLAIN = (".jsonl", ".json", ".ndjson")
SUFFIXES = (*PLAIN, *(f"{end}{packed}" for end in PLAIN for packed in cutting.PACKED))
SAMPLE = 1_000_000  # bytes that tell how long the lines of a file are


def parts(
  patterns: list[str],
  records_per_part: int,
  known: Mapping[str, cutting.Known] = cutting.NOTHING,
) -> cutting.Listing:
  """Cuts files into ranges of bytes of about so many lines."""
  paths, unused = inputs.expand(patterns, SUFFIXES)
  found = []
  named, copies = cutting.named(paths, known)
  for name, path, earlier in named:
    size = path.stat().length
    if not size:
      unused.append(Item(name, bad.LeftOut("an empty file")))
      continue
    bounds = _bounds(path, size, records_per_part, earlier)
    sizes = [b - a for a, b in zip(bounds, bounds[1:])]
    root = os.path.dirname(os.fspath(path))
    found += cutting.pieces(name, path, bounds, sizes, root)
  return cutting.Listing(found, unused + copies)


def _bounds(
  path: epath.Path, size: int, records_per_part: int, earlier: tuple[int, ...]
) -> list[int]:
  if compressed.packed(os.fspath(path)):
    return [0, size]
  with files.open_input(os.fspath(path)) as file:
    if json_list.begins(file):
      return json_list.bounds(file, records_per_part, size)
    file.seek(0)
    head = file.read(SAMPLE)
  step = records_per_part * len(head) // max(head.count(b"\n"), 1)
  return cutting.bounds(size, max(step, 1), earlier)


def stamp(part: cutting.Part) -> str:
  """Tells the bytes of a part from others; the pictures it names are not looked at."""
  return cutting.stamp_file(part.path, part.start, part.stop)


def rows(part: cutting.Part) -> Iterator[Item]:
  """Yields the rows that begin in a part's bytes, keys their places in the file."""
  with files.open_input(part.path) as raw:
    if not compressed.packed(part.path) and (first := json_list.begins(raw)):
      found = json_list.elements(raw, max(part.start, first), part.stop)
    elif compressed.packed(part.path):
      found = _unpacked(part, raw)
    else:
      found = lines(raw, part.start, part.stop)
    for item in found:
      if not isinstance(item.found, bad.BadRecord):
        try:
          item = Item(item.key, parse(item.found), item.size)
        except bad.BadRecord as error:
          item = Item(item.key, error, item.size)
      yield item


def _unpacked(part: cutting.Part, raw: BinaryIO) -> Iterator[Item]:
  """The rows of a compressed file; what lies behind damage is weighed by its bytes."""
  file, at = compressed.plain(part.path, raw), 0
  if part.path.lower().removesuffix(".gz").endswith(".json"):
    file, damage = compressed.unpacked(part.path, raw)  # a list needs to be sought in
    with file:
      first = json_list.begins(file)
      size = file.seek(0, 2)
      file.seek(0)
      yield from json_list.elements(file, first, size) if first else lines(file)
    if damage is not None and not first:
      yield _damage(part, raw, size, damage)
    return
  try:
    for item in lines(file):
      at += item.size
      yield item
  except (OSError, EOFError, lzma.LZMAError) as error:
    yield _damage(part, raw, at, error)


def _damage(part: cutting.Part, raw: BinaryIO, at: int, error: Exception) -> Item:
  used = max(raw.tell(), 1)
  found, cut = compressed.failure(error, f"behind byte {at}")
  left = max(part.size - used, 0) * max(at, 1) / used
  return Item(f"byte{at}", found, round(left) or 1, cut)


def lines(file: BinaryIO, start: int = 0, stop: int | None = None) -> Iterator[Item]:
  """Yields the lines that begin in [start, stop), or all of them."""
  if start:
    file.seek(start - 1)
    file.readline()  # the line that began in the part before, or its line break
  at = file.tell() if stop is not None else 0
  while stop is None or at < stop:
    line = file.readline(files.MAX_BYTES)
    if not line:
      return
    size, found = len(line), line
    if len(line) == files.MAX_BYTES and not line.endswith(b"\n"):
      found = bad.BadRecord("a line too long", f"over {len(line)} bytes")
      while line and not line.endswith(b"\n"):
        line = file.readline(files.MAX_BYTES)
        size += len(line)
    if isinstance(found, bad.BadRecord) or found.strip():
      yield Item(f"byte{at}", found, size)
    at += size


def read(part: cutting.Part, fields: naming.Fields) -> Iterator[Item]:
  """Reads the rows of a part."""
  load = functools.partial(files.picture, part.root, fields.image_root)
  for item in rows(part):
    yield item_of(item.key, item.found, item.size, fields, load, item.cut)


def item_of(key, row, size, fields, load, cut="") -> Item:
  """Makes the item of a row: its record, or why there is none."""
  if isinstance(row, bad.BadRecord):
    return Item(key, row, size, cut)
  key = naming.key_of(row, key)
  try:
    found = naming.record(row, fields, load)
  except bad.BadRecord as error:
    return Item(key, error, size)
  if fields.columns:
    found["row"] = row
  return Item(key, found, size)


def parse(line: bytes) -> dict:
  """Parses one row; a BadRecord says what is wrong with it."""
  try:
    row = json.loads(line.decode("utf-8-sig"))
  except UnicodeError as error:
    raise bad.BadRecord("a text that is not UTF-8", str(error)[:100]) from error
  except (ValueError, RecursionError) as error:
    raise bad.BadRecord("a broken line", str(error)[:100]) from error
  if not isinstance(row, dict):
    raise bad.BadRecord("a broken line", f"expected an object, got {str(row)[:50]!r}")
  return row
