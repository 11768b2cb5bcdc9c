"""Captions against several references, by pycocoevalcap (CIDEr first)."""

import contextlib
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any


def score(results: pathlib.Path, truth: str) -> dict[str, Any]:
  """Scores a results file as COCO does.

  Args:
    results: JSON list of {"image_id", "caption"}.
    truth: COCO annotation file of the references.

  Returns:
    Value by metric: CIDEr, ROUGE_L, Bleu_4, METEOR, SPICE. One that cannot run here
    (SPICE fetches its own models when it is first used) stands in "not_computed".
  """
  try:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    from pycocotools.coco import COCO
  except ImportError as error:
    raise ValueError(
      f"expected pycocoevalcap for caption metrics, got: {error}; pip install"
      " pycocoevalcap, or leave out --truth and keep the results file"
    ) from error
  said = json.loads(results.read_text())
  with contextlib.redirect_stdout(io.StringIO()):
    references = _references(COCO, truth, [entry["image_id"] for entry in said])
    try:
      words = PTBTokenizer()
      truths = words.tokenize(one_line_each(references))
      found = {entry["image_id"]: [entry] for entry in said}
      found = words.tokenize(one_line_each(found))
    except OSError as error:
      raise ValueError(
        f"expected Java, which cuts captions into words here, got: {error}; install a"
        " Java runtime, or leave out --truth"
      ) from error
    return _scores(truths, found)


def one_line_each(
  found: Mapping[int, Sequence[Mapping[str, Any]]],
) -> dict[int, list[dict]]:
  """Captions without line breaks of any kind.

  The tokenizer gets one caption a line. It sees an end of line in signs that no editor
  shows as one ("\\r", U+2028 and others), and every later caption would stand beside
  another picture.
  """
  return {
    number: [dict(one, caption=" ".join(one["caption"].splitlines())) for one in own]
    for number, own in found.items()
  }


def _references(reader, truth: str, numbers: list[int]) -> dict[int, list[dict]]:
  """The references of every picture, read by pycocotools."""
  try:
    coco = reader(truth)
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise ValueError(
      f"expected a COCO annotation file of captions in {truth}, got: {error!r}; check"
      " --truth"
    ) from error
  found = {number: coco.imgToAnns[number] for number in numbers}
  without = [number for number, own in found.items() if not own]
  if without:
    raise ValueError(
      f"expected references of every picture in {truth}, got none for {without[:5]},"
      f" {len(without)} in all; use the truth that belongs to the annotations"
    )
  return found


def _scores(truths: Mapping[int, list[str]], found: Mapping[int, list[str]]) -> dict:
  """Every metric that runs, in the order of what matters."""
  from pycocoevalcap.bleu.bleu import Bleu
  from pycocoevalcap.cider.cider import Cider
  from pycocoevalcap.meteor.meteor import Meteor
  from pycocoevalcap.rouge.rouge import Rouge
  from pycocoevalcap.spice.spice import Spice

  judges = {"CIDEr": Cider, "ROUGE_L": Rouge, "Bleu_4": lambda: Bleu(4)}
  judges |= {"METEOR": Meteor, "SPICE": Spice}
  figures, missing = {}, {}
  for name, make in judges.items():
    try:
      value, _ = make().compute_score(truths, found)
    except Exception as error:  # of a Java program, a download: anything
      missing[name] = str(error)[:200]
    else:
      figures[name] = float(value[-1] if isinstance(value, list) else value)
  return figures | ({"not_computed": missing} if missing else {})


def results(found: Mapping[int, str]) -> list[dict[str, Any]]:
  """The results file's entries of captions by picture id."""
  return [{"image_id": number, "caption": text} for number, text in found.items()]
