"""Inception features of picture files, from which the usual FID is computed."""

import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from lavit_jax.inference import batching, pictures
from lavit_jax.models import inception
from lavit_jax.weights import inception as weights

# float32[N, 2048] of N files, squashed to a side in pixels first.
Extractor = Callable[[Sequence[pathlib.Path], int], np.ndarray]


def extractor(file: str, batch_size: int) -> Extractor:
  """Loads the network of a weight file.

  Args:
    file: `pt_inception-2015-12-05-6726825d.pth`, or its tensors as safetensors.
    batch_size: pictures per program call, the last ones padded.
  """
  params = jax.device_put(weights.read(file))
  run = jax.jit(
    lambda params, rows: inception.Inception().apply({"params": params}, rows)
  )

  def features(paths, side):
    found, own = [], functools.partial(run, params)
    for first in range(0, len(paths), batch_size):  # few pictures in memory at a time
      rows = pictures.stack(paths[first : first + batch_size], side)
      found.append(batching.in_batches(own, batch_size, rows))
    return np.concatenate(found)

  return features
