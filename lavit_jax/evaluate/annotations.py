"""Annotation files of the usual benchmarks, read the reference's way.

    JSON list of {"image", "img_id"?} · {"image", "question", "question_id", "answer" or
    "answers"} · {"image", "text"}

Reference facts, section 10.
"""

import json
import math
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
ENOUGH = 4  # annotated answers: with fewer, even the right one scores below 1


def read(
  path: str | pathlib.Path, task: str, protocol: str = ""
) -> list[dict[str, Any]]:
  """Reads an annotation file.

  Args:
    path: JSON file.
    task: one of FIELDS; says what every entry needs.
    protocol: of `vqa_protocol`, for questions; says how many answers each needs.

  Returns:
    The entries in order, each with "id"; one that comes again, with its id and what it
    asks, is left out. Numbers as answers have become texts.

  Raises:
    ValueError: an entry cannot be used, or two different ones have one id.
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
    if task == "vqa":
      entry |= _answers(entry, number, protocol, path)
    before = entries.setdefault(entry["id"], entry)
    if any(before[name] != entry[name] for name in FIELDS[task]):
      raise ValueError(
        f"expected one id for each entry of {path}, {before['image']} and entry"
        f" {number}, {entry['image']}, both have {entry['id']}; give each"
        f" {'a question_id' if task == 'vqa' else 'an img_id'} of its own"
      )
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
  for name in {"image", "question", "text"} & {*FIELDS[task]}:
    if not isinstance(entry[name], str) or not entry[name].strip():
      raise ValueError(
        f"expected a text as {name} in every entry of {path}, entry {number} has"
        f" {entry[name]!r}; correct it or leave it out"
      )


def _answers(entry: dict, number: int, protocol: str, path) -> dict[str, list]:
  """The answers of a question as texts, as many as its protocol compares with."""
  name = "answers" if "answers" in entry else "answer"
  given = entry[name]
  noted = given if isinstance(given, list) else [given]
  texts = []
  for i, note in enumerate(noted):
    own = note.get("answer") if isinstance(note, Mapping) else note
    number_given = isinstance(own, (int, float)) and not isinstance(own, bool)
    if number_given and math.isfinite(own):
      own = f"{own:g}" if float(f"{own:g}") == own else repr(own)
    if not isinstance(own, str):
      raise ValueError(
        f"expected texts as answers in {path}, entry {number} has {own!r}; correct it"
        " or leave it out"
      )
    # Without an id of its own, a note would be left out together with all its equals.
    named = isinstance(note, Mapping)
    texts.append({"answer_id": i} | note | {"answer": own} if named else own)
  wanted = {"": True, "gqa": len(texts) == 1}.get(protocol, len(texts) >= ENOUGH)
  if not wanted:
    count = "one answer" if protocol == "gqa" else "ten answers, at least 4,"
    other = "vqa" if protocol == "gqa" else "gqa, which compares with one answer"
    raise ValueError(
      f"expected {count} to each question under the protocol {protocol}, entry"
      f" {number} of {path} has {len(texts)}; try --protocol={other}"
    )
  return {name: texts}


def _id(entry: Mapping[str, Any], number: int, task: str, path) -> int | str:
  if task == "vqa":
    if isinstance(entry["question_id"], (int, str)):
      return entry["question_id"]
    raise ValueError(
      f"expected a number or text as question_id, entry {number} of {path} has"
      f" {entry['question_id']!r}; correct it"
    )
  if task == "text_to_image":
    return number  # a picture comes with several texts
  if task == "tokenizer":
    return entry["image"]  # its path: no results file of a benchmark asks for numbers
  return picture_id(entry, number, path)


def picture_id(entry: Mapping[str, Any], number: int = 0, path: Any = "") -> int:
  """`img_id`, or the number that ends the file name (COCO_val2014_000000000042)."""
  if "img_id" in entry:
    given = str(entry["img_id"])
    if re.fullmatch(r"\d+", given):
      return int(given)
    raise ValueError(
      f"expected a number as img_id, entry {number} of {path} has"
      f" {entry['img_id']!r}; correct it"
    )
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
