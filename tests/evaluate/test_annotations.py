"""What an annotation file may hold; ids, answers and texts are checked at reading."""

import json

import pytest

from lavit_jax.evaluate import annotations, captions, vqa_protocol


def read(folder, entries, task, protocol=""):
  path = folder / "a.json"
  path.write_text(json.dumps(entries))
  return annotations.read(path, task, protocol)


def question(answer, **other) -> dict:
  return {
    "image": "a.png",
    "question": "How?",
    "question_id": 1,
    "answer": answer,
  } | other


def test_pictures_of_two_folders_do_not_become_one(tmp_path):
  entries = [{"image": "cat/001.png"}, {"image": "dog/001.png"}]
  with pytest.raises(ValueError, match="cat/001.png and entry 1, dog/001.png, both"):
    read(tmp_path, entries, "caption")
  assert len(read(tmp_path, entries, "tokenizer")) == 2
  assert len(read(tmp_path, [entries[0], entries[0]], "tokenizer")) == 1


def test_questions_of_one_id_do_not_become_one(tmp_path):
  other = question(["a"] * 10, question="Why?")
  with pytest.raises(ValueError, match="give each a question_id of its own"):
    read(tmp_path, [question(["a"] * 10), other], "vqa", "vqa")


def test_too_few_answers_for_a_protocol_are_refused(tmp_path):
  for answer in ("red", ["red"] * 3):
    with pytest.raises(ValueError, match="at least 4, to each .* gqa"):
      read(tmp_path, [question(answer)], "vqa", "vqa")
  with pytest.raises(ValueError, match="expected one answer to each"):
    read(tmp_path, [question(["red"] * 10)], "vqa", "gqa")


@pytest.mark.parametrize("answer, text", [(3, "3"), (2.0, "2"), (0.25, "0.25")])
def test_numbers_are_answers(tmp_path, answer, text):
  entry = read(tmp_path, [question(answer)], "vqa", "gqa")[0]
  assert vqa_protocol.score("gqa", text, entry) == 1.0
  entry = read(tmp_path, [question([answer] * 10)], "vqa", "vqa")[0]
  assert entry["answer"] == [text] * 10


def test_notes_without_ids_count_one_by_one(tmp_path):
  entry = read(tmp_path, [question([{"answer": 3}] * 10)], "vqa", "vqa")[0]
  assert vqa_protocol.score("vqa", "3", entry) == 1.0


@pytest.mark.parametrize(
  "entry, task, message",
  [
    (question([True] * 10), "vqa", "expected texts as answers .* has True"),
    (question(None), "vqa", "expected texts as answers .* has None"),
    (question(["a"] * 10, question=5), "vqa", "expected a text as question"),
    (question(["a"] * 10, question_id=[1]), "vqa", "question_id, entry 0"),
    ({"image": 5}, "caption", "expected a text as image"),
    ({"image": "a.png", "img_id": "x"}, "caption", "expected a number as img_id"),
    ({"image": "a.png", "text": ""}, "text_to_image", "expected a text as text"),
  ],
)
def test_what_cannot_be_scored_is_refused_at_reading(tmp_path, entry, task, message):
  with pytest.raises(ValueError, match=message):
    read(tmp_path, [entry], task, "vqa")


@pytest.mark.parametrize(
  "sign", ["\r", "\r\n", "\n", "\u2028", "\u2029", "\x85", "\x0b"]
)
def test_a_caption_stays_one_line(sign):
  found = captions.one_line_each({1: [{"caption": f"a red{sign}circle", "id": 4}]})
  assert found == {1: [{"caption": "a red circle", "id": 4}]}
