"""Parquet files with the pictures' bytes in a column, or with texts alone.

The column is binary, or Hugging Face's struct of bytes and path. A file is cut at its
row groups.
"""

from collections.abc import Iterator

from lavit_jax.data import bad
from lavit_jax.data.sources import fields as naming
from lavit_jax.data.sources import parts as cutting

SUFFIXES = (".parquet", ".pq")
BATCH = 64  # rows decoded at a time: pictures are large
ANSWERS = ("conversations", "question", "answer")


def parts(inputs: list[str], records_per_part: int) -> list[cutting.Part]:
  """Cuts files into runs of row groups of about so many rows."""
  import pyarrow.parquet

  found, paths = [], cutting.expand(inputs, SUFFIXES)
  for name, path in zip(cutting.names(paths), paths):
    size, step, groups = path.stat().length, 1, 1
    try:
      with path.open("rb") as file:
        footer = pyarrow.parquet.ParquetFile(file).metadata
        groups = footer.num_row_groups
        step = max(1, records_per_part * groups // max(footer.num_rows, 1))
    except Exception:  # pyarrow raises many types; reading names and counts the file
      pass
    found += cutting.pieces(name, path, groups, step, size)
  return found


def read(
  part: cutting.Part, fields: naming.Fields
) -> Iterator[tuple[str, dict | bad.BadRecord]]:
  """Reads the rows of a part; see `parts`."""
  import pyarrow.parquet

  with cutting.open_input(part.path) as raw:
    try:
      file = pyarrow.parquet.ParquetFile(raw)
      names = file.schema_arrow.names
    except Exception as error:
      yield "footer", bad.BadRecord("a damaged parquet file", str(error)[:100])
      return
    wanted = {fields.image, fields.text, *naming.IMAGES, *naming.TEXTS, *naming.IDS}
    columns = [name for name in names if name in wanted.union(ANSWERS)]
    for group in range(part.start, part.stop):
      yield from _rows(file, group, columns, names, fields)


def _rows(file, group, columns, names, fields):
  """Yields the records of one row group."""
  import pyarrow

  number = 0
  try:
    for batch in file.iter_batches(BATCH, [group], columns=columns):
      for row in batch.to_pylist():
        key = naming.key_of(row, f"{group}.{number}")
        number += 1
        try:
          yield key, naming.record(row, fields, naming.encoded)
        except bad.BadRecord as error:
          yield key, error
  except (pyarrow.ArrowException, OSError) as error:
    rows = file.metadata.row_group(group).num_rows
    for lost in range(number, rows):
      yield f"{group}.{lost}", bad.BadRecord("a damaged row group", str(error)[:100])
