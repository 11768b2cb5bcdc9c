"""Files that belong together by their names, in a tar or a folder, as one record.

    00001.jpg 00001.txt 00001.json        img2dataset
    00001.image.jpg 00001.caption.txt     fields between key and ending
    photo.v1.jpg photo.v1.txt             dots in the name itself

A key ends at the first dot of the file's name; where several pictures share it, each
takes the files that equal it up to the last dot.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

from lavit_jax.data import bad
from lavit_jax.data.sources import fields as naming
from lavit_jax.data.sources import jsonl

PICTURES = (
  *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"),
  *(".pgm", ".pbm", ".pnm", ".jpe", ".jfif", ".avif", ".jp2", ".j2k", ".tga"),
  *(".ico", ".pcx", ".qoi", ".dds", ".heic", ".heif"),
)
TEXTS = (".txt", ".caption", ".text", ".cap")
JSON = ".json"
KINDS = (*PICTURES, *TEXTS, JSON)
FIELDS = ("image", "img", "picture", "rgb")  # between key and ending of a picture


@dataclasses.dataclass(frozen=True)
class Group:
  """The files of one record.

  Attributes:
    key: what their names share.
    picture: name of the picture, "" without one.
    others: names of the texts and of the JSON file.
    unused: names of further pictures.
  """

  key: str
  picture: str
  others: tuple[str, ...]
  unused: tuple[str, ...] = ()


def stem(name: str) -> str:
  """The name up to its last dot."""
  return os.path.splitext(name)[0]


def suffix(name: str) -> str:
  """The ending of a name, in small letters."""
  return os.path.splitext(name)[1].lower()


def key(name: str) -> str:
  """The name up to the first dot of the file."""
  folder, base = os.path.split(name)
  first = base.split(".", 1)[0] or base
  return f"{folder}/{first}" if folder else first


def field(name: str) -> str:
  """What follows the key, in small letters, without the dot: jpg, image.jpg."""
  return name[len(key(name)) + 1 :].lower()


def groups(names: Iterable[str], image_field: str = "") -> Iterator[Group]:
  """Puts the names of PICTURES, TEXTS and JSON in records, in order of appearance.

  Args:
    names: the files.
    image_field: what follows the key of a picture, to choose one of several.
  """
  by_key: dict[str, list[str]] = {}
  for name in names:
    by_key.setdefault(key(name), []).append(name)
  for shared, found in by_key.items():
    pictures = [name for name in found if suffix(name) in PICTURES]
    others = [name for name in found if suffix(name) not in PICTURES]
    chosen = _chosen(pictures, image_field) if len(pictures) > 1 or image_field else []
    if len(chosen) == 1 and not any(stem(o) == stem(chosen[0]) for o in others):
      unused = tuple(name for name in pictures if name not in chosen)
      yield Group(shared, chosen[0], tuple(others), unused)
    elif len(pictures) > 1:
      yield from _by_stem(shared, chosen or pictures, others, pictures)
    else:
      own = [name for name in others if pictures and stem(name) == stem(pictures[0])]
      rest = tuple(name for name in others if name not in own)
      if own and rest:  # texts of other names are not this picture's
        yield Group(stem(pictures[0]), pictures[0], tuple(own))
        yield Group(shared, "", rest)
      else:
        yield Group(shared, pictures[0] if pictures else "", tuple(others))


def _chosen(pictures: list[str], image_field: str) -> list[str]:
  """The pictures that the field names; without it the one called image, if any."""
  if image_field:
    wanted = image_field.lower().lstrip(".")
    return [n for n in pictures if field(n) == wanted or wanted in field(n).split(".")]
  return [n for n in pictures if set(field(n).split(".")[:-1]) & set(FIELDS)]


def _by_stem(
  shared: str, chosen: Sequence[str], others: Sequence[str], pictures: Sequence[str]
) -> Iterator[Group]:
  """A record for each stem among several pictures of one key."""
  stems: dict[str, list[str]] = {}
  for name in sorted(chosen, key=lambda n: PICTURES.index(suffix(n))):
    stems.setdefault(stem(name), []).append(name)
  unused = [name for name in pictures if name not in chosen]
  for name in sorted(stems, key=lambda s: pictures.index(stems[s][0])):
    own = tuple(other for other in others if stem(other) == name)
    extra = (*stems[name][1:], *unused)
    unused = []
    yield Group(name, stems[name][0], own, extra)
  left = tuple(name for name in others if stem(name) not in stems)
  if left:
    yield Group(shared, "", left)


def texts(
  group: Group, fields: naming.Fields, read: Callable[[str], bytes]
) -> tuple[list[dict], dict]:
  """Makes the text entries of a record and the row of its JSON file, {} without one.

  The file that --text_field names comes first, or its field of the JSON; otherwise a
  text file goes before the JSON.
  """
  row, notes = {}, [name for name in group.others if suffix(name) == JSON]
  ranked = sorted(
    (name for name in group.others if suffix(name) in TEXTS),
    key=lambda name: TEXTS.index(suffix(name)),
  )
  wanted = fields.text.lower().lstrip(".")
  if wanted:
    ranked = [
      name for name in ranked if wanted in (field(name), *field(name).split("."))
    ]
  if notes and (fields.columns or not ranked):
    row = jsonl.parse(read(notes[0]))
  if ranked:
    return naming.captions(read(ranked[0])), row
  if wanted and not notes:
    detail = f"expected {fields.text!r}, got {', '.join(group.others) or 'no text'}"
    raise bad.BadRecord("a row without text", detail)
  return naming.entries(row, fields) if row else [], row
