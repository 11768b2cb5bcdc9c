"""The feed: rows of a random-access source in shuffled epochs, as stacked batches.

The whole state is one integer, the position in rows of the global stream. Row p of the
stream is the same on every host and for every batch size, so a run resumes exactly on
other hosts, devices and batch sizes.
"""

import collections
import functools
import sys
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from lavit_jax.data import images, records

MAX_BAD = 100  # unreadable items in a row before the feed gives up
Batch = dict[str, np.ndarray]
Reading = tuple[dict[str, np.ndarray], list[str]]  # an item, reasons of replacements


def stack(items: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Stacks items of equal shapes into one batch."""
  return {name: np.stack([item[name] for item in items]) for name in items[0]}


class Map:
  """A source whose items are a function of another source's items and of chance.

  Attributes:
    source: anything with `len` and `[]`.
    function: (item, numpy Generator) -> dict of arrays; ValueError marks a bad item.
    seed: seed of the generators.
    visits: times that every item occurs in an epoch, each with its own generator.
  """

  def __init__(self, source, function: Callable, seed: int = 0, visits: int = 1):
    self.source, self.function = source, function
    self.seed, self.visits = seed, visits

  def __len__(self) -> int:
    return self.visits * len(self.source)

  def ids(self, index: int) -> list[str]:
    """Record ids of an item."""
    return self.source.ids(int(index) % len(self.source))

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng([self.seed, int(index)])
    return self.function(self.source[int(index) % len(self.source)], generator)


class Pictures:
  """The records that have a picture, by position."""

  def __init__(self, prepared: records.Records):
    self.records = prepared
    self.positions = np.flatnonzero(prepared.image)
    if not len(self.positions):
      raise ValueError(
        f"expected records with pictures, got none in {prepared.folder}; add sources"
      )

  def __len__(self) -> int:
    return len(self.positions)

  def ids(self, index: int) -> list[str]:
    """Record id of a picture."""
    return [self[index]["id"]]

  def __getitem__(self, index: int) -> dict:
    return self.records[self.positions[index]]


class RecordImages:
  """Decoded pictures: {"image": u8[H, W, 3]}."""

  def __init__(self, prepared: records.Records, image_size: int):
    self.pictures, self.image_size = Pictures(prepared), image_size

  def __len__(self) -> int:
    return len(self.pictures)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    return {"image": images.decode(self.pictures[index]["image"], self.image_size)}


def choose_text(record: dict, task: str, generator: np.random.Generator) -> dict:
  """Chooses one text entry of a task from a record."""
  entries = [entry for entry in record["texts"] if entry["task"] == task]
  if not entries:
    raise ValueError(
      f"expected a {task} in record {record['id']!r}, got none; prepare it with one"
    )
  return entries[generator.integers(len(entries))]


def read(source, index: int) -> Reading:
  """Reads an item of a source, or in place of a bad one the next good one.

  Args:
    source: anything with `len` and `[]`, where ValueError marks a bad item. It may have
      `read(index)` with the result of this function, to replace less than an item.
    index: position in the source; the choice depends on nothing else.

  Returns:
    The item, and for each bad one met the reason.
  """
  replacing = getattr(source, "read", lambda index: (source[index], []))
  reasons = []
  for _ in range(MAX_BAD):
    try:
      item, inner = replacing(index)
      return item, reasons + inner
    except ValueError as error:
      reasons.append(str(error))
    index = (index + 1) % len(source)
  raise ValueError(
    f"expected readable items, got {MAX_BAD} bad ones in a row, the last: "
    f"{reasons[-1]}; check the prepared records"
  )


def order(source, seed: int):
  """Positions in a source by position in the stream; every epoch has its own order."""
  return grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()


class HostRows:
  """This host's rows of every batch from a position on, as places in the source.

  Attributes:
    order: place in the source by position in the stream.
    batch_size: rows of the global batch.
    rows: those of this host, in order.
    position: rows of the stream before the first batch.
  """

  def __init__(self, order, batch_size: int, rows: tuple[int, ...], position: int):
    self.order, self.batch_size = order, batch_size
    self.rows, self.position = rows, position

  def __len__(self) -> int:
    return (sys.maxsize - self.position) // self.batch_size * len(self.rows)

  def __getitem__(self, index: int) -> int:
    batch, row = divmod(int(index), len(self.rows))
    return int(self.order[self.position + batch * self.batch_size + self.rows[row]])


def batch_of(readings: Sequence[Reading]) -> tuple[Batch, list[list[str]]]:
  """Stacks what was read, beside the reasons of the replacements by row."""
  items, reasons = zip(*readings)
  return stack(items), list(reasons)


class RowFeed:
  """Batches of a random-access source without end: yields (batch, position after it).

  A Grain pipeline: the order -> this host's rows -> read, by threads ahead -> batches.
  It starts where it is told; its state is the position after the last batch.

  Attributes:
    batches: the pipeline; its elements are those of `batch_of`.
    position: rows of the stream that are used.
    bad: Counter of reasons why items were replaced, over the batches given out.
    bad_rows: Counter of the same by row of the global batch.
  """

  def __init__(
    self,
    source,
    batch_size: int,
    seed: int,
    local_rows: Sequence[int] | None = None,
    position: int = 0,
    threads: int = 8,
    prefetch: int = 2,
    places=None,
  ):
    """Starts the feed; nothing is read before the first batch is asked for.

    Args:
      source: anything with `len` and `[]`, items dicts of numpy arrays.
      batch_size: rows of the global batch.
      seed: seed of the order; every epoch has its own.
      local_rows: rows of the global batch that this host loads, in order; None for all.
      position: rows of the stream that are already used.
      threads: threads that read items.
      prefetch: batches read ahead.
      places: place in the source by position in the stream, where it is not `order`.
    """
    rows = range(batch_size) if local_rows is None else local_rows
    if len(source) < 1 or not all(0 <= row < batch_size for row in rows):
      raise ValueError(
        f"expected a source with items and local rows below the batch size "
        f"{batch_size}, got {len(source)} items and rows {list(rows)}; fix the sharding"
      )
    self.batch_size, self.local_rows, self.position = batch_size, tuple(rows), position
    places = order(source, seed) if places is None else places
    own = HostRows(places, batch_size, self.local_rows, position)
    ahead = (prefetch + 1) * len(self.local_rows)
    options = grain.ReadOptions(min(threads, ahead), ahead)
    readings = grain.MapDataset.source(own).map(functools.partial(read, source))
    readings = readings.to_iter_dataset(options)
    self.batches = readings.batch(len(self.local_rows), batch_fn=batch_of)
    self._iterator = iter(self.batches)
    self.bad, self.bad_rows = collections.Counter(), collections.Counter()

  def __iter__(self) -> Iterator[tuple[Batch, int]]:
    return self

  def __next__(self) -> tuple[Batch, int]:
    batch, reasons = next(self._iterator)
    return batch, self.given(reasons)

  def given(self, reasons: list[list[str]]) -> int:
    """Counts a batch that is given out: the position after it."""
    for row, own in zip(self.local_rows, reasons):
      self.bad.update(own)
      self.bad_rows[row] += len(own)
    self.position += self.batch_size
    return self.position

  def close(self) -> None:
    """Stops reading ahead."""
    self._iterator.close()
