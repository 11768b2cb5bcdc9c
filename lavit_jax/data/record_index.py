"""The index of a prepared folder: what is known of its records without reading them."""

from collections.abc import Sequence

import numpy as np

from lavit_jax.data import bad, images


def row(record: dict, tasks: Sequence[str]) -> list[int]:
  """Returns what the index holds of a record: size of its picture, entries by task."""
  found, size = [entry["task"] for entry in record["texts"]], (0, 0)
  if record["image"]:
    try:
      size = images.upright_size(record["image"])
    except bad.BadRecord:
      pass  # whoever decodes it names it
  counts = [found.count(task) for task in tasks]
  return [bool(record["image"]), *counts, *size[::-1]]


def arrays(rows: list[list[int]]) -> dict[str, np.ndarray]:
  """Makes the index of N records: image bool[N], entries u16[N, 3], size i32[N, 2]."""
  table = np.array(rows, np.int64).reshape(-1, 6)
  return {
    "image": table[:, 0].astype(bool),
    "entries": np.minimum(table[:, 1:-2], 2**16 - 1).astype(np.uint16),
    "size": table[:, -2:].astype(np.int32),
  }
