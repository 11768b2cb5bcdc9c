"""The elements of one long JSON list, found without reading it whole.

LLaVA's files are such lists of a gigabyte and more. Only strings and brackets matter to
find where an element ends; parsing it is left to whoever reads it.
"""

import re
from collections.abc import Iterator
from typing import BinaryIO

from lavit_jax.data import bad
from lavit_jax.data.sources import files
from lavit_jax.data.sources.parts import Item

TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["\[\]{}]', re.DOTALL)
CHUNK = 1 << 20
BLANK = b" \t\r\n"
MARK = b"\xef\xbb\xbf"  # byte order


def begins(file: BinaryIO) -> int:
  """Where the first element of a list may stand; 0 where the file is no list."""
  file.seek(0)
  head = file.read(1000)
  file.seek(0)
  text = head.removeprefix(MARK).lstrip(BLANK)
  return len(head) - len(text) + 1 if text.startswith(b"[") else 0


def elements(file: BinaryIO, start: int, stop: int) -> Iterator[Item]:
  """Yields the bytes of each element that begins in [start, stop).

  Args:
    file: the list.
    start: where an element begins, or the first may stand.
    stop: where the next part begins, or the end of the file.

  Yields:
    Items of bytes, key the place; a BadRecord where the list ends too early.
  """
  file.seek(start)
  base, buffer, at = start, file.read(CHUNK), 0  # place of the buffer, and in it
  depth, begin = 0, -1
  while True:
    token = TOKEN.search(buffer, at)
    if token is None or token[0] == b'"':  # no more, or a string that goes on
      more = file.read(CHUNK)
      if not more or len(buffer) > files.MAX_BYTES:  # there was no closing bracket
        yield from _short(base + (begin if begin >= 0 else len(buffer)), stop)
        return
      if begin < 0 and base + (token.start() if token else len(buffer)) >= stop:
        return
      first = begin if begin >= 0 else (token.start() if token else len(buffer))
      at = (token.start() if token else len(buffer)) - first
      buffer, base = buffer[first:] + more, base + first
      begin = 0 if begin >= 0 else -1
      continue
    at = token.end()
    sign = token[0][:1]
    if depth == 0 and begin < 0:
      if sign in b"]}" or base + token.start() >= stop:
        return  # the end of the list, or the next part
      begin = token.start()
    depth += (sign in b"[{") - (sign in b"]}")
    if depth == 0:
      place = base + begin
      yield Item(f"byte{place}", buffer[begin:at], at - begin)
      begin = -1


def _short(place: int, stop: int) -> Iterator[Item]:
  found = bad.BadRecord("a list cut short", "the file ends before its list")
  yield Item(f"byte{place}", found, max(stop - place, 0), "surely")


def bounds(file: BinaryIO, step: int, size: int) -> list[int]:
  """Places that cut a list in parts of `step` elements."""
  found = [0]
  for number, item in enumerate(elements(file, begins(file), size)):
    if number and number % step == 0 and not isinstance(item.found, bad.BadRecord):
      found.append(int(item.key.removeprefix("byte")))
  return [*found, size]
