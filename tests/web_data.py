"""Small data sets as the web has them: tars, folders, JSON lines, parquet files."""

import io
import json
import pathlib
import tarfile

import numpy as np
from PIL import Image


def jpeg(seed: int, width: int = 40, height: int = 30, form: str = "JPEG") -> bytes:
  """A smooth random picture."""
  coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
  image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
  buffer = io.BytesIO()
  image.save(buffer, form)
  return buffer.getvalue()


def caption(seed: int) -> str:
  return f"picture number {seed} — with ünïcode"


def tar(path: pathlib.Path, members: list[tuple[str, bytes]]) -> pathlib.Path:
  """Writes members in the given order."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as archive:
    for name, data in members:
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return path


def pair(seed: int, key: str | None = None) -> list[tuple[str, bytes]]:
  """The members of one good record, as img2dataset writes them."""
  key = key or f"{seed:05d}"
  facts = {"caption": caption(seed), "url": "u", "key": key, "status": "success"}
  return [
    (f"{key}.jpg", jpeg(seed)),
    (f"{key}.txt", caption(seed).encode()),
    (f"{key}.json", json.dumps(facts).encode()),
  ]


def tars(folder: pathlib.Path, count: int, records: int, start: int = 0) -> str:
  """Writes `count` tars of good records; returns the pattern."""
  for i in range(count):
    first = start + i * records
    members = [m for seed in range(first, first + records) for m in pair(seed)]
    tar(folder / f"{i:05d}.tar", members)
  return str(folder / "*.tar")


def lines(path: pathlib.Path, rows: list) -> pathlib.Path:
  """Writes JSON lines; bytes rows are written as they are."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("wb") as file:
    for row in rows:
      file.write(row if isinstance(row, bytes) else json.dumps(row).encode())
      file.write(b"\n")
  return path


def parquet(path: pathlib.Path, columns: dict, rows_per_group: int) -> pathlib.Path:
  """Writes columns with small row groups."""
  import pyarrow
  import pyarrow.parquet

  path.parent.mkdir(parents=True, exist_ok=True)
  table = pyarrow.table(columns)
  pyarrow.parquet.write_table(table, path, row_group_size=rows_per_group)
  return path
