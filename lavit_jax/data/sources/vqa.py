"""VQAv2's own files: one record a picture, with all its questions and answers.

    v2_OpenEnded_mscoco_train2014_questions.json   {"data_subtype", "questions":
                                   [{"image_id", "question", "question_id"}]}
    v2_mscoco_train2014_annotations.json           {"data_subtype", "annotations":
                                   [{"question_id", "multiple_choice_answer"}]}

Both are inputs; they belong together by data_subtype. A picture is COCO_SPLIT_ID.jpg or
ID.jpg as COCO 2017 names it, in --image_root or its folder SPLIT, or beside the file.
"""

import functools
import os
from collections.abc import Iterator, Mapping

from lavit_jax.data import bad
from lavit_jax.data.sources import coco, files, inputs
from lavit_jax.data.sources import fields as naming
from lavit_jax.data.sources import parts as cutting
from lavit_jax.data.sources.parts import Item

SUFFIXES = (".json",)
PAIR = "\n"  # between the two paths of a part


@functools.lru_cache(2)
def _pictures(pair: str) -> list[tuple[int, list[tuple[str, str]]]]:
  """Id, questions and answers of each picture, in order of the questions."""
  asked, answered = (coco.load_json(path) for path in pair.split(PAIR))
  found: dict[int, list[tuple[str, str]]] = {}
  try:
    answers = {one["question_id"]: _answer(one) for one in answered["annotations"]}
    for entry in asked["questions"]:
      turns = found.setdefault(entry["image_id"], [])
      if answers.get(entry["question_id"]):
        turns.append((entry["question"], answers[entry["question_id"]]))
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f"expected VQAv2's questions and annotations in {pair.replace(PAIR, ' and ')},"
      f" got entries that do not fit ({type(error).__name__}: {error}); get them again"
    ) from error
  return list(found.items())


def _answer(entry: Mapping) -> str:
  """The answer that most people gave."""
  if entry.get("multiple_choice_answer"):
    return entry["multiple_choice_answer"]
  given = [one["answer"] for one in entry.get("answers", [])]
  return max(given, key=given.count) if given else ""


def parts(
  patterns: list[str],
  records_per_part: int,
  known: Mapping[str, cutting.Known] = cutting.NOTHING,
) -> cutting.Listing:
  """Pairs questions with annotations and cuts them into runs of pictures."""
  paths, unused = inputs.expand(patterns, SUFFIXES)
  asked, answered = {}, {}
  for path in paths:
    found = coco.load_json(os.fspath(path))
    split = str(found.get("data_subtype", ""))
    kind = next((name for name in ("questions", "annotations") if name in found), "")
    if not kind:
      size = path.stat().length
      unused.append(Item(os.fspath(path), bad.LeftOut(bad.OTHER_KIND), size))
      continue
    files_of = asked if kind == "questions" else answered
    if split in files_of:
      raise ValueError(
        f"expected one file of {kind} for the split {split!r}, got {files_of[split]}"
        f" and {path}; prepare them apart, each into a folder of its own"
      )
    files_of[split] = path
  if set(asked) != set(answered) or not asked:
    raise ValueError(
      f"expected a file of questions and one of annotations for each split, got"
      f" questions of {sorted(asked)} and annotations of {sorted(answered)}; give both"
    )
  found = []
  for split, path in sorted(asked.items()):
    pair = f"{path}{PAIR}{answered[split]}"
    size = path.stat().length + answered[split].stat().length
    earlier = known.get(pair, cutting.Known(f"vqa-{split}" if split else "vqa", ()))
    number = len(_pictures(pair))
    found += coco.ranges(
      earlier.name, pair, number, size, records_per_part, earlier.bounds
    )
  return cutting.Listing(found, unused)


def stamp(part: cutting.Part) -> str:
  """Tells the two files from others."""
  return " ".join(cutting.stamp_file(path) for path in part.path.split(PAIR))


def read(part: cutting.Part, fields: naming.Fields) -> Iterator[Item]:
  """Reads the pictures of a part; see `parts`."""
  first = part.path.split(PAIR)[0]
  split = str(coco.load_json(first).get("data_subtype", ""))
  root = coco.root_of(part, fields, split)
  if os.path.isdir(f"{root}/{split}"):
    root = f"{root}/{split}"
  rows = _pictures(part.path)[part.start : part.stop]
  for at, (number, turns) in enumerate(rows):
    size = coco.share(part, at)
    try:
      found = {"image": _picture(root, split, number), "texts": naming.answers(turns)}
      yield Item(str(number), found, size)
    except bad.BadRecord as error:
      yield Item(str(number), error, size)


def _picture(root: str, split: str, number: int) -> bytes:
  for name in (f"COCO_{split}_{number:012d}.jpg", f"{number:012d}.jpg"):
    if os.path.exists(f"{root}/{name}"):
      return files.read_below(root, name)
  raise bad.BadRecord("a missing file", f"COCO_{split}_{number:012d}.jpg in {root}")
