"""Encodings of texts that repeat, such as prompts, in a bounded number of bytes."""

import collections
import sys
import threading
from collections.abc import Callable

CAPACITY = 64 * 2**20  # bytes
PER_ID = 40  # bytes of an id in a list, with its place
LARGEST = 64  # a text that takes more than this part of the capacity is not kept


class Remembered:
  """A text encoder that keeps what it encoded last; threads may share it.

  Attributes:
    encode: text to ids.
    capacity: bytes that texts and ids may take together.
    held: bytes that they take.
  """

  def __init__(self, encode: Callable[[str], list[int]], capacity: int = CAPACITY):
    self.encode, self.capacity, self.held = encode, capacity, 0
    self._known: collections.OrderedDict[str, list[int]] = collections.OrderedDict()
    self._lock = threading.Lock()

  def __call__(self, text: str) -> list[int]:
    """Ids of a text; the list is shared and must not be changed."""
    with self._lock:
      if text in self._known:
        self._known.move_to_end(text)
        return self._known[text]
    ids = self.encode(text)
    size = _size(text, ids)
    if size > self.capacity // LARGEST:
      return ids
    with self._lock:
      if text not in self._known:
        self._known[text] = ids
        self.held += size
      while self.held > self.capacity:
        self.held -= _size(*self._known.popitem(last=False))
    return ids


def _size(text: str, ids: list[int]) -> int:
  return sys.getsizeof(text) + PER_ID * (len(ids) + 4)
