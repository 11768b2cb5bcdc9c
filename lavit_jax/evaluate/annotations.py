"""Annotation files of the usual benchmarks, read the reference's way.

    JSON list of {"image", "img_id"?} · {"image", "question", "question_id", "answer" or
    "answers"} · {"image", "text"}

Reference facts, section 10.
"""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

FIELDS = {
  "caption": ("image",),
  "vqa": ("image", "question", "question_id"),
  "text_to_image": ("image", "text"),
  "tokenizer": ("image",),
}


def read(path: str | pathlib.Path, task: str) -> list[dict[str, Any]]:
  """Reads an annotation file.

  Args:
    path: JSON file.
    task: one of FIELDS; says what every entry needs.

  Returns:
    The entries in order, without those whose id came before, each with "id".
  """
  try:
    found = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
    raise ValueError(
      f"expected a JSON list of annotations in {path}, got: {error}; check the file"
    ) from error
  if not isinstance(found, list) or not found:
    raise ValueError(
      f"expected a JSON list of annotations in {path}, got"
      f" {'an empty list' if found == [] else type(found).__name__}; check the file"
    )
  entries = {}
  for number, entry in enumerate(found):
    _check(entry, number, task, path)
    entry = dict(entry, id=_id(entry, number, task, path))
    entries.setdefault(entry["id"], entry)
  return list(entries.values())


def _check(entry: Any, number: int, task: str, path) -> None:
  given = set(entry) if isinstance(entry, Mapping) else set()
  missing = [name for name in FIELDS[task] if name not in given]
  if task == "vqa" and not given & {"answer", "answers"}:
    missing.append("answer or answers")
  if missing:
    raise ValueError(
      f"expected {', '.join(FIELDS[task])} in every entry of {path}, entry {number}"
      f" lacks {', '.join(missing)}; complete it or leave it out"
    )


def _id(entry: Mapping[str, Any], number: int, task: str, path) -> int | str:
  if task == "vqa":
    return entry["question_id"]
  if task == "text_to_image":
    return number  # a picture comes with several texts
  return picture_id(entry, number, path)


def picture_id(entry: Mapping[str, Any], number: int = 0, path: Any = "") -> int:
  """`img_id`, or the number that ends the file name (COCO_val2014_000000000042)."""
  if "img_id" in entry:
    return int(entry["img_id"])
  digits = re.search(r"(\d+)$", pathlib.PurePosixPath(str(entry["image"])).stem)
  if digits is None:
    raise ValueError(
      f"expected img_id or a file name that ends in a number, entry {number} of {path}"
      f" has {entry['image']!r}; add img_id"
    )
  return int(digits.group(1))


def picture_path(folder: str | pathlib.Path, entry: Mapping[str, Any]) -> pathlib.Path:
  """Where an entry's picture lies; never outside the folder."""
  root = pathlib.Path(folder).resolve()
  path = (root / str(entry["image"])).resolve()
  if not path.is_relative_to(root):
    raise ValueError(
      f"expected pictures below {root}, got {entry['image']!r}; use relative names"
    )
  return path


def answers(entry: Mapping[str, Any]) -> Sequence[Any]:
  """The annotated answers of a question: texts, or {"answer", "answer_id"}."""
  if "answers" in entry:
    return list(entry["answers"])
  given = entry["answer"]
  return [given] if isinstance(given, str) else list(given)


def share(entries: Sequence[dict], index: int, count: int) -> list[dict]:
  """The entries of one of `count` processes: every one goes to exactly one."""
  return list(entries[index::count])
