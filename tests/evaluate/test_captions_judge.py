"""COCO's caption metrics beside pycocoevalcap's own program; they need Java."""

import json
import pathlib
import shutil

import pytest

from lavit_jax.evaluate import captions

pytestmark = [
  pytest.mark.judge,
  pytest.mark.skipif(shutil.which("java") is None, reason="needs Java"),
]
SAID = {
  1: "a red circle on the left",
  2: "two green stars at the top of it",
  3: "a dog",
}
TRUE = {
  1: ["a red circle on the left", "there is a red circle at the left"],
  2: ["two green stars", "two stars at the top"],
  3: ["a blue square below a ring"],
}


@pytest.fixture
def files(tmp_path):
  pairs = [(number, text) for number, own in TRUE.items() for text in own]
  truth = {
    "images": [{"id": number} for number in TRUE],
    "annotations": [
      {"id": i, "image_id": number, "caption": text}
      for i, (number, text) in enumerate(pairs)
    ],
    "type": "captions",
    "info": {},
    "licenses": [],
  }
  (tmp_path / "truth.json").write_text(json.dumps(truth))
  (tmp_path / "said.json").write_text(json.dumps(captions.results(SAID)))
  return tmp_path / "said.json", str(tmp_path / "truth.json")


def test_metrics_are_those_of_the_whole_program(files, monkeypatch):
  from pycocoevalcap import eval as program
  from pycocotools.coco import COCO

  class NoSpice:
    """It would fetch half a gigabyte of models."""

    def __init__(self):
      raise OSError("no network here")

    def method(self):
      return "none"

    def compute_score(self, truths, found):
      return 0.0, [{}] * len(truths)

  monkeypatch.setattr("pycocoevalcap.spice.spice.Spice", NoSpice)
  found = captions.score(*files)
  assert found.pop("not_computed") == {"SPICE": "no network here"}
  monkeypatch.setattr(NoSpice, "__init__", lambda self: None)
  monkeypatch.setattr(program, "Spice", NoSpice)
  coco = COCO(files[1])
  judge = program.COCOEvalCap(coco, coco.loadRes(str(files[0])))
  judge.evaluate()
  assert list(found) == ["CIDEr", "ROUGE_L", "Bleu_4", "METEOR"]
  for name, value in found.items():
    assert value == pytest.approx(judge.eval[name], abs=1e-12), name
  assert found["CIDEr"] > 1


def test_a_truth_of_other_pictures_is_named(files):
  said, truth = files
  said.write_text(json.dumps(captions.results({**SAID, 9: "a cat"})))
  with pytest.raises(ValueError, match=r"got none for \[9\], 1 in all"):
    captions.score(said, truth)
  with pytest.raises(ValueError, match="expected a COCO annotation file"):
    captions.score(said, truth + "x")


def test_a_line_break_inside_a_reference_moves_no_figure(files, monkeypatch):
  monkeypatch.setattr("pycocoevalcap.spice.spice.Spice", None)
  before = captions.score(*files)
  truth = pathlib.Path(files[1])
  truth.write_text(truth.read_text().replace("a red circle on", "a red\\rcircle on"))
  assert captions.score(*files) == before
