"""Rows through a program in batches of one size.

No row's result then depends on how many come with it, on this host or on others:
another size would be another program, which rounds otherwise.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def in_batches(function: Callable, size: int, *arrays: np.ndarray) -> Any:
  """Applies a batched function to padded parts of at least one row.

  Args:
    function: arrays of `size` rows -> a tree of arrays of `size` rows.
    size: rows per call; the last rows are repeated up to it.
    arrays: equally many rows each.

  Returns:
    The tree of numpy arrays, with a row for each row.
  """
  found = []
  for start in range(0, len(arrays[0]), size):
    parts = [array[start : start + size] for array in arrays]
    count = len(parts[0])
    out = function(*(_padded(part, size) for part in parts))
    found.append(jax.tree.map(lambda x, n=count: np.asarray(x)[:n], out))
  return jax.tree.map(lambda *x: np.concatenate(x), *found)


def _padded(array: np.ndarray, size: int) -> np.ndarray:
  """Repeats the last row up to `size` rows."""
  return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])
