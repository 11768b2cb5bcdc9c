"""Captions against several references, by pycocoevalcap (CIDEr first)."""

import contextlib
import io
import json
import pathlib
from collections.abc import Mapping
from typing import Any

METRICS = ("CIDEr", "SPICE", "METEOR", "ROUGE_L", "Bleu_4")


def score(results: pathlib.Path, truth: str) -> dict[str, float]:
  """Scores a results file as COCO does.

  Args:
    results: JSON list of {"image_id", "caption"}.
    truth: COCO annotation file of the references.

  Returns:
    Value by metric name, those of METRICS that could be computed (SPICE and METEOR
    need Java).
  """
  try:
    from pycocoevalcap.eval import COCOEvalCap
    from pycocotools.coco import COCO
  except ImportError as error:
    raise ValueError(
      f"expected pycocoevalcap for caption metrics, got: {error}; pip install"
      " pycocoevalcap, or leave out --truth and keep the results file"
    ) from error
  with contextlib.redirect_stdout(io.StringIO()):
    coco = COCO(truth)
    judge = COCOEvalCap(coco, coco.loadRes(str(results)))
    judge.params["image_id"] = [
      entry["image_id"] for entry in json.loads(results.read_text())
    ]
    judge.evaluate()
  return {name: float(judge.eval[name]) for name in METRICS if name in judge.eval}


def results(found: Mapping[int, str]) -> list[dict[str, Any]]:
  """The results file's entries of captions by picture id."""
  return [{"image_id": number, "caption": text} for number, text in found.items()]
