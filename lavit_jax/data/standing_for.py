"""Folders that stand for prepared records elsewhere, and hold codes of their own.

`tokenize --target=CODES` makes one: for data that cannot be written, or that several
visual tokenizers share. Whatever reads a prepared folder may be given it instead.
"""

import os

from etils import epath

from lavit_jax.data import shards

POINTER = "records.json"


def make(target: epath.PathLike, folder: epath.PathLike, fingerprint: str) -> None:
  """Makes `target` stand for the records in `folder`, of this fingerprint."""
  target = shards.make_folder(target)
  facts = {"records": os.path.abspath(folder), "fingerprint": fingerprint}
  if (target / shards.MANIFEST).exists():
    raise ValueError(
      f"expected a folder for codes, got prepared records in {target}; give another"
      " --target, or none for codes beside the records"
    )
  if (target / POINTER).exists() and shards.read_json(target / POINTER) != facts:
    raise ValueError(
      f"expected {target} to be new or to stand for {folder}, got one that stands for"
      " other records; give another --target"
    )
  shards.write_json(target / POINTER, facts)


def records_of(folder: epath.PathLike) -> epath.PathLike:
  """The folder whose records this one stands for, itself where it has its own."""
  pointer = epath.Path(folder) / POINTER
  if (epath.Path(folder) / shards.MANIFEST).exists() or not pointer.exists():
    return folder
  return shards.read_json(pointer)["records"]
