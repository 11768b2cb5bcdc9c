"""A TensorFlow dataset in array_record files, read without TensorFlow.

The input is a built dataset's folder, with an optional split:
`~/tensorflow_datasets/coco_captions/2014/1.1.0:train`.
"""

import functools
import os
from collections.abc import Iterator

from lavit_jax.data import bad
from lavit_jax.data.sources import fields as naming
from lavit_jax.data.sources import parts as cutting


@functools.lru_cache(4)
def _source(path: str):
  """Opens `FOLDER:SPLIT`; pictures stay encoded."""
  import tensorflow_datasets as tfds

  folder, _, split = path.rpartition(":")
  try:
    builder = tfds.builder_from_directory(folder)
    skip = {
      name: tfds.decode.SkipDecoding()
      for name, feature in builder.info.features.items()
      if isinstance(feature, tfds.features.Image)
    }
    return builder.as_data_source(split=split, decoders=skip or None)
  except Exception as error:  # it raises many types, all about the folder
    raise ValueError(
      f"expected a TFDS folder with array_record files, got {folder} with the split"
      f" {split!r} ({type(error).__name__}: {str(error)[:200]}); build it with"
      " file_format='array_record'"
    ) from error


def parts(inputs: list[str], records_per_part: int) -> list[cutting.Part]:
  """Cuts splits into ranges of positions."""
  found = []
  for given in inputs:
    head, mark, tail = given.rpartition(":")
    path, split = (head, tail) if mark and "/" not in tail else (given, "train")
    path = os.path.expanduser(path).rstrip("/")
    steps = [step for step in path.split("/") if step][-3:]
    name = "-".join([*steps, split])
    source = f"{path}:{split}"
    number = len(_source(source))
    found += cutting.pieces(name, source, number, records_per_part, number)
  return found


def read(
  part: cutting.Part, fields: naming.Fields
) -> Iterator[tuple[str, dict | bad.BadRecord]]:
  """Reads the examples of a part; see `parts`."""
  source = _source(part.path)
  for position in range(part.start, part.stop):
    key = str(position)
    try:
      row = source[position]
      yield key, naming.record(row, fields, naming.encoded)
    except bad.BadRecord as error:
      yield key, error
