"""JSON lines: pictures by path with captions, answers or conversations, or plain texts.

    {"image": "a/b.jpg", "caption": "..."}   also captions, file_name, text
    {"image": "b.jpg", "question": "...", "answer": "..."}
    {"image": "b.jpg", "conversations": [{"from": "human", "value": "..."}, ...]}
    {"text": "...", "meta": {...}}           RedPajama and its like

Files end in .jsonl, .json or .ndjson; with .gz added they are read whole by one worker.
"""

import gzip
import json
import os
from collections.abc import Iterator

from lavit_jax.data import bad
from lavit_jax.data.sources import fields as naming
from lavit_jax.data.sources import parts as cutting

PLAIN = (".jsonl", ".json", ".ndjson")
SUFFIXES = (*PLAIN, *(f"{suffix}.gz" for suffix in PLAIN))
SAMPLE = 1_000_000  # bytes that tell how long the lines of a file are


def parts(inputs: list[str], records_per_part: int) -> list[cutting.Part]:
  """Cuts files into ranges of bytes of about so many lines."""
  found = []
  paths = cutting.expand(inputs, SUFFIXES)
  for name, path in zip(cutting.names(paths), paths):
    size = path.stat().length
    step = size
    if not os.fspath(path).endswith(".gz"):
      with cutting.open_input(os.fspath(path)) as file:
        head = file.read(SAMPLE)
      step = records_per_part * len(head) // max(head.count(b"\n"), 1)
    root = os.path.dirname(os.fspath(path))
    found += cutting.pieces(name, path, size, max(step, 1), size, root)
  return found


def lines(part: cutting.Part) -> Iterator[tuple[int, bytes | bad.BadRecord]]:
  """Yields the lines that begin in a part's bytes, each with its place in the file."""
  with cutting.open_input(part.path) as raw:
    file = gzip.GzipFile(fileobj=raw) if part.path.endswith(".gz") else raw
    whole = file is not raw
    if part.start:
      file.seek(part.start - 1)
      file.readline()  # the line that began in the part before, or its line break
    while whole or file.tell() < part.stop:
      at = file.tell()
      try:
        line = file.readline(cutting.MAX_BYTES)
      except (OSError, EOFError) as error:  # gzip: damaged or cut short
        yield at, bad.BadRecord("a damaged gzip file", str(error))
        return
      if not line:
        return
      if len(line) == cutting.MAX_BYTES and not line.endswith(b"\n"):
        yield at, bad.BadRecord("a line too long", f"over {len(line)} bytes")
        while line and not line.endswith(b"\n"):
          line = file.readline(cutting.MAX_BYTES)
      elif line.strip():
        yield at, line


def read(
  part: cutting.Part, fields: naming.Fields
) -> Iterator[tuple[str, dict | bad.BadRecord]]:
  """Reads the lines of a part."""

  def load(value) -> bytes:
    if not isinstance(value, str) or not value:
      raise bad.BadRecord("a row without picture", f"got {str(value)[:50]!r} as path")
    return cutting.read_below(part.root, value)

  for at, line in lines(part):
    key = f"byte{at}"
    try:
      if isinstance(line, bad.BadRecord):
        raise line
      row = parse(line)
      key = naming.key_of(row, key)
      yield key, naming.record(row, fields, load)
    except bad.BadRecord as error:
      yield key, error


def parse(line: bytes) -> dict:
  """Parses one line; a BadRecord says what is wrong with it."""
  try:
    row = json.loads(line.decode("utf-8"))
  except UnicodeError as error:
    raise bad.BadRecord("a text that is not UTF-8", str(error)[:100]) from error
  except (ValueError, RecursionError) as error:
    raise bad.BadRecord("a broken line", str(error)[:100]) from error
  if not isinstance(row, dict):
    raise bad.BadRecord("a broken line", f"expected an object, got {str(row)[:50]!r}")
  return row
