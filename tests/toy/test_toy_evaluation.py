import fake_findings
import numpy as np
import pytest

from lavit_jax.evaluate import figures
from lavit_jax.toy import (
  language_figures,
  patch_reading,
  scene_texts,
  scenes,
  tokenizer_figures,
  world,
)


def scene(*objects):
  return {"objects": [dict(zip(("color", "shape", "row", "col"), o)) for o in objects]}


def truth_of_counts(*counts):
  objects = np.zeros((len(counts), 64), bool)
  for row, count in enumerate(counts):
    objects[row, : 4 * max(count, 0)] = True
  return tokenizer_figures.Truth(objects, np.array(counts), [{}] * len(counts))


def test_undefined_numbers_are_none():
  made = figures.figure(float("nan"), 0.5, 0, "cases", "coin")
  assert made["value"] is None and made["n"] == 0
  assert np.isnan(figures.mean([]))


def test_truth_of_records():
  records = fake_findings.pictured(32)
  truth = tokenizer_figures.truth_of(records)
  digits = ["digit" in record["truth"] for record in records]
  np.testing.assert_array_equal(truth.count == -1, digits)
  assert sum(digits) == 5 and truth.scene.sum() > 20
  np.testing.assert_array_equal(
    truth.objects[truth.scene].sum(1), 4 * truth.count[truth.scene]
  )
  assert not truth.objects[~truth.scene].any()


def test_perfect_selection():
  truth = truth_of_counts(0, 1, 2, 4, -1)
  keep = truth.objects.copy()
  keep[-1] = True
  found = tokenizer_figures.selection(keep, np.where(keep, -0.1, -3.0), truth)
  assert found["kept_share"]["value"] == pytest.approx(keep.mean())
  assert found["kept_share"]["digits"] == 1.0 and found["kept_share"]["n"] == 5
  assert found["kept_vs_objects_spearman"]["value"] == pytest.approx(1.0)
  expected = {"0": 0.0, "1": 4.0, "2": 8.0, "4": 16.0}
  assert found["kept_vs_objects_spearman"]["kept_by_objects"] == expected
  assert found["keep_vs_mask_auroc"]["value"] == 1.0


def test_selection_of_equal_counts_has_no_rank():
  truth = truth_of_counts(0, 1, 2)
  keep = np.ones((3, 64), bool)
  found = tokenizer_figures.selection(keep, np.zeros((3, 64)), truth)
  assert found["kept_vs_objects_spearman"]["value"] is None
  assert found["keep_vs_mask_auroc"]["value"] == 0.5


def test_codes_count_kept_patches_only():
  codes, keep = np.array([[0, 1, 2, 3], [0, 1, 5, 5]]), np.array([[1, 1, 0, 0]] * 2)
  found = tokenizer_figures.codes(codes, keep.astype(bool), 8)
  assert found["codes_used"]["value"] == 0.25 and found["codes_used"]["n"] == 4
  assert found["code_perplexity"]["value"] == pytest.approx(2.0)


def test_reconstruction_stands_beside_its_baselines():
  truth = truth_of_counts(1, -1)
  own = np.where(truth.objects, 0.5, 1.0)
  cosines = {
    "own": own,
    "constant_mean": own * 0,
    "object_mean": own * 0,
    "random_mask": own / 2,
  }
  found = tokenizer_figures.reconstruction(cosines, truth)
  assert found["object_patch_cosine"]["value"] == 0.5
  assert found["object_patch_cosine"]["random_mask"] == 0.25
  assert found["object_patch_cosine"]["n"] == 4
  assert found["reconstruction_cosine"]["value"] == pytest.approx(1 - 4 * 0.5 / 128)


def test_windows_are_where_objects_are_drawn():
  windows = patch_reading.cell_windows()
  for cell in range(9):
    o = world.SceneObject("red", "ring", "small", *divmod(cell, 3))
    mask = scenes.draw(world.Scene((o,), "dark")).patch_mask
    np.testing.assert_array_equal(np.flatnonzero(mask), windows[cell])


def test_reading_finds_every_single_object():
  source = scenes.Scenes("test", 20, num_objects=1)
  found = [source[i] for i in range(20)]
  truth = tokenizer_figures.truth_of(found)
  logits = fake_findings.logits_of(*fake_findings.labels_of(found))
  reading = patch_reading.read(logits)
  hits = tokenizer_figures.reading_hits(
    reading, tokenizer_figures.single_objects(truth)
  )
  assert all(hit.all() for hit in hits.values())
  np.testing.assert_array_equal(patch_reading.count_objects(reading), 1)
  smeared = {kind: x.mean(1, keepdims=True) + 0 * x for kind, x in logits.items()}
  hits = tokenizer_figures.reading_hits(
    patch_reading.read(smeared), tokenizer_figures.single_objects(truth)
  )
  assert hits["cell"].mean() < 0.5  # equal everywhere: the place is lost


def test_word_logits_ignore_scale():
  rng = np.random.default_rng(0)
  heads = {
    "word_norm": {"scale": np.ones(8), "bias": np.zeros(8)},
    "word_color": {"kernel": rng.normal(size=(8, 9)), "bias": np.zeros(9)},
  }
  features = rng.normal(size=(2, 4, 8))
  once = patch_reading.word_logits(heads, features)["color"]
  twice = patch_reading.word_logits(heads, 2 * features + 1)["color"]
  assert once.shape == (2, 4, 9)
  np.testing.assert_allclose(once, twice, atol=1e-4)


def test_caption_must_name_exactly_the_one_object():
  truths = [scene(("red", "ring", 0, 0))] * 4
  captions = [
    "a red ring in the top left",
    "a red ring at the top",
    "a red ring and a blue star",
    "a red star",
  ]
  hits = language_figures.caption_hits(captions, truths)
  assert hits["both"] == [True, True, False, False]
  assert hits["color"] == [True, True, False, True]
  assert hits["place"] == [True, False]


def test_caption_of_another_picture_scores_the_neighbour():
  truths = [scene(("red", "ring", 0, 0)), scene(("blue", "star", 1, 1))]
  found = language_figures.caption_figure(["a red ring", "a blue star"], truths, False)
  assert found["value"] == 1.0 and found["other_picture"] == 0.0
  assert found["chance"] == 1 / 42
  assert language_figures.caption_figure([], [], True)["value"] is None


def test_digits_are_parsed():
  truths = [{"digit": 3}, {"digit": 4}]
  found = language_figures.digit_figure(["the digit three", "no idea"], truths)
  assert found["value"] == 0.5 and found["n"] == 2


def test_answers_by_kind_beside_the_majority():
  ask = language_figures.Question
  questions = [
    ask(0, "color", "?", "red"),
    ask(1, "color", "?", "red"),
    ask(2, "color", "?", "blue"),
    ask(3, "count", "?", "two"),
    ask(4, "digit", "?", "six"),
  ]
  answers = [" Red ", "blue", "blue", "two", "six"]
  found = language_figures.answer_figures(questions, answers, ["two"] * 5)
  answer = found["answer_accuracy"]
  assert answer["value"] == 0.75 and answer["n"] == 4
  assert answer["chance"] == 0.75 and answer["other_picture"] == 0.25
  assert answer["kinds"]["color"]["chance"] == pytest.approx(2 / 3)
  assert found["digit_answers"]["value"] == 1.0


def test_questions_come_bare_and_with_their_kind():
  questions = language_figures.questions_of(fake_findings.pictured(24), 30)
  assert 30 <= len(questions) <= 33
  assert not any("Question" in q.text or "Answer" in q.text for q in questions)
  assert {q.kind for q in questions} <= {*scene_texts.KINDS, "digit"}


@pytest.mark.parametrize("novel", [False, True])
def test_requests_are_captions_of_their_object(novel):
  asked = language_figures.requests(novel, 60)
  pairs = world.HELD_OUT if novel else world.SEEN
  assert {request.expected[:2] for request in asked} == set(pairs)
  for request in asked:
    o = request.drawn
    assert scene_texts.parse_caption(request.prompt) == [
      (o.color, o.shape, o.row, o.col)
    ]
