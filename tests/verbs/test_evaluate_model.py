"""Evaluation by annotation files: what is asked, how it is scored, shared and kept."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from lavit_jax.evaluate import (
  annotations,
  benchmark,
  frechet,
  model_tasks,
  vqa_protocol,
)
from lavit_jax.inference.api import LaVIT
from lavit_jax.inference.pictures import stack

pytestmark = pytest.mark.usefixtures("compile_fast")


def written(path, content):
  path.write_text(json.dumps(content))
  return str(path)


def test_ids_come_from_the_entry_or_the_file_name(tmp_path):
  entries = [
    {"image": "val/COCO_val2014_000000000042.jpg"},
    {"image": "a.jpg", "img_id": 7},
    {"image": "val/COCO_val2014_000000000042.jpg", "caption": "the second of five"},
  ]
  found = annotations.read(written(tmp_path / "a.json", entries), "caption")
  assert [entry["id"] for entry in found] == [42, 7]


@pytest.mark.parametrize(
  "content, task, message",
  [
    ([], "caption", "got an empty list; check the file"),
    ({"images": []}, "caption", "expected a JSON list of annotations in .* got dict"),
    ([{"img_id": 3}], "caption", "entry 0 lacks image; complete it or leave it out"),
    ([{"image": "a.jpg"}], "caption", "has 'a.jpg'; add img_id"),
    (
      [{"image": "a.jpg", "question": "what?", "question_id": 1}],
      "vqa",
      "entry 0 lacks answer or answers",
    ),
  ],
)
def test_wrong_annotations_are_named(tmp_path, content, task, message):
  with pytest.raises(ValueError, match=message):
    annotations.read(written(tmp_path / "a.json", content), task)


def test_pictures_lie_below_their_folder(tmp_path):
  assert annotations.picture_path(tmp_path, {"image": "a/b.jpg"}).name == "b.jpg"
  for name in ("../b.jpg", "/etc/passwd"):
    with pytest.raises(ValueError, match="use relative names"):
      annotations.picture_path(tmp_path, {"image": name})


def test_frechet_distance_of_known_normals():
  rng = np.random.default_rng(0)
  first = rng.normal(size=(200_000, 2)) * [1.0, 2.0]
  second = rng.normal(size=(200_000, 2)) * [3.0, 2.0] + [1.0, 0.0]
  # |m1 - m2|^2 + sum of (s1 - s2)^2 = 1 + 4.
  assert frechet.distance(first, second) == pytest.approx(5.0, rel=0.02)
  assert frechet.distance(first, first) == pytest.approx(0.0, abs=1e-6)
  with pytest.raises(ValueError, match="at least 2 pictures"):
    frechet.distance(first[:1], second)


def test_vizwiz_asks_first_whether_there_is_an_answer():
  asked = []

  def ask(shown, questions):
    asked.append(list(questions))
    if "answerable" in questions[0]:
      return ["yes", "no"]
    return ["red", "blue"]

  found = vqa_protocol.predict(ask, "vizwiz", ["a", "b"], ["What COLOR?", "How. many"])
  assert found == ["red", "unanswerable"]
  assert asked[0] == ["what color?", "how many"]
  assert asked[1][0] == 'Is the question: "what color?" answerable?'


def test_protocols_score_their_way():
  many = {"question_id": 1, "answer": ["red"] * 3 + ["blue"] * 7}
  assert vqa_protocol.score("vqa", "Red.", many) == pytest.approx(0.9)
  one = {"question_id": 2, "answer": "red"}
  assert vqa_protocol.score("gqa", "the red", one) == 1.0
  with pytest.raises(ValueError, match="got 10; choose another --protocol"):
    vqa_protocol.score("gqa", "red", many)


class FakeModel:
  """Answers with the name of the picture."""

  def caption(self, paths, prompt):
    return [f"{prompt}{path.stem}" for path in paths]

  def answer(self, paths, questions, how):
    assert how == "how"
    return [path.stem for path in paths]

  def draw(self, texts, n, guidance):
    colors = [(40 * i, 0, 0) for i in range(len(texts) * n)]
    return [Image.new("RGB", (24, 24), color) for color in colors]


def task_of(tmp_path, predict, summarize, settings):
  """A task over the pictures of a folder."""
  picture = lambda entry: annotations.picture_path(tmp_path, entry)
  read = lambda entry: stack(picture(entry), 8)
  return benchmark.Task(predict, summarize, settings, read, picture)


def evaluation(tmp_path, calls=None):
  if not (tmp_path / "red.png").exists():
    Image.new("RGB", (24, 24), (200, 0, 0)).save(tmp_path / "red.png")
  answers = lambda i: ["red"] * 10 if i % 2 else ["blue"] * 10
  entries = [
    {"image": "red.png", "question": "?", "question_id": i, "answer": answers(i)}
    for i in range(8)
  ]
  split = written(tmp_path / "vqa.json", entries)
  predict, summarize = model_tasks.answering(
    FakeModel(), str(tmp_path), "vqa", False, "how"
  )

  def counted(own):
    if calls is not None:
      calls.extend(entry["id"] for entry in own)
    return predict(own)

  task = task_of(tmp_path, counted, summarize, {"protocol": "vqa"})
  return "vqa", task, annotations.read(split, "vqa"), split, {"checksum": "one"}


def test_the_figure_stands_beside_how_it_came_about(tmp_path):
  made = benchmark.run(*evaluation(tmp_path), str(tmp_path / "out"))
  assert made["figures"] == {"accuracy": 50.0, "questions": 8} and made["n"] == 8
  stored = json.loads((tmp_path / "out/vqa.json").read_text())
  assert stored["settings"] == {"protocol": "vqa"} and "jax" in stored["versions"]
  assert len(stored["split"]["sha256"]) == 64
  results = json.loads((tmp_path / "out/vqa-results.json").read_text())
  assert results[3] == {"id": 3, "result": "red"}


def test_hosts_together_equal_one(tmp_path, monkeypatch):
  one = benchmark.run(*evaluation(tmp_path), str(tmp_path / "one"))
  together = str(tmp_path / "two")
  monkeypatch.setattr(benchmark.jax, "process_count", lambda: 2)
  monkeypatch.setattr(
    benchmark.multihost_utils, "sync_global_devices", lambda name: None
  )
  shares = []
  for index in (1, 0):  # the first host merges, after the barrier
    monkeypatch.setattr(benchmark.jax, "process_index", lambda i=index: i)
    calls = []
    two = benchmark.run(*evaluation(tmp_path, calls), together)
    shares.append(calls)
  assert two == one
  assert sorted(shares[0] + shares[1]) == list(range(8)) and len(shares[0]) == 4


def test_an_interrupted_evaluation_goes_on(tmp_path):
  target = tmp_path / "out"
  whole = benchmark.run(*evaluation(tmp_path), str(target))
  part = target / "parts/vqa-0-of-1.jsonl"
  lines = part.read_text().splitlines(keepends=True)
  part.write_text("".join(lines[:4]) + lines[4][:7])  # killed inside a line
  calls = []
  assert benchmark.run(*evaluation(tmp_path, calls), str(target)) == whole
  assert calls == [3, 4, 5, 6, 7]


def test_other_settings_need_another_target(tmp_path):
  target = str(tmp_path / "out")
  benchmark.run(*evaluation(tmp_path), target)
  name, task, *rest = evaluation(tmp_path)
  other = task_of(tmp_path, task.predict, task.summarize, {"protocol": "gqa"})
  with pytest.raises(ValueError, match="choose a new --target"):
    benchmark.run(name, other, *rest, target)


def test_other_weights_or_pictures_need_another_target(tmp_path):
  target = str(tmp_path / "out")
  benchmark.run(*evaluation(tmp_path), target)
  *same, _ = evaluation(tmp_path)
  with pytest.raises(ValueError, match=r"of other settings \(model\)"):
    benchmark.run(*same, {"checksum": "two"}, target)
  Image.new("RGB", (24, 24), (0, 0, 0)).save(tmp_path / "red.png")
  with pytest.raises(ValueError, match="red.png is another than when it was evaluated"):
    benchmark.run(*evaluation(tmp_path), target)


def test_one_bad_picture_is_named_and_the_rest_goes_on(tmp_path):
  name, task, entries, split, model = evaluation(tmp_path)
  (tmp_path / "bad.png").write_text("no picture")
  entries[2] = entries[2] | {"image": "bad.png"}

  def predict(own):
    for entry in own:
      task.read(entry)
    return task.predict(own)

  strict = task_of(tmp_path, predict, task.summarize, task.settings)
  run = (name, strict, entries, split, model, str(tmp_path / "out"))
  made = benchmark.run(*run)
  assert made["n"] == made["figures"]["questions"] == 7
  assert made["failed"]["count"] == 1 and made["failed"]["first"][0]["id"] == 2
  assert "bad.png" in made["failed"]["first"][0]["error"]

  Image.new("RGB", (9, 9)).save(tmp_path / "bad.png")
  assert benchmark.run(*run)["failed"]["count"] == 1
  made = benchmark.run(*run, retry_failed=True)
  assert made["n"] == 8 and made["failed"] == {"count": 0, "first": []}


def test_all_pictures_bad_is_an_error(tmp_path):
  name, task, entries, split, model = evaluation(tmp_path)
  entries = [entry | {"image": "none.png"} for entry in entries]
  strict = task_of(
    tmp_path, lambda own: [task.read(e) for e in own], task.summarize, {}
  )
  with pytest.raises(ValueError, match="all 8 cannot, the first: .*none.png"):
    benchmark.run(name, strict, entries, split, model, str(tmp_path / "out"))


def test_captions_are_written_for_coco(tmp_path):
  made = model_tasks.captioning(FakeModel(), str(tmp_path), "a ", str(tmp_path), "")
  entries = [{"image": "dog_1.png", "id": 1}, {"image": "cat_2.png", "id": 2}]
  said = made[0](entries)
  assert made[1](entries, said) == {"captions": 2, "words_per_caption": 2.0}
  stored = json.loads((tmp_path / "caption-coco.json").read_text())
  assert stored[1] == {"image_id": 2, "caption": "a cat_2"}


def test_the_best_drawings_are_kept_and_scored(tmp_path, monkeypatch):
  red = lambda pictures: np.array([np.asarray(p)[0, 0, 0] for p in pictures], float)
  opened = lambda paths: red([Image.open(path) for path in paths])
  scorer = lambda made, texts: red(
    [Image.open(x) if isinstance(x, pathlib.Path) else x for x in made]
  )
  sides = []

  def extract(paths, side):
    sides.append(side)
    return np.stack([opened(paths), opened(paths) ** 2], axis=1)

  FakeModel.batch_size, FakeModel.image_size = 2, 8
  monkeypatch.setattr(model_tasks.ranking, "scorer_of", lambda model, folder: scorer)
  monkeypatch.setattr(
    model_tasks.inception_features, "extractor", lambda file, rows: extract
  )
  monkeypatch.setattr(model_tasks, "mean_features", lambda m, p: extract(p, 0))
  entries = [{"image": f"{i}.png", "text": "x", "id": i} for i in range(3)]
  for i in range(3):
    Image.new("RGB", (5, 5), (9 + i, 0, 0)).save(tmp_path / f"{i}.png")
  predict, summarize = model_tasks.drawing(
    FakeModel(), str(tmp_path), str(tmp_path), "", "weights.pth", 2, guidance=1.5
  )
  said = predict(entries)
  assert said == [40.0, 120.0, 200.0]  # the second, fourth and sixth of all
  figures = summarize(entries, said)
  assert figures["clip_score"] == 120.0 and figures["drawings"] == 3
  assert figures["fid"] == pytest.approx(figures["frechet_of_encoder_features"])
  assert figures["fid"] > 100 and sides == [0, 0, 24, 24]


def test_tokenizer_figures_of_pictures(tmp_path, visual_tokenizer_directory):
  model = LaVIT.load(visual_tokenizer_directory, batch_size=8)
  rng = np.random.default_rng(0)
  for i in range(4):
    noise = rng.integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"{i}.png")
  entries = [{"image": f"{i}.png", "id": i} for i in range(4)]
  predict, summarize = model_tasks.tokenizing(model, str(tmp_path))
  said = predict(entries)
  figures = summarize(entries, said)
  found = model.tokenize([tmp_path / "2.png"])[0]
  assert said[2]["codes"] == found["codes"].tolist()
  kept = sum(len(one["codes"]) for one in said)
  assert figures["kept_share"] == kept / (4 * model.coder.model.num_patches)
  assert -1 <= figures["reconstruction_cosine"] <= 1 and figures["codes_used"] > 0
