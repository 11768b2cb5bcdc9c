"""Several sources as one: the items of the first, then those of the next."""

import bisect
import itertools
from collections.abc import Sequence
from typing import Any

from lavit_jax.data import pipeline


class Joined:
  """Random-access sources behind each other.

  The feed shuffles positions, so the items mix in proportion to the sources' lengths.

  Attributes:
    sources: the sources, e.g. `rows.Rows` of equal row length and image slots.
  """

  def __init__(self, sources: Sequence[Any]):
    self.sources = tuple(sources)
    self._ends = list(itertools.accumulate(map(len, self.sources)))

  def __len__(self) -> int:
    return self._ends[-1]

  def _at(self, index: int) -> tuple[Any, int]:
    number = bisect.bisect_right(self._ends, index)
    return self.sources[number], index - (self._ends[number - 1] if number else 0)

  def read(self, index: int) -> pipeline.Reading:
    """Reads an item as its own source does, with the reasons of replacements."""
    return pipeline.read(*self._at(index))

  def ids(self, index: int) -> list[str]:
    """Record ids of an item."""
    source, own = self._at(index)
    return source.ids(own)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self.read(index)[0]
