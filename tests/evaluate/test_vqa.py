"""Scoring of answers against the reference's own numbers."""

import json

import golden_data
import pytest

from lavit_jax.evaluate import vqa


@pytest.fixture(scope="module")
def golden() -> dict:
  return json.loads((golden_data.folder() / "text.json").read_text())


def test_golden_questions(golden):
  assert golden["question_processor"]
  for case in golden["question_processor"]:
    assert vqa.clean_question(case["q"]) == case["out"]


def test_golden_normalization(golden):
  assert golden["vqa_normalise"]
  for case in golden["vqa_normalise"]:
    punctuated = vqa.drop_punctuation(case["answer"])
    assert punctuated == case["punct"]
    simple = vqa.simplify_words(punctuated)
    assert simple == case["digit_article"]
    assert vqa.strip_phrases(simple) == case["final"]
    assert vqa.normalize(case["answer"]) == case["final"]


def test_golden_accuracy(golden):
  given, shares = golden["vqa_accuracy"], []
  assert given["items"]
  for item in given["items"]:
    shares.append(vqa.accuracy(item["pred"], item["answers"]))
    expected = given["per_question"][str(item["question_id"])]
    assert vqa.percent(shares[-1]) == expected
  assert vqa.overall(shares) == given["overall"]


@pytest.mark.parametrize(
  "raw, expected",
  [
    ("dont", "don't"),
    ("couldntve", "couldntve"),  # only one apostrophe may be missing
    ("couldn'tve", "couldn't've"),
    ("yall'd've", "y'all'd've"),
    ("ow's'at", "'ow's'at"),
    ("shed", "shed"),
  ],
)
def test_contractions(raw, expected):
  assert vqa.simplify_words(raw) == expected


def test_annotations_without_ids_leave_out_their_twins():
  """Three equal annotations: with ids two others agree, without ids none does."""
  ids = [{"answer": "red", "answer_id": i} for i in range(3)]
  assert vqa.accuracy("red", ids) == pytest.approx(2 / 3)
  assert vqa.accuracy("red", [{"answer": "red"}] * 3) == 0
  with pytest.raises(ValueError, match="at least one annotated answer"):
    vqa.accuracy("red", [])


def test_lemmas_of_nouns_and_verbs(monkeypatch):
  import sys
  import types

  from lavit_jax.evaluate import lemmas

  monkeypatch.setitem(sys.modules, "spacy", None)
  with pytest.raises(ValueError, match="expected spaCy with its model en_core_web_sm"):
    lemmas.load_lemmatizer()
  kinds = {"dogs": ("NOUN", "dog"), "running": ("VERB", "run"), "best": ("ADJ", "good")}
  word = lambda text: types.SimpleNamespace(
    text=text, pos_=kinds[text][0], lemma_=kinds[text][1]
  )
  read = lambda text: [word(own) for own in text.split()]
  stand_in = types.SimpleNamespace(load=lambda name: read)
  monkeypatch.setitem(sys.modules, "spacy", stand_in)
  assert lemmas.load_lemmatizer()("Best dogs  running") == "best dog run"
