"""Requests of users: a thousand bad ones, mixtures, and large jobs that resume."""

import json

import numpy as np
import pytest
from PIL import Image
from test_api import folders, model, pictures  # noqa: F401  (fixtures)

from lavit_jax.inference import jobs, requests

pytestmark = pytest.mark.usefixtures("compile_fast")

GREEDY = {"beams": 1, "max_new": 6, "min_new": 0}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
  """Files that requests point to."""
  root = tmp_path_factory.mktemp("pictures")
  Image.fromarray(pictures(1)[0]).save(root / "good.png")
  Image.new("RGB", (10_000, 1)).save(root / "thin.png")
  (root / "text.png").write_text("I am no picture.")
  return root


def good(shelf, i: int) -> dict:
  image = str(shelf / "good.png")
  return [
    {"task": "caption", "image": image, "id": i, **GREEDY},
    {"task": "answer", "image": image, "question": "What?", **GREEDY},
    {"task": "draw", "prompt": "a red circle", "n": 2, "max_new": 6, "seed": i},
  ][i % 3]


def bad(shelf) -> list[tuple[dict, str]]:
  """Requests, and what the sentence about each must say."""
  image = str(shelf / "good.png")
  caption, draw = {"task": "caption", "image": image}, {"task": "draw", "prompt": "a"}
  answer = {"task": "answer", "image": image, "question": "a?"}
  floats = pictures(1)[0].astype(np.float32)
  floats[0, 0, 0] = np.nan
  return [
    (draw | {"prompt": ""}, "needs 'prompt', got none"),
    (draw | {"prompt": "  "}, "needs 'prompt', got none"),
    (answer | {"question": ""}, "needs 'question', got none"),
    (draw | {"prompt": "word " * 5000}, "within 2048 positions"),
    (caption | {"prompt": "word " * 5000}, "within 2048 positions"),
    ({"task": "caption"}, "needs 'image', got none"),
    ({"task": "answer", "question": "a?"}, "needs 'image', got none"),
    (caption | {"image": str(shelf / "thin.png")}, "got 10000x1 pixels"),
    (caption | {"image": np.zeros((1, 10_000, 3), np.uint8)}, "got 10000x1 pixels"),
    (caption | {"image": str(shelf / "text.png")}, "does not decode"),
    (caption | {"image": "I am a text"}, "found no file"),
    (caption | {"image": floats}, "got NaN or infinity"),
    (caption | {"image": np.zeros((4, 4), np.uint8)}, "u8[H, W, 3]"),
    (caption | {"image": 7}, "expected a path"),
    (draw | {"temperature": -1.0}, "temperature must be 0"),
    (draw | {"temperature": float("nan")}, "temperature must be"),
    (draw | {"top_p": 0}, "top_p must be in (0, 1]"),
    (draw | {"guidance": "strong"}, "guidance must be a number"),
    (draw | {"guidance": True}, "guidance must be a number"),
    (draw | {"n": 0}, "n must be in [1, 64]"),
    (draw | {"n": 1.5}, "n must be a whole number"),
    (draw | {"max_new": 10**12}, "must fit into 32 bits"),
    (draw | {"max_new": 1000}, "max_new must be at most 16"),
    (draw | {"setting": "wild"}, "setting must be one of codes, reference"),
    (draw | {"temprature": 1}, "got 'temprature'"),
    (caption | {"question": "a?"}, "got 'question'"),
    (caption | {"beams": 0}, "count must be in [1, 32]"),
    (caption | {"beams": 10**6}, "count must be in [1, 32]"),
    (caption | {"max_new": 4, "min_new": 4}, "min_new must be in [0, 4)"),
    (caption | {"prompt": 5}, "prompt must be a text"),
    ({"task": "sing"}, "expected a task among"),
    ({"task": ["draw"]}, "expected a task among"),
    ({}, "expected a task among"),
  ]


BAD_LINES = {
  "not json": "one JSON object per line",
  "": "one JSON object per line",
  "[1, 2]": "expected a JSON object",
  "null": "expected a JSON object",
  "[" * 100_000: "one JSON object per line",
  '{"task": "draw", "prompt": "\\ud800"}': "whole characters",
}


def test_a_thousand_bad_requests_get_a_sentence_each(model, shelf):  # noqa: F811
  kinds = bad(shelf)
  kinds += [(_read(line), said) for line, said in BAD_LINES.items()]
  asked, expected = [], []
  for i in range(1000):
    asked.append(kinds[i % len(kinds)][0])
    expected.append(kinds[i % len(kinds)][1])
  for i in range(12):  # good ones among them
    asked.insert(83 * i, good(shelf, i))
    expected.insert(83 * i, None)
  found = requests.serve(model, asked)
  for result, said in zip(found, expected):
    if said is None:
      assert "error" not in result
      continue
    sentence = result["error"]
    assert said in sentence
    assert "\n" not in sentence and len(sentence) < 400
  alone = requests.serve(model, [good(shelf, 1)])[0]
  assert found[83] == alone


def _read(line: str):
  try:
    return requests.parse(line)
  except ValueError as error:
    return error


def test_a_mixture_gives_what_each_gives_alone(model, shelf):  # noqa: F811
  asked = [good(shelf, i) for i in range(3)]
  together = requests.serve(model, asked)
  assert [requests.serve(model, [own])[0] for own in asked] == together
  assert len(together[2]["codes"]) == 2
  drawn = model.draw_codes("a red circle", n=2, seed=2)
  assert [own.tolist()[:5] for own in drawn] == [c[:5] for c in together[2]["codes"]]


def test_a_job_resumes_where_it_stopped(model, shelf, tmp_path):  # noqa: F811
  source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
  lines = [json.dumps(good(shelf, i)) for i in range(7)]
  lines[4] = "not json"
  source.write_text("\n".join(lines) + "\n")
  assert jobs.run(model, source, target) == {"done": 7, "failed": 1}
  whole = target.read_bytes()
  results = [json.loads(line) for line in whole.splitlines()]
  assert "error" in results[4] and results[0]["id"] == 0

  cut = whole.splitlines(keepends=True)
  target.write_bytes(b"".join(cut[:3]) + cut[3][:20])  # stopped in the fourth line
  assert jobs.run(model, source, target) == {"done": 7, "failed": 1}
  assert target.read_bytes() == whole
  assert jobs.run(model, source, target) == {"done": 7, "failed": 1}

  source.write_text("\n".join(lines[1:]) + "\n")
  with pytest.raises(ValueError, match="line 1 is of another request"):
    jobs.run(model, source, target)
  with pytest.raises(ValueError, match="found no file"):
    jobs.run(model, tmp_path / "none.jsonl", target)
