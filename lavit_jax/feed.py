"""From the host's feed to device arrays: each host loads the rows its devices hold."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from jax.sharding import Mesh

from lavit_jax import sharding
from lavit_jax.data import pack_plan, pipeline, records, rows
from lavit_jax.data.text import TextTokenizer
from lavit_jax.vocabulary import Vocabulary

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


def device_batches(
  source: Any, config: ml_collections.ConfigDict, mesh: Mesh, position: int
) -> Iterator[tuple[Batch, int]]:
  """Shuffled batches without end, from a position in rows.

  Args:
    source: random-access source of dicts of numpy arrays.
    config: stage config; gives batch size, shuffle seed and reader threads.
    mesh: the mesh.
    position: rows already used.

  Yields:
    A device batch and the position after it.
  """
  size = config.batch_size
  local = local_rows(mesh, size)
  host = pipeline.RowFeed(
    source,
    size,
    config.data.shuffle_seed,
    local,
    position,
    threads=config.data_threads,
  )
  try:
    told = set()
    for batch, after in host:
      for reason in host.bad.keys() - told:
        told.add(reason)
        logging.warning("replaced, %d by now: %s", host.bad.total(), reason)
      yield place(batch, local, size, mesh), after
  finally:
    host.close()


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
    items = [source[number * size + row] for row in local]
    yield place(pipeline.stack(items), local, size, mesh)


def first_batches(batches: Iterator[tuple[Batch, int]], count: int) -> Iterator[Batch]:
  """The first batches of a feed, which is closed afterwards."""
  try:
    for batch, _ in itertools.islice(batches, count):
      yield batch
  finally:
    batches.close()


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
  """Plans the rows of a prepared and tokenized folder.

  Args:
    folder: prepared shards, with the sidecar below `codes`.
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
  prepared = records.Records(folder)
  sidecar = records.Sidecar(f"{folder}/codes")
  records.check_sidecar(sidecar.manifest, checksum)
  made_with = sidecar.manifest["text_tokenizer"]
  if made_with != tokenizer.checksum:
    raise ValueError(
      f"expected a sidecar of the text tokenizer {tokenizer.checksum[:16]}, got one of"
      f" {made_with[:16]} in {folder}/codes; run python -m lavit_jax.tokenize again"
    )
  data = config.data
  plan = pack_plan.plan_rows(
    sidecar.lengths,
    dict(data.mixture),
    seed=config.seed,
    rows=num_rows,
    row_length=data.row_length,
    images_per_row=data.images_per_row,
    uncond_fraction=prompt_drop,
    name=lambda record: prepared[record]["id"],
  )
  return rows.Rows(
    plan, prepared, sidecar, plan.row_length, plan.images_per_row, image_size, words
  )
