"""The pack plan: which documents share a training row, computed from lengths alone.

    lengths + weights + seed -> streams of documents in shuffled epochs
      -> windows of rows: deal pictures, then best-fit the rest, then cut long texts
      -> PackPlan (a few arrays, read by position)

In every window the documents with pixels are dealt first, the longest to the emptiest
row, at most M to a row. Documents without pixels then complete the rows: by pairs whose
lengths add up best, or, where the mixture has long texts, dealt likewise and the gaps
filled with pieces of these texts. What does not fit passes to the next window.
"""

import dataclasses
import json
import math
from collections.abc import Callable

import numpy as np
from etils import epath

from lavit_jax.data import packing, records, shards
from lavit_jax.data.documents import (
  DOCUMENT,
  IMAGE_TEXT,
  SOURCES,
  Stream,
  list_documents,
)

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
  """

  row_offsets: np.ndarray
  documents: np.ndarray
  row_length: int
  images_per_row: int
  seed: int
  weights: dict[str, float]
  skipped: int = 0

  def __len__(self) -> int:
    return len(self.row_offsets) - 1

  def row(self, index: int) -> np.ndarray:
    """Returns the documents of one row."""
    return self.documents[self.row_offsets[index] : self.row_offsets[index + 1]]

  def figures(self) -> dict[str, float]:
    """Returns the filled share of tokens and image slots and the realized mixture."""
    length = self.documents["length"].astype(np.int64)
    pictures = int((self.documents["kind"] == IMAGE_TEXT).sum())
    by_source = np.bincount(self.documents["source"], length, len(SOURCES))
    share = by_source / max(1, length.sum())
    return {
      "tokens": float(length.sum() / (len(self) * self.row_length)),
      "image_slots": pictures / (len(self) * self.images_per_row),
      **{name: float(share[i]) for i, name in enumerate(SOURCES)},
    }

  def save(self, path: epath.PathLike) -> None:
    """Writes the plan as one .npz file, atomically."""
    facts = dataclasses.asdict(self)
    arrays = {name: facts.pop(name) for name in ("row_offsets", "documents")}
    shards.write_arrays(path, facts=np.array(json.dumps(facts)), **arrays)


def load(path: epath.PathLike) -> PackPlan:
  """Reads a plan that `PackPlan.save` wrote."""
  arrays = shards.read_arrays(path)
  return PackPlan(**json.loads(str(arrays.pop("facts"))), **arrays)


def summary(plan: PackPlan) -> str:
  """Describes how full a plan is and which mixture it realized, in one line."""
  figures = plan.figures()
  mixture = ", ".join(
    f"{name} {figures[name]:.3f} (asked {plan.weights[name]:.3f})"
    for name in SOURCES
    if plan.weights.get(name)
  )
  return (
    f"{len(plan)} rows of {plan.row_length} tokens and {plan.images_per_row} image "
    f"slots: {len(plan.documents)} documents, tokens {figures['tokens']:.2%} full, "
    f"image slots {figures['image_slots']:.2%} full; {mixture}; "
    f"{plan.skipped} documents too long"
  )


class Cutter:
  """Cuts long texts to the space that rows have left, without losing a token."""

  def __init__(self, stream: Stream, least: int):
    self.stream, self.least = stream, least  # least: tokens of the smallest piece
    self.text, self.start = None, 0

  def fill(self, space: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns pieces DOCUMENT[n] and their rows i64[n]; reduces `space` in place."""
    pieces, row_of = [], []
    for row in range(len(space)):
      while space[row] >= self.least:
        if self.text is None:
          self.text, self.start = self.stream.take(1)[0], 0
        rest = int(self.text["length"]) - self.start
        take = min(int(space[row]), rest)
        if 0 < rest - take < self.least:  # leave no crumb behind
          take = rest - self.least
        if take < self.least:
          break
        piece = self.text.copy()
        piece["start"], piece["length"] = self.start, take
        pieces.append(piece)
        row_of.append(row)
        space[row] -= take
        self.start += take
        if take == rest:
          self.text = None
    return np.array(pieces, DOCUMENT), np.array(row_of, np.int64)


# Planning


def image_slots(
  weights: dict[str, float], means: dict[str, float], row_length: int
) -> int:
  """Chooses M from the mixture and the mean lengths of its documents.

  Args:
    weights: share of tokens by source, of sum 1.
    means: mean length by source.
    row_length: L.

  Returns:
    M, at least 1; up to 5 % of the pictures asked for may stay out.
  """
  pictures = [name for name in ("caption", "answer") if name in weights]
  wanted = sum(weights[name] * row_length / means[name] for name in pictures)
  # Where pictures alone must fill the rows, short ones need slots to spare.
  spare = 1.15 if len(pictures) == len(weights) else 0.95
  return max(1, math.ceil(spare * wanted))


def fit_weights(
  weights: dict[str, float], means: dict[str, float], row_length: int, slots: int
) -> dict[str, float]:
  """Lowers the share of pictures to what the slots of a row can hold."""
  pictures = [name for name in ("caption", "answer") if name in weights]
  wanted = sum(weights[name] * row_length / means[name] for name in pictures)
  share = sum(weights[name] for name in pictures)
  if wanted <= slots or len(pictures) == len(weights):
    return weights
  lower = slots / wanted
  raised = (1.0 - share * lower) / (1.0 - share)
  return {n: w * (lower if n in pictures else raised) for n, w in weights.items()}


class Planner:
  """Plans one window of rows after the other; its memory is that of one window."""

  def __init__(self, streams, weights, row_length, images_per_row):
    self.row_length, self.images_per_row = row_length, images_per_row
    self.streams, self.weights = streams, weights
    self.dealt = {name: 0 for name in streams}
    self.rows = 0
    self.left = np.zeros(0, DOCUMENT)  # drawn, but without a row yet
    self.cutter = None
    if "text_long" in streams:
      self.cutter = Cutter(streams["text_long"], max(2, min(8, row_length // 16)))
    pixels = [name for name in streams if name in ("caption", "answer")]
    others = [n for n in streams if n not in pixels and n != "text_long"]
    # The fillers complete the rows; the others are dealt by their share.
    self.fillers = [] if self.cutter else others or pixels
    self.reserve = sum(len(streams[n].documents) for n in self.fillers) // 4
    self.reserve = min(RESERVE, self.reserve)

  def _dealt(self) -> np.ndarray:
    """Draws the documents due by now of every source that is dealt."""
    drawn = [self.left]
    for name, stream in self.streams.items():
      if name in self.fillers or name == "text_long":
        continue
      due = self.weights[name] * self.row_length * self.rows / stream.mean
      drawn.append(stream.take(int(due) - self.dealt[name]))
      self.dealt[name] = int(due)
    return np.concatenate(drawn)

  def _filling(self, space: int, slots: int) -> np.ndarray:
    """Draws documents for the room left and a reserve to choose from, mixed."""
    share = {n: self.weights[n] / self.streams[n].mean for n in self.fillers}
    total = sum(share.values())
    mean = sum(self.weights[n] for n in self.fillers) / total
    number = math.ceil(space / mean)
    if "text_image" not in self.fillers and "text" not in self.fillers:
      number = min(number, slots)
    number += self.reserve if number else 0  # a reserve without room would pile up
    drawn = [self.streams[n].take(round(number * share[n] / total)) for n in share]
    # Interleave the sources evenly, so that the oldest are a fair sample.
    place = np.concatenate([(np.arange(len(d)) + 0.5) / max(1, len(d)) for d in drawn])
    return np.concatenate(drawn)[np.argsort(place, kind="stable")]

  def window(self, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Plans `size` rows: returns documents DOCUMENT[n] by row and i64[size] counts."""
    self.rows += size
    space = np.full(size, self.row_length, np.int64)
    slots = np.full(size, self.images_per_row, np.int64)
    dealt = self._dealt()
    row_of = packing.deal(dealt["length"], dealt["kind"] == IMAGE_TEXT, space, slots)
    left, parts = [dealt[row_of < 0]], [(dealt, row_of)]
    if self.fillers:
      extra = self._filling(int(space.sum()), int(slots.sum()))
      pixels = bool((extra["kind"] == IMAGE_TEXT).any())
      row_of = packing.complete(extra["length"], pixels, space, slots)
      left.append(extra[row_of < 0])
      parts.append((extra, row_of))
    if self.cutter:
      parts.append(self.cutter.fill(space))
    self.left = np.concatenate(left)
    documents = np.concatenate([documents for documents, _ in parts])
    row_of = np.concatenate([rows for _, rows in parts])
    order = np.argsort(row_of, kind="stable")
    order = order[row_of[order] >= 0]
    return documents[order], np.bincount(row_of[order], minlength=size)


def _normalized(weights: dict[str, float]) -> dict[str, float]:
  """Checks a mixture and scales it to sum 1."""
  unknown = sorted(set(weights) - set(SOURCES))
  positive = {n: float(weights[n]) for n in SOURCES if weights.get(n, 0) > 0}
  if unknown or not positive or min(weights.values()) < 0:
    raise ValueError(
      f"expected shares of tokens for {SOURCES}, got {dict(weights)}; name only these "
      "sources and give at least one a positive share"
    )
  return {name: share / sum(positive.values()) for name, share in positive.items()}


def _streams(lengths, weights, row_length, seed, uncond_fraction, on_long, name):
  """Makes the stream of every source and counts the documents left out."""
  streams, skipped = {}, 0
  for source in weights:
    documents = list_documents(lengths, source)
    long = documents["length"] > row_length
    if source == "text":  # a text is cut only where it is long beside a row
      long = documents["length"] > max(row_length // 4, 16)
    elif long.any():
      if on_long == "refuse":
        first = documents[long][0]
        raise ValueError(
          f"expected {source} documents of at most {row_length} tokens, got "
          f"{first['length']} in record {name(int(first['record']))} and "
          f"{int(long.sum()) - 1} others; set a longer row or skip them"
        )
      skipped += int(long.sum())
    if not len(documents) or (source != "text" and long.all()):
      raise ValueError(
        f"expected documents for the source {source!r}, got none of at most "
        f"{row_length} tokens; drop it from the mixture or prepare such records"
      )
    groups = {source: documents[~long]}
    if source == "text":
      groups["text_long"] = documents[long]
    for group, chosen in groups.items():
      if len(chosen):
        bare = lengths.count[chosen["record"]].astype(np.int64) + 2
        streams[group] = Stream(chosen, bare, seed, uncond_fraction)
  return streams, skipped


def _split_text(weights, streams):
  """Divides the share of text between short and long texts by their tokens."""
  groups = [name for name in ("text", "text_long") if name in streams]
  size = {n: float(streams[n].documents["length"].sum()) for n in groups}
  split = {n: weights["text"] * size[n] / sum(size.values()) for n in groups}
  return {name: w for name, w in weights.items() if name != "text"} | split


def plan_rows(
  lengths: records.Lengths,
  weights: dict[str, float],
  seed: int,
  rows: int,
  row_length: int,
  images_per_row: int = 0,
  epochs: float = 1.0,
  uncond_fraction: float = 0.1,
  on_long: str = "refuse",
  name: Callable[[int], str] = str,
) -> PackPlan:
  """Plans rows of a mixture; the same arguments give the same plan.

  Args:
    lengths: lengths of all records.
    weights: share of tokens by source, any of SOURCES; scaled to sum 1.
    seed: seed of order and prompt drop.
    rows: number of rows; 0 for as many as show every document `epochs` times.
    row_length: L.
    images_per_row: M; 0 chooses it from the mixture. Too few slots lower the share of
      captions and answers.
    epochs: used where rows is 0.
    uncond_fraction: share of text_image documents that lose their text.
    on_long: "refuse" or "skip" documents with a picture that are longer than a row.
    name: gives the id of a record, for messages.

  Returns:
    The plan.
  """
  asked = _normalized(weights)
  streams, skipped = _streams(
    lengths, asked, row_length, seed, uncond_fraction, on_long, name
  )
  means = {source: stream.mean for source, stream in streams.items()}
  slots = images_per_row or image_slots(asked, means, row_length)
  weights = fit_weights(asked, means, row_length, slots)
  weights = _split_text(weights, streams)
  need = [s.mean * len(s.documents) / weights[n] for n, s in streams.items()]
  rows = rows or max(1, math.ceil(epochs * max(need) / row_length))
  planner = Planner(streams, weights, row_length, slots)
  windows = [planner.window(min(WINDOW, rows - r)) for r in range(0, rows, WINDOW)]
  counts = np.concatenate([count for _, count in windows])
  return PackPlan(
    row_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    documents=np.concatenate([documents for documents, _ in windows]),
    row_length=row_length,
    images_per_row=slots,
    seed=seed,
    weights=asked,
    skipped=skipped,
  )
