"""COCO's own caption files: one record a picture, with all its captions.

    captions_train2017.json   {"images": [{"id", "file_name"}],
                               "annotations": [{"image_id", "caption"}]}

Pictures lie in --image_root, at file_name below it or anywhere its last steps fit;
without the flag, in a folder named as the file's last word: train2017, beside the file
or beside its folder.
"""

import functools
import json
import os
from collections.abc import Iterator, Mapping

from lavit_jax.data import bad
from lavit_jax.data.sources import fields as naming
from lavit_jax.data.sources import files, inputs
from lavit_jax.data.sources import parts as cutting
from lavit_jax.data.sources.parts import Item

SUFFIXES = (".json",)


@functools.lru_cache(2)
def load_json(path: str) -> dict:
  """Reads a whole annotation file; a broken one is a user error."""
  with files.open_input(path) as file:
    try:
      found = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
      raise ValueError(
        f"expected an annotation file in JSON at {path}, got {str(error)[:100]}; get"
        " it again"
      ) from error
  if not isinstance(found, dict):
    raise ValueError(
      f"expected an object with images and annotations in {path}, got a"
      f" {type(found).__name__}; lists of records are --source=jsonl"
    )
  return found


@functools.lru_cache(2)
def _pictures(path: str) -> list[tuple[int, str, list[str], dict]]:
  """Id, file name, captions and facts of each picture, in order of the file."""
  found = load_json(path)
  try:
    captions: dict[int, list[str]] = {}
    for entry in found["annotations"]:
      captions.setdefault(entry["image_id"], []).append(entry["caption"])
    return [
      (row["id"], row["file_name"], captions.pop(row["id"], []), row)
      for row in found["images"]
    ]
  except (KeyError, TypeError) as error:
    raise ValueError(
      f"expected COCO's captions in {path}, got {list(found)[:5]} without"
      f" {error}; give captions_train2017.json or its like"
    ) from error


def parts(
  patterns: list[str],
  records_per_part: int,
  known: Mapping[str, cutting.Known] = cutting.NOTHING,
) -> cutting.Listing:
  """Cuts files into runs of pictures."""
  paths, unused = inputs.expand(patterns, SUFFIXES)
  found = []
  named, copies = cutting.named(paths, known)
  for name, path, earlier in named:
    number, size = len(_pictures(os.fspath(path))), path.stat().length
    if not number:
      unused.append(Item(name, bad.LeftOut("an empty file"), size))
      continue
    found += ranges(name, os.fspath(path), number, size, records_per_part, earlier)
  return cutting.Listing(found, unused + copies)


def ranges(name, path, number, size, step, earlier) -> list[cutting.Part]:
  """Parts of a file by positions; each weighs its share of the file."""
  bounds = cutting.bounds(number, step, earlier)
  sizes = [size * b // number - size * a // number for a, b in zip(bounds, bounds[1:])]
  first = path.split("\n")[0]  # VQA's parts are of two files
  return cutting.pieces(name, path, bounds, sizes, os.path.dirname(first))


def stamp(part: cutting.Part) -> str:
  """Tells the file from another."""
  return cutting.stamp_file(part.path)


def root_of(part: cutting.Part, fields: naming.Fields, split: str) -> str:
  """Folder of the pictures of a split: as given, or beside the file."""
  if fields.image_root:
    return fields.image_root
  places = (f"{part.root}/{split}", f"{os.path.dirname(part.root)}/{split}", part.root)
  return next((place for place in places if os.path.isdir(place)), part.root)


def read(part: cutting.Part, fields: naming.Fields) -> Iterator[Item]:
  """Reads the pictures of a part; see `parts`."""
  split = os.path.splitext(os.path.basename(part.path))[0].rpartition("_")[2]
  root = root_of(part, fields, split)
  rows = _pictures(part.path)[part.start : part.stop]
  for at, (number, name, captions, row) in enumerate(rows):
    size = share(part, at)
    try:
      data = files.picture(root, root, name)
      found = {"image": data, "texts": naming.captions(captions)}
      if fields.columns:
        found["row"] = row
      yield Item(str(number), found, size)
    except bad.BadRecord as error:
      yield Item(str(number), error, size)


def share(part: cutting.Part, at: int) -> int:
  """Bytes of the part that its position `at` takes."""
  number = part.stop - part.start
  return part.size * (at + 1) // number - part.size * at // number
