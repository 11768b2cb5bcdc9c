"""The pack plan: which documents share a training row, computed from lengths alone.

    lengths + weights + seed -> streams of documents in shuffled epochs
      -> windows of rows: deal pictures, then best-fit the rest, then cut long texts
      -> PackPlan (a few arrays, read by position)

In every window the documents with pixels are dealt first, the longest to the emptiest
row, at most M to a row. Documents without pixels then complete the rows: by pairs whose
lengths add up best, or, where the mixture has long texts, dealt likewise and the gaps
filled with pieces of these texts. What does not fit passes to the next window, so the
memory of planning is that of the lengths and of one window.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lavit_jax.data import mixture, packing, records
from lavit_jax.data.documents import CHUNK, DOCUMENT, IMAGE_TEXT, SOURCES

WINDOW = 512  # rows planned together
RESERVE = 256  # documents kept to choose from while rows are completed


@dataclasses.dataclass(frozen=True)
class PackPlan:
  """R rows of D documents, in row order.

  Attributes:
    row_offsets: i64[R + 1], documents of row r are row_offsets[r] .. row_offsets[r+1].
    documents: DOCUMENT[D].
    row_length: L, tokens of a row.
    images_per_row: M, image slots of a row.
    seed: seed of order and prompt drop.
    weights: asked share of tokens by source.
    skipped: documents left out because they are longer than a row.
    starts: number of the first record of each folder.
  """

  row_offsets: np.ndarray
  documents: np.ndarray
  row_length: int
  images_per_row: int
  seed: int
  weights: dict[str, float]
  skipped: int = 0
  starts: Sequence[int] = (0,)

  def __len__(self) -> int:
    return len(self.row_offsets) - 1

  def row(self, index: int) -> np.ndarray:
    """Returns the documents of one row."""
    return self.documents[self.row_offsets[index] : self.row_offsets[index + 1]]

  def figures(self) -> dict[str, float]:
    """Returns the filled share of tokens and image slots and the realized mixture."""
    several, kinds = len(self.starts) > 1, len(SOURCES)
    names = [
      f"{n}@{i}" if several else n for i, _ in enumerate(self.starts) for n in SOURCES
    ]
    pictures, by_source = 0, np.zeros(len(names))
    for start in range(0, len(self.documents), CHUNK):
      some = self.documents[start : start + CHUNK]
      pictures += int((some["kind"] == IMAGE_TEXT).sum())
      folder = np.searchsorted(self.starts, some["record"], side="right") - 1
      place = folder * kinds + some["source"]
      by_source += np.bincount(place, some["length"], len(names))
    total = by_source.sum()
    share = by_source / max(1, total)
    return {
      "tokens": float(total / (len(self) * self.row_length)),
      "image_slots": pictures / (len(self) * self.images_per_row),
      **{name: float(share[i]) for i, name in enumerate(names)},
    }


def summary(plan: PackPlan) -> str:
  """Describes how full a plan is and which mixture it realized, in one line."""
  figures = plan.figures()
  mixture = ", ".join(
    f"{name} {figures[name]:.3f} (asked {plan.weights[name]:.3f})"
    for name in figures
    if plan.weights.get(name)
  )
  return (
    f"{len(plan)} rows of {plan.row_length} tokens and {plan.images_per_row} image "
    f"slots: {len(plan.documents)} documents, tokens {figures['tokens']:.2%} full, "
    f"image slots {figures['image_slots']:.2%} full; {mixture}; "
    f"{plan.skipped} documents too long"
  )


class Planner:
  """Plans one window of rows after the other; its memory is that of one window.

  Attributes:
    streams: the documents by source.
    limits: documents that a source may give at most, where it is limited.
    left: DOCUMENT[n] drawn, but without a row yet.
    piece: DOCUMENT[0 or 1], what is left of the long text cut last.
  """

  def __init__(self, streams, weights, row_length, images_per_row, limits):
    self.row_length, self.images_per_row = row_length, images_per_row
    self.streams, self.weights, self.limits = streams, weights, limits
    self.rows = 0
    self.left = self.piece = np.zeros(0, DOCUMENT)
    pixels = [name for name in streams if mixture.has_pixels(name)]
    self.long = [name for name in streams if mixture.is_long(name)]
    self.cut_from = dict.fromkeys(self.long, 0)  # tokens drawn of each
    others = [n for n in streams if n not in pixels and n not in self.long]
    # The fillers complete the rows; the others are dealt by their share.
    self.fillers = [] if self.long else others or pixels
    self.reserve = sum(len(streams[n]) for n in self.fillers) // 4
    self.reserve = min(RESERVE, self.reserve)

  def _take(self, name: str, number: int) -> np.ndarray:
    """Draws documents of a source, up to its limit."""
    taken = self.streams[name].taken
    return self.streams[name].take(
      min(number, self.limits.get(name, number + taken) - taken)
    )

  def _due(self) -> np.ndarray:
    """Draws the documents due by now of every source that is dealt."""
    drawn = [self.left]
    for name, stream in self.streams.items():
      if name not in self.fillers and name not in self.long:
        due = self.weights[name] * self.row_length * self.rows / stream.mean
        drawn.append(self._take(name, int(due) - stream.taken))
    return np.concatenate(drawn)

  def _filling(self, space: int, slots: int) -> np.ndarray:
    """Draws documents for the room left and a reserve to choose from, mixed."""
    share = {n: self.weights[n] / self.streams[n].mean for n in self.fillers}
    total = sum(share.values())
    mean = sum(self.weights[n] for n in self.fillers) / total
    number = math.ceil(space / mean)
    if mixture.has_pixels(self.fillers[0]):
      number = min(number, slots)
    number += self.reserve if number else 0  # a reserve without room would pile up
    drawn = [self._take(n, round(number * share[n] / total)) for n in share]
    # Interleave the sources evenly, so that the oldest are a fair sample.
    place = np.concatenate([(np.arange(len(d)) + 0.5) / max(1, len(d)) for d in drawn])
    return np.concatenate(drawn)[np.argsort(place, kind="stable")]

  def _long_texts(self, missing: int) -> list[np.ndarray]:
    """Draws long texts of `missing` tokens, of each folder by its share so far."""
    total = sum(self.weights[name] for name in self.long)
    due = sum(self.cut_from.values()) + max(0, missing)
    return [
      self._of_tokens(name, self.weights[name] / total * due - self.cut_from[name])
      for name in self.long
    ]

  def _of_tokens(self, name: str, tokens: float) -> np.ndarray:
    """Draws long texts of a source until they have so many tokens, or none is left."""
    mean, drawn, short = self.streams[name].mean, [np.zeros(0, DOCUMENT)], tokens
    while short > 0 and len(more := self._take(name, math.ceil(short / mean))):
      drawn.append(more)
      short -= int(more["length"].sum())
    self.cut_from[name] += sum(int(some["length"].sum()) for some in drawn)
    return np.concatenate(drawn)

  def _deal(self, documents, space, slots) -> np.ndarray:
    """Deals documents, pictures first: they alone are bound to slots."""
    pixels, row_of = documents["kind"] == IMAGE_TEXT, np.zeros(len(documents), np.int64)
    for some, room in ((pixels, slots), (~pixels, np.full_like(slots, len(documents)))):
      row_of[some] = packing.deal(documents["length"][some], space, room)
    return row_of

  def _cut(self, texts, space) -> tuple[np.ndarray, np.ndarray]:
    """Fills the space with pieces of texts, as far as they go, and keeps the rest."""
    length, total = texts["length"].astype(np.int64), int(space.sum())
    filled = np.clip(length.sum() - (np.cumsum(space) - space), 0, space)
    text, first, size, row_of = packing.cut(length, filled).T
    pieces = texts[text]
    pieces["start"] += first.astype(np.uint32)
    pieces["length"] = size
    ends = np.cumsum(length)
    rest, over = texts[ends > total], (ends - total)[ends > total]
    if len(rest):  # of the first the part not used, the others whole
      used = rest["length"][0] - min(over[0], rest["length"][0])
      rest["start"][0] += used
      rest["length"][0] -= used
    self.piece = rest
    return pieces, row_of

  def _laid(self, parts, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorts (documents, rows) by row; what has no row is kept for the next window."""
    documents = np.concatenate([some for some, _ in parts])
    row_of = np.concatenate([rows for _, rows in parts])
    self.left = documents[row_of < 0]
    order = np.argsort(row_of, kind="stable")
    order = order[row_of[order] >= 0]
    return documents[order], np.bincount(row_of[order], minlength=size)

  def window(self, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Plans `size` rows: returns documents DOCUMENT[n] by row and i64[size] counts."""
    self.rows += size
    space = np.full(size, self.row_length, np.int64)
    slots = np.full(size, self.images_per_row, np.int64)
    dealt = self._due()
    parts = [(dealt, self._deal(dealt, space, slots))]
    if self.fillers:
      extra = self._filling(int(space.sum()), int(slots.sum()))
      pixels = mixture.has_pixels(self.fillers[0])
      room = slots if pixels else np.full(size, self.row_length)
      parts.append((extra, packing.complete(extra["length"], space, room)))
    else:
      missing = int(space.sum()) - int(self.piece["length"].sum())
      drawn = self._long_texts(missing)
      parts.append(self._cut(np.concatenate([self.piece, *drawn]), space))
    return self._laid(parts, size)

  def rest(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Plans rows for what is left, and for what its limit still grants a source."""
    texts = [self.piece]
    for name, limit in self.limits.items():
      drawn = self._take(name, limit)
      if name in self.long:
        texts.append(drawn)
      else:
        self.left = np.concatenate([self.left, drawn])
    self.piece = np.concatenate(texts)
    while len(self.left) or len(self.piece):
      tokens = int(self.left["length"].sum()) + int(self.piece["length"].sum())
      pictures = int((self.left["kind"] == IMAGE_TEXT).sum())
      size = max(-(-tokens // self.row_length), -(-pictures // self.images_per_row))
      size = min(size, WINDOW)
      space = np.full(size, self.row_length, np.int64)
      slots = np.full(size, self.images_per_row, np.int64)
      parts = [(self.left, self._deal(self.left, space, slots))]
      if len(self.piece):
        parts.append(self._cut(self.piece, space))
      documents, counts = self._laid(parts, size)
      yield documents, counts[counts > 0]


@dataclasses.dataclass(frozen=True)
class Windows:
  """A plan in the making: what a PackPlan says of itself, and its rows by window.

  Attributes:
    row_length: L.
    images_per_row: M.
    seed: seed of order and prompt drop.
    weights: asked share of tokens by source, of sum 1.
    skipped: documents left out because they are longer than a row.
    starts: number of the first record of each folder.
    windows: documents DOCUMENT[n] by row, and documents of each row i64[rows].
  """

  row_length: int
  images_per_row: int
  seed: int
  weights: dict[str, float]
  skipped: int
  starts: Sequence[int]
  windows: Iterator[tuple[np.ndarray, np.ndarray]]

  def facts(self) -> dict:
    """Everything but the rows, as PackPlan takes it."""
    return {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name != "windows"
    }


def plan_windows(
  lengths: records.Lengths,
  weights: dict[str, float],
  seed: int,
  rows: int,
  row_length: int,
  images_per_row: int = 0,
  epochs: float = 1.0,
  uncond_fraction: float = 0.1,
  long_pairs: str = "refuse",
  name: Callable[[int], str] = str,
  starts: Sequence[int] = (0,),
) -> Windows:
  """Plans rows of a mixture window by window; the same arguments give the same rows.

  Args:
    lengths: lengths of all records.
    weights: share of tokens by source, any of SOURCES or any `source@folder`; scaled
      to sum 1.
    seed: seed of order and prompt drop.
    rows: number of rows; 0 for as many as show each document of the source that lasts
      longest exactly `epochs` times, the others as often as their share asks.
    row_length: L.
    images_per_row: M; 0 chooses it from the mixture. Too few slots lower the share of
      captions and answers.
    epochs: used where rows is 0.
    uncond_fraction: share of text_image documents that lose their text.
    long_pairs: "refuse" or "skip" documents with a picture that are longer than a row;
      texts are cut.
    name: gives the id of a record, for messages.
    starts: number of the first record of each folder.

  Returns:
    The plan; its windows can be read once.
  """
  asked = mixture.normalized(weights)
  streams, skipped = mixture.streams(
    lengths, asked, row_length, seed, uncond_fraction, long_pairs, name, starts
  )
  means = {source: stream.mean for source, stream in streams.items()}
  slots = images_per_row or mixture.image_slots(asked, means, row_length)
  fitted = mixture.fit_slots(asked, means, row_length, slots)
  split = mixture.split_text(fitted, streams)
  need = {n: s.mean * len(s) / split[n] for n, s in streams.items()}
  limits, number = {}, rows
  if not rows:
    number = max(1, int(epochs * max(need.values()) / row_length))
    longest = [n for n in need if need[n] > (1 - 1e-6) * max(need.values())]
    limits = {n: math.ceil(epochs * len(streams[n])) for n in longest}
  planner = Planner(streams, split, row_length, slots, limits)

  def windows():
    for start in range(0, number, WINDOW):
      yield planner.window(min(WINDOW, number - start))
    if not rows:
      yield from planner.rest()

  fixed = (row_length, slots, seed, asked, skipped, list(starts))
  return Windows(*fixed, windows())


def plan_rows(*args, **kwargs) -> PackPlan:
  """Plans rows in memory; takes what `plan_windows` takes."""
  planned = plan_windows(*args, **kwargs)
  documents, counts = zip(*planned.windows)
  return PackPlan(
    row_offsets=np.concatenate([[0], np.cumsum(np.concatenate(counts))]),
    documents=np.concatenate(documents),
    **planned.facts(),
  )
