"""From the host's feed to device arrays: each host loads the rows its devices hold."""

import contextlib
import functools
import itertools
import time
from collections.abc import Iterator
from typing import Any

import grain
import jax
import ml_collections
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from lavit_jax.core import sharding
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.data import pack_plan, pipeline, planned_rows, rows, skipping
from lavit_jax.data.text import TextTokenizer

Batch = dict[str, jax.Array]


def local_rows(mesh: Mesh, batch_size: int) -> list[int]:
  """Rows of the global batch that this host's devices hold, in order.

  Hosts whose devices share a row (tensor or sequence axes across hosts) all load it.
  """
  indices = sharding.batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  return sorted(
    {row for (rows,) in indices.values() for row in range(batch_size)[rows]}
  )


def place(
  batch: dict[str, np.ndarray], local: list[int], size: int, mesh: Mesh
) -> Batch:
  """Makes global arrays of `size` rows from the rows that this host has loaded."""
  spread = sharding.batch_sharding(mesh)
  at = {row: i for i, row in enumerate(local)}

  def array(value: np.ndarray) -> jax.Array:
    def piece(index):
      first = at[index[0].indices(size)[0]]
      return value[first : first + len(range(size)[index[0]])]

    return jax.make_array_from_callback((size, *value.shape[1:]), spread, piece)

  return {name: array(value) for name, value in batch.items()}


def own_rows(mesh: Mesh, batch_size: int) -> set[int]:
  """Rows that this host answers for: of the hosts that load a row, the lowest does."""
  indices = sharding.batch_sharding(mesh).devices_indices_map((batch_size,))
  lowest = {}
  for device, (held,) in indices.items():
    for row in range(batch_size)[held]:
      lowest[row] = min(lowest.get(row, device.process_index), device.process_index)
  return {row for row, process in lowest.items() if process == jax.process_index()}


class DeviceFeed:
  """Shuffled batches without end, on the devices: yields (batch, position after it).

  The host's Grain pipeline goes on to the devices: one thread stacks and places batches
  ahead of their use, others read the rows; the training thread takes what is ready.
  """

  def __init__(
    self,
    host: pipeline.RowFeed,
    mesh: Mesh,
    left_out: skipping.LeftOut = skipping.NOTHING,
    ahead: int = 2,
  ):
    """Starts the feed.

    Args:
      host: rows of this host, `local_rows` of the mesh; it counts rows that are used.
      mesh: the mesh.
      left_out: rows that are not; positions count them.
      ahead: batches held on the devices beside the one in use.
    """
    self._host, self._mesh, self._left_out = host, mesh, left_out
    self._own, self._told = own_rows(mesh, host.batch_size), set()
    self._waited, self._batches = 0.0, 0
    placed = grain.experimental.ThreadPrefetchIterDataset(
      host.batches.map(self._place), prefetch_buffer_size=ahead
    )
    self._iterator = iter(placed)

  def _place(self, element):
    batch, reasons = element
    rows, size = list(self._host.local_rows), self._host.batch_size
    return place(batch, rows, size, self._mesh), reasons

  def __iter__(self) -> Iterator[tuple[Batch, int]]:
    return self

  def __next__(self) -> tuple[Batch, int]:
    started = time.monotonic()
    batch, reasons = next(self._iterator)
    self._waited += time.monotonic() - started
    self._batches += 1
    used, bad = self._host.given(reasons), self._host.bad
    for reason in bad.keys() - self._told:
      self._told.add(reason)
      logging.warning("replaced, %d by now: %s", bad.total(), reason)
    return batch, self._left_out.position(used)

  @property
  def replaced(self) -> int:
    """Documents and rows that this host replaced because they were bad."""
    return sum(n for row, n in self._host.bad_rows.items() if row in self._own)

  def figures(self) -> dict[str, float]:
    """Metrics; with several hosts all must ask at the same step.

    Returns:
      Seconds that a step waited for its batch, the mean since last asked and the worst
      of all hosts; documents and rows replaced because they were bad, since the feed
      started, on all hosts.
    """
    found = np.array([self._waited / max(self._batches, 1), self.replaced])
    self._waited, self._batches = 0.0, 0
    if jax.process_count() > 1:
      found = multihost_utils.process_allgather(found)
    waits, replaced = found.reshape(-1, 2).T
    return {"data_wait": float(waits.max()), "replaced": float(replaced.sum())}

  def close(self) -> None:
    """Stops reading ahead."""
    self._iterator.close()
    self._host.close()


def device_batches(
  source: Any, config: ml_collections.ConfigDict, mesh: Mesh, position: int
) -> DeviceFeed:
  """Starts the feed of a stage.

  Args:
    source: random-access source of dicts of numpy arrays.
    config: stage config; gives batch size, shuffle seed and reader threads.
    mesh: the mesh.
    position: rows already used.

  Returns:
    The feed, from that position on.
  """
  size, left_out = config.batch_size, rows_left_out(config)
  rows, threads = local_rows(mesh, size), config.data_threads
  seed = config.data.shuffle_seed
  places = skipping.Order(pipeline.order(source, seed), left_out)
  used = left_out.used(position)
  host = pipeline.RowFeed(source, size, seed, rows, used, threads, places=places)
  return DeviceFeed(host, mesh, left_out)


def rows_left_out(config: ml_collections.ConfigDict) -> skipping.LeftOut:
  """The rows that a config leaves out."""
  return skipping.LeftOut(skipping.parse(config.data.skip))


def record_ids(
  source: Any, config: ml_collections.ConfigDict, position: int, order: Any = None
) -> Iterator[str]:
  """Record ids of the batch that begins at a position in rows, read one by one.

  Args:
    source: what the feed reads, with `ids`.
    config: stage config.
    position: in rows.
    order: positions in the source by position in the stream; `pipeline.order` if None.
  """
  left_out = rows_left_out(config)
  order = order or pipeline.order(source, config.data.shuffle_seed)
  order = skipping.Order(order, left_out)
  first = left_out.used(position)
  for row in range(first, first + config.batch_size):
    yield from source.ids(int(order[row]))


def check_held_out(source: Any, config: ml_collections.ConfigDict) -> None:
  """Refuses a held-out set that does not fill one batch."""
  if len(source) < config.batch_size:
    raise ValueError(
      f"evaluation needs at least one batch of {config.batch_size} held-out examples,"
      f" got {len(source)} in {config.data.eval}; prepare more or lower"
      " config.batch_size"
    )


def fixed_batches(
  source: Any, config: ml_collections.ConfigDict, mesh: Mesh
) -> Iterator[Batch]:
  """The first `eval_batches` batches of a source in its own order, always the same."""
  size = config.batch_size
  local = local_rows(mesh, size)
  for number in range(min(config.eval_batches, len(source) // size)):
    items = [pipeline.read(source, number * size + row)[0] for row in local]
    yield place(pipeline.stack(items), local, size, mesh)


def first_batches(batches: DeviceFeed, count: int) -> Iterator[Batch]:
  """The first batches of a feed, which is closed afterwards."""
  with contextlib.closing(batches):
    for batch, _ in itertools.islice(batches, count):
      yield batch


def packed_rows(
  folder: str,
  config: ml_collections.ConfigDict,
  words: Vocabulary,
  tokenizer: TextTokenizer,
  image_size: int,
  checksum: str,
  num_rows: int,
  prompt_drop: float,
) -> rows.Rows:
  """Plans the rows of a prepared and tokenized folder, or of several.

  Args:
    folder: prepared shards, with the sidecar below `codes`; see `data.corpora`.
    config: stage config; `data` gives row length, image slots, mixture and drop.
    words: the joint vocabulary.
    tokenizer: the text tokenizer that the sidecar must have used.
    image_size: side of the pictures.
    checksum: checksum of the visual tokenizer that the sidecar must have used.
    num_rows: rows to plan, 0 for one epoch of every source.
    prompt_drop: share of drawings that lose their text.

  Returns:
    The rows, by position.
  """
  data = config.data
  prepared, sidecar, settings = planned_rows.open_all(
    folder, dict(data.mixture), checksum, tokenizer.checksum
  )
  settings |= dict(
    seed=config.seed,
    rows=num_rows,
    row_length=data.row_length,
    images_per_row=data.images_per_row,
    epochs=data.plan_epochs,
    uncond_fraction=prompt_drop,
    long_pairs=data.long_pairs,
  )
  find = functools.partial(planned_rows.find_or_make, prepared, sidecar, settings)
  if jax.process_count() > 1:  # the first host makes the plan, the others read it
    if jax.process_index() == 0:
      find()
    multihost_utils.sync_global_devices("pack plan")
  plan = find()
  logging.info("pack plan of %s: %s", folder, pack_plan.summary(plan))
  return rows.Rows(
    plan, prepared, sidecar, plan.row_length, plan.images_per_row, image_size, words
  )
