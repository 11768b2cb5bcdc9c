"""Rows of the stream that a run leaves out, e.g. those that drove it into a spike.

A position stays what it is without them, the number of a row of the whole stream, so
that rows can be left out, or taken back, whenever a run is resumed.
"""

from collections.abc import Sequence

Span = tuple[int, int]  # first row left out, first one behind them


def parse(text: str) -> list[Span]:
  """Reads "FIRST:LAST,FIRST:LAST": each leaves out the rows from FIRST to LAST - 1.

  Returns:
    Spans in order, none touching another; [] of "".
  """
  spans: list[Span] = []
  for part in text.split(",") if text else []:
    first, colon, last = part.strip().partition(":")
    if not (colon and first.isdigit() and last.isdigit() and int(first) < int(last)):
      raise ValueError(
        f"expected rows to leave out as FIRST:LAST,FIRST:LAST, got {text!r}; a spike's"
        " record in metrics.jsonl names the position at which its batch begins"
      )
    spans.append((int(first), int(last)))
  joined: list[Span] = []
  for first, last in sorted(spans):
    if joined and first <= joined[-1][1]:
      first, last = joined[-1][0], max(joined.pop()[1], last)
    joined.append((first, last))
  return joined


class LeftOut:
  """Translates between positions and the count of rows that are used."""

  def __init__(self, spans: Sequence[Span]):
    """Takes spans as `parse` makes them."""
    self.spans = tuple(spans)

  def used(self, position: int) -> int:
    """Rows before a position that are not left out."""
    return position - sum(
      min(position, last) - first for first, last in self.spans if first < position
    )

  def position(self, used: int) -> int:
    """Where the row stands that has so many used ones before it."""
    for first, last in self.spans:
      if first > used:
        break
      used += last - first
    return used


NOTHING = LeftOut(())


class Order:
  """An order of the stream without the rows left out."""

  def __init__(self, order, left_out: LeftOut):
    self._order, self._left_out = order, left_out

  def __getitem__(self, used: int):
    return self._order[self._left_out.position(used)]
