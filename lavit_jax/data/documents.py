"""The documents of a mixture: what each source can give, in endless shuffled epochs.

A document is known by its entry, a position in the arrays of `records.Lengths`. The
order of an epoch is a permutation that is computed, not stored: beside the lengths a
source costs four bytes per document.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from lavit_jax.data import records

TEXT, IMAGE_TEXT, TEXT_IMAGE, UNCONDITIONAL = range(4)
SOURCES = ("caption", "answer", "text_image", "text")
CHUNK = 1 << 20  # documents handled at a time where all must be seen
ROUNDS = 6  # of the permutation; four are enough to look random
DOCUMENT = np.dtype(
  [
    ("record", "u4"),
    ("text", "u2"),  # entry of the record
    ("kind", "u1"),
    ("source", "u1"),  # position in SOURCES
    ("start", "u4"),  # first token, above 0 only in a cut text
    ("length", "u4"),  # tokens in the row
  ]
)


def mix64(values: np.ndarray) -> np.ndarray:
  """The splitmix64 finalizer: u64 -> well mixed u64, the same everywhere."""
  values = (values + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
  values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return values ^ (values >> np.uint64(31))


def _scramble(values: np.ndarray, sides: tuple[int, int], key: int) -> np.ndarray:
  """A Feistel network on pairs: a bijection of 0 .. sides[0] * sides[1] - 1."""
  pair = list(np.divmod(values, np.uint64(sides[1])))
  for number in range(ROUNDS):
    turned, size = number % 2, np.uint64(sides[number % 2])
    mixed = mix64(pair[1 - turned] ^ np.uint64((key + number) % 2**64))
    pair[turned] = pair[turned] + ((mixed >> np.uint64(32)) * size >> np.uint64(32))
    pair[turned] -= np.where(pair[turned] >= size, size, np.uint64(0))
  return pair[0] * np.uint64(sides[1]) + pair[1]


def permute(positions: np.ndarray, size: int, key: int) -> np.ndarray:
  """Applies a pseudo-random permutation of 0 .. size - 1 that takes no memory.

  A generalized Feistel network (Black and Rogaway, "Ciphers with arbitrary finite
  domains"), its few values beyond the size walked on to one within.

  Args:
    positions: u64[n] below `size`, which is at most 2**62.
    size: of the domain.
    key: names the permutation.

  Returns:
    u64[n].
  """
  side = math.isqrt(size - 1) + 1
  sides, key = (
    (side, -(-size // side)),
    int(mix64(np.array([key % 2**64], np.uint64))[0]),
  )
  values = _scramble(positions.astype(np.uint64), sides, key)
  while (beyond := values >= size).any():
    values[beyond] = _scramble(values[beyond], sides, key)
  return values


def drops_prompt(
  seed: int, epoch: int, documents: np.ndarray, fraction: float
) -> np.ndarray:
  """Chooses the drawing documents that lose their text in an epoch.

  Args:
    seed: seed of the plan.
    epoch: epoch of the source.
    documents: DOCUMENT[n].
    fraction: share to choose.

  Returns:
    bool[n], a function of (seed, epoch, record, entry) alone.
  """
  key = mix64(np.array([seed % 2**32 * 2**32 + epoch], np.uint64))
  name = documents["record"].astype(np.uint64) << np.uint64(16)
  value = mix64(key ^ mix64(name | documents["text"].astype(np.uint64)))
  return (value >> np.uint64(11)).astype(np.float64) * 2.0**-53 < fraction


def kind_of(source: str) -> tuple[str, int]:
  """Kind, one of SOURCES, and folder of a source `kind` or `kind@folder`."""
  kind, _, folder = source.partition("@")
  return kind, int(folder or 0)


def entries_of(
  lengths: records.Lengths, source: str, starts: Sequence[int] = (0,)
) -> np.ndarray:
  """Entries u32[n] that a source can give, in record order.

  Args:
    lengths: lengths of all records.
    source: a kind, or a kind of one folder.
    starts: number of the first record of each folder.
  """
  kind, folder = kind_of(source)
  task = records.TASKS.index("caption" if kind == "text_image" else kind)
  ends = [*starts[1:], len(lengths.count)]
  first, last = lengths.offsets[[starts[folder], ends[folder]]]
  found = []
  for start in range(first, last, CHUNK):
    part = slice(start, min(start + CHUNK, last))
    pick = lengths.task[part] == task
    if kind == "text_image":
      pick &= lengths.turns[part] == 1
    found.append((np.flatnonzero(pick) + start).astype(np.uint32))
  return np.concatenate(found) if found else np.zeros(0, np.uint32)


def documents_at(
  lengths: records.Lengths, source: str, entries: np.ndarray
) -> np.ndarray:
  """Whole documents DOCUMENT[n] of a source from its entries u32[n]."""
  source, _ = kind_of(source)
  record = np.searchsorted(lengths.offsets, entries, side="right") - 1
  text = lengths.text[entries].astype(np.int64)
  picture = lengths.count[record].astype(np.int64) + 2
  if source == "text":
    kind, length = TEXT, text + 2
  elif source == "text_image":
    kind, length = TEXT_IMAGE, text + picture
  else:
    kind, length = IMAGE_TEXT, text + picture + lengths.turns[entries]
  documents = np.zeros(len(entries), DOCUMENT)
  documents["record"], documents["length"] = record, length
  documents["text"] = entries - lengths.offsets[record]
  documents["kind"], documents["source"] = kind, SOURCES.index(source)
  return documents


def list_documents(lengths: records.Lengths, source: str) -> np.ndarray:
  """Lists every document DOCUMENT[n] that a source can give, in record order."""
  return documents_at(lengths, source, entries_of(lengths, source))


class Stream:
  """The documents of one source without end, each exactly once per shuffled epoch.

  Attributes:
    source: one of SOURCES.
    mean: mean length of a document, prompt drop included.
    taken: documents given out.
  """

  def __init__(
    self,
    lengths: records.Lengths,
    source: str,
    entries: np.ndarray,
    seed: int,
    uncond_fraction: float,
  ):
    """Starts the stream.

    Args:
      lengths: lengths of all records.
      source: one of SOURCES, or one of a folder.
      entries: u32[n], the documents of an epoch.
      seed: seed of order and prompt drop.
      uncond_fraction: share of text_image documents that lose their text.
    """
    self.lengths, self.source, self.entries = lengths, source, entries
    self.seed, self.taken = seed, 0
    self.kind, self.folder = kind_of(source)
    self.fraction = uncond_fraction if self.kind == "text_image" else 0.0
    total = 0.0
    for documents in self._all():
      whole = documents["length"].sum(dtype=np.float64)
      bare = self._bare(documents).sum(dtype=np.float64)
      total += whole - self.fraction * (whole - bare)
    self.mean = total / len(entries)

  def __len__(self) -> int:
    return len(self.entries)

  def _all(self) -> Iterator[np.ndarray]:
    for start in range(0, len(self), CHUNK):
      part = self.entries[start : start + CHUNK]
      yield documents_at(self.lengths, self.source, part)

  def _bare(self, documents: np.ndarray) -> np.ndarray:
    """Lengths without text."""
    return self.lengths.count[documents["record"]].astype(np.int64) + 2

  def _part(self, epoch: int, start: int, stop: int) -> np.ndarray:
    """Documents start .. stop of an epoch."""
    name = (self.seed, SOURCES.index(self.kind), epoch)
    name += (self.folder,) if self.folder else ()
    key = int(np.random.SeedSequence(name).generate_state(1, np.uint64)[0])
    order = permute(np.arange(start, stop, dtype=np.uint64), len(self), key)
    documents = documents_at(self.lengths, self.source, self.entries[order])
    if self.fraction:
      drop = drops_prompt(self.seed, epoch, documents, self.fraction)
      documents["kind"][drop] = UNCONDITIONAL
      documents["length"][drop] = self._bare(documents[drop])
    return documents

  def take(self, number: int) -> np.ndarray:
    """Returns the next documents, DOCUMENT[number]."""
    parts = [np.zeros(0, DOCUMENT)]
    while number > 0:
      epoch, start = divmod(self.taken, len(self))
      stop = min(len(self), start + number)
      parts.append(self._part(epoch, start, stop))
      self.taken += stop - start
      number -= stop - start
    return np.concatenate(parts)
