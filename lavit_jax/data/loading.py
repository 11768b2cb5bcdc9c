"""Records ahead of the device: read, decoded and spelled by threads, in batches.

record -> u8[size, size, 3], noise id, text ids      (threads)
-> u8[B, size, size, 3], u32[B]                      (one batch, ready to go)
"""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from lavit_jax.data import bad, images, items, records

AHEAD = 3  # batches


@dataclasses.dataclass(frozen=True)
class Loaded:
  """One record with its picture decoded.

  Attributes:
    name: its id.
    picture: u8[size, size, 3], None without one.
    texts: entries of text ids.
    error: why the record cannot be used, or None.
  """

  name: str
  picture: np.ndarray | None
  texts: list[dict]
  error: bad.BadRecord | None = None


@dataclasses.dataclass(frozen=True)
class Batch:
  """Consecutive records of one shard.

  Attributes:
    shard: number of the shard.
    loaded: up to B records.
    pixels: u8[B, size, size, 3], one shape for all batches; zero without a picture.
    noise_ids: u32[B].
  """

  shard: int
  loaded: list[Loaded]
  pixels: np.ndarray
  noise_ids: np.ndarray


def load(record: dict, size: int, spell: Callable[[str], list[int]]) -> Loaded:
  """Decodes the picture and spells the texts of a record."""
  picture = None
  if record["image"]:
    try:
      picture = images.decode(record["image"], size)
    except bad.BadRecord as error:
      return Loaded(record["id"], None, [], error)
  texts = [
    {
      "task": entry["task"],
      "turns": [
        [spell(words) if words else [] for words in turn] for turn in entry["turns"]
      ],
    }
    for entry in record["texts"]
  ]
  return Loaded(record["id"], picture, texts)


def batches(
  prepared: records.Records,
  numbers: Iterable[int],
  batch_size: int,
  size: int,
  spell: Callable[[str], list[int]],
  threads: int,
) -> Iterator[Batch]:
  """Yields the records of shards in order, decoded ahead of their use.

  Args:
    prepared: the records.
    numbers: shards to read.
    batch_size: B.
    size: edge of a picture.
    spell: text to ids; called from several threads.
    threads: threads that read and decode.
  """
  pool = concurrent.futures.ThreadPoolExecutor(threads)
  starts = np.cumsum([0, *(s["count"] for s in prepared.manifest["shards"])])

  def one(index: int) -> Loaded:
    try:
      record = prepared[index]
    except bad.BadRecord as error:  # its id is lost with it
      return Loaded("{}#{}".format(*prepared.place(index)), None, [], error)
    return load(record, size, spell)

  def asked():
    for number in numbers:
      positions = range(int(starts[number]), int(starts[number + 1]))
      for at in range(0, len(positions), batch_size):
        yield number, [pool.submit(one, i) for i in positions[at : at + batch_size]]

  try:
    ahead, coming = collections.deque(), asked()
    while True:
      ahead.extend(next for _, next in zip(range(AHEAD - len(ahead)), coming))
      if not ahead:
        return
      number, futures = ahead.popleft()
      loaded = [future.result() for future in futures]
      yield _stack(number, loaded, batch_size, size)
  finally:
    pool.shutdown(wait=False, cancel_futures=True)


def _stack(number, loaded, batch_size, size) -> Batch:
  """Fills the arrays of one batch; the rest of a short one stays zero."""
  pixels = np.zeros((batch_size, size, size, 3), np.uint8)
  noise_ids = np.zeros(batch_size, np.uint32)
  for i, item in enumerate(loaded):
    if item.picture is not None:
      pixels[i], noise_ids[i] = item.picture, items.noise_id(item.picture)
  return Batch(number, loaded, pixels, noise_ids)
