"""The feed: rows of a random-access source in shuffled epochs, as stacked batches.

The whole state is one integer, the position in rows of the global stream. Row p of the
stream is the same on every host and for every batch size, so a run resumes exactly on
other hosts, devices and batch sizes.
"""

import collections
import concurrent.futures
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from lavit_jax.data import images, records

MAX_BAD = 100  # unreadable items in a row before the feed gives up
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


class RowFeed:
  """Batches of a random-access source without end: yields (batch, position after it).

  Attributes:
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
    """
    rows = range(batch_size) if local_rows is None else local_rows
    if len(source) < 1 or not all(0 <= row < batch_size for row in rows):
      raise ValueError(
        f"expected a source with items and local rows below the batch size "
        f"{batch_size}, got {len(source)} items and rows {list(rows)}; fix the sharding"
      )
    self.source, self.batch_size, self.local_rows = source, batch_size, tuple(rows)
    self.order = order(source, seed)
    self.pool = concurrent.futures.ThreadPoolExecutor(threads)
    self.prefetch, self.ahead, self.pending = prefetch, position, collections.deque()
    self.bad, self.bad_rows = collections.Counter(), collections.Counter()

  def read(self, position: int) -> Reading:
    """Reads one row of the stream: the item and the reasons of its replacements."""
    return read(self.source, int(self.order[position]))

  def _submit(self) -> None:
    rows = [self.pool.submit(self.read, self.ahead + row) for row in self.local_rows]
    self.ahead += self.batch_size
    self.pending.append((rows, self.ahead))

  def __iter__(self) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    return self

  def __next__(self) -> tuple[dict[str, np.ndarray], int]:
    while len(self.pending) <= self.prefetch:
      self._submit()
    rows, position = self.pending.popleft()
    results = [row.result() for row in rows]
    for row, (_, reasons) in zip(self.local_rows, results):
      self.bad.update(reasons)
      self.bad_rows[row] += len(reasons)
    return stack([item for item, _ in results]), position

  def close(self) -> None:
    """Stops reading ahead."""
    self.pool.shutdown(wait=False, cancel_futures=True)
