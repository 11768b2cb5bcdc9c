"""A TensorFlow dataset in array_record files, read without TensorFlow.

The input is a built dataset's folder, with an optional split:
`~/tensorflow_datasets/coco_captions/2014/1.1.0:train`.
"""

import functools
import os
from collections.abc import Iterator, Mapping

from lavit_jax.data import bad
from lavit_jax.data.sources import fields as naming
from lavit_jax.data.sources import jsonl
from lavit_jax.data.sources import parts as cutting
from lavit_jax.data.sources.parts import Item


@functools.lru_cache(4)
def _source(path: str):
  """Opens `FOLDER:SPLIT`, with its bytes; pictures stay encoded."""
  import tensorflow_datasets as tfds

  folder, _, split = path.rpartition(":")
  try:
    builder = tfds.builder_from_directory(folder)
    skip = {
      name: tfds.decode.SkipDecoding()
      for name, feature in builder.info.features.items()
      if isinstance(feature, tfds.features.Image)
    }
    source = builder.as_data_source(split=split, decoders=skip or None)
    return source, builder.info.splits[split].num_bytes or len(source)
  except Exception as error:  # it raises many types, all about the folder
    raise ValueError(
      f"expected a TFDS folder with array_record files, got {folder} with the split"
      f" {split!r} ({type(error).__name__}: {str(error)[:200]}); build it with"
      " file_format='array_record'"
    ) from error


def parts(
  patterns: list[str],
  records_per_part: int,
  known: Mapping[str, cutting.Known] = cutting.NOTHING,
) -> cutting.Listing:
  """Cuts splits into ranges of positions."""
  found = []
  for given in patterns:
    head, mark, tail = given.rpartition(":")
    path, split = (head, tail) if mark and "/" not in tail else (given, "train")
    path = os.path.abspath(os.path.expanduser(path))
    source = f"{path}:{split}"
    steps = [step for step in path.split("/") if step][-3:]
    earlier = known.get(source, cutting.Known("-".join([*steps, split]), ()))
    number, size = len(_source(source)[0]), _source(source)[1]
    bounds = cutting.bounds(number, records_per_part, earlier.bounds)
    sizes = [
      size * b // number - size * a // number for a, b in zip(bounds, bounds[1:])
    ]
    found += cutting.pieces(earlier.name, source, bounds, sizes)
  return cutting.Listing(found, [])


def stamp(part: cutting.Part) -> str:
  """Tells a split from another by its numbers."""
  source, size = _source(part.path)
  return f"{len(source)} records, {size} bytes"


def read(part: cutting.Part, fields: naming.Fields) -> Iterator[Item]:
  """Reads the examples of a part; see `parts`."""
  source, number = _source(part.path)[0], part.stop - part.start
  for position in range(part.start, part.stop):
    at = position - part.start
    size = part.size * (at + 1) // number - part.size * at // number
    try:
      row = source[position]
    except Exception as error:  # a damaged file: array_record raises many types
      row = bad.BadRecord("a damaged shard", str(error)[:100])
    yield jsonl.item_of(str(position), row, size, fields, naming.encoded)
