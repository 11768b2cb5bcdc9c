"""Parquet files with the pictures' bytes in a column, or with texts alone.

The column is binary, or Hugging Face's struct of bytes and path. A file is cut at its
row groups.
"""

import functools
import os
from collections.abc import Iterator, Mapping

from lavit_jax.data import bad
from lavit_jax.data.sources import fields as naming
from lavit_jax.data.sources import files, inputs, jsonl
from lavit_jax.data.sources import parts as cutting
from lavit_jax.data.sources.parts import Item

SUFFIXES = (".parquet", ".pq")
BATCH = 64  # rows decoded at a time: pictures are large


def parts(
  patterns: list[str],
  records_per_part: int,
  known: Mapping[str, cutting.Known] = cutting.NOTHING,
) -> cutting.Listing:
  """Cuts files into runs of row groups of about so many rows."""
  import pyarrow.parquet

  paths, unused = inputs.expand(patterns, SUFFIXES)
  found = []
  named, copies = cutting.named(paths, known)
  for name, path, earlier in named:
    size, step, sizes = path.stat().length, 1, None
    try:
      with path.open("rb") as file:
        footer = pyarrow.parquet.ParquetFile(file).metadata
        sizes = [group_size(footer, i) for i in range(footer.num_row_groups)]
        step = max(1, records_per_part * len(sizes) // max(footer.num_rows, 1))
    except Exception:  # pyarrow raises many types; reading names and counts the file
      pass
    sizes = sizes or [size]
    bounds = cutting.bounds(len(sizes), step, earlier)
    pieces = [sum(sizes[a:b]) for a, b in zip(bounds, bounds[1:])]
    pieces[0] += max(size - sum(sizes), 0)  # the footer
    root = os.path.dirname(os.fspath(path))
    found += cutting.pieces(name, path, bounds, pieces, root)
  return cutting.Listing(found, unused + copies)


def group_size(footer, number: int) -> int:
  """Bytes of a row group in its file."""
  group = footer.row_group(number)
  columns = range(group.num_columns)
  return sum(group.column(i).total_compressed_size for i in columns)


def stamp(part: cutting.Part) -> str:
  """Tells the file from another."""
  return cutting.stamp_file(part.path)


def read(part: cutting.Part, fields: naming.Fields) -> Iterator[Item]:
  """Reads the rows of a part; see `parts`."""
  import pyarrow.parquet

  with files.open_input(part.path) as raw:
    try:
      file = pyarrow.parquet.ParquetFile(raw)
      names = file.schema_arrow.names
    except Exception as error:
      found = bad.BadRecord("a damaged parquet file", str(error)[:100])
      yield Item("footer", found, part.size, "surely")
      return
    usual = (*naming.IMAGES, *naming.TEXTS, *naming.IDS, *naming.ANSWERS)
    wanted = {fields.image, fields.text, *usual}
    wanted |= {*naming.ADDRESSES, *naming.MEASURES}
    asked = {name.lower() for name in fields.columns}
    asked |= {name.split(".")[0] for name in asked}
    columns = [name for name in names if name in wanted or name.lower() in asked]
    load = functools.partial(naming.encoded, root=part.root, below=fields.image_root)
    for group in range(part.start, part.stop):
      yield from _rows(file, group, columns, names, fields, load)


def _rows(file, group, columns, names, fields, load) -> Iterator[Item]:
  """Yields the records of one row group; each weighs its share of the group."""
  import pyarrow

  number, rows = 0, max(file.metadata.row_group(group).num_rows, 1)
  whole = group_size(file.metadata, group)
  size = lambda i: whole * (i + 1) // rows - whole * i // rows
  try:
    if not columns:
      other = bad.LeftOut("a row of other columns", ", ".join(names)[:100])
      for number in range(file.metadata.row_group(group).num_rows):
        yield Item(f"{group}.{number}", other, size(number))
      return
    for batch in file.iter_batches(BATCH, [group], columns=columns):
      for row in batch.to_pylist():
        key = f"{group}.{number}"
        number += 1
        yield jsonl.item_of(key, row, size(number - 1), fields, load)
  except (pyarrow.ArrowException, OSError) as error:
    for lost in range(number, rows):
      found = bad.BadRecord("a damaged row group", str(error)[:100])
      yield Item(f"{group}.{lost}", found, size(lost))
