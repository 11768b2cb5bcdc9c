"""Decoding defaults: a model directory carries them, and what runs it reads them."""

import json
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
import toy_pixels
from PIL import Image
from test_api import folders, pictures  # noqa: F401  (fixtures)

from configs import finetune as finetune_config
from configs import pretrain as pretrain_config
from lavit_jax import evaluate_model, infer
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.data import text
from lavit_jax.evaluate import model_tasks
from lavit_jax.generate import decoding, pixels
from lavit_jax.inference import api, requests
from lavit_jax.toy import scene_texts, study, world
from lavit_jax.weights import model_directory

pytestmark = pytest.mark.usefixtures("compile_fast")

WORDS = Vocabulary(text_size=40, num_codes=24)
OWN = {
  "caption": dict(beams=1, max_new=12, min_new=3),
  "answer": dict(beams=1, max_new=5, min_new=1),
  "draw": dict(max_new=9, min_new=2, guidance=2.0, temperature=0.0),
}


@pytest.fixture(scope="module")
def folder(folders):  # noqa: F811
  """A model directory that carries defaults of its own, with a pixel decoder."""
  parts = toy_pixels.parts(width=16)
  model_directory.save(folders / "own", parts, base=folders / "whole", decoding=OWN)
  return folders / "own"


@pytest.fixture(scope="module")
def model(folder):
  return api.LaVIT.load(folder, batch_size=2)


# Numbers


def test_the_references_numbers_are_those_of_its_code():
  caption = decoding.text("caption", decoding.REFERENCE["caption"], WORDS)
  settings = caption.settings
  assert (caption.count, caption.length_penalty, caption.early_stopping) == (
    2,
    1,
    False,
  )
  assert (settings.end, settings.max_new, settings.min_new) == (WORDS.end, 36, 8)
  answer = decoding.text("answer", decoding.REFERENCE["answer"], WORDS)
  assert (answer.count, answer.length_penalty, answer.early_stopping) == (5, 0.0, True)
  assert (answer.settings.max_new, answer.settings.min_new) == (10, 2)
  draw = decoding.drawing(decoding.REFERENCE["draw"], WORDS, 256, "reference")
  assert (draw.max_new, draw.min_new, draw.top_k, draw.top_p) == (200, 20, 50, 1.0)
  assert (draw.guidance, draw.temperature, draw.allowed) == (4.0, 1.0, "reference")


def test_what_is_given_wins_and_what_is_missing_is_the_references():
  found = decoding.complete({"answer": {"min_new": 1}}, patches=256)
  assert found["answer"] == decoding.REFERENCE["answer"] | {"min_new": 1}
  assert found["caption"] == decoding.REFERENCE["caption"]
  given = decoding.changed("answer", found["answer"], {"beams": 3, "max_new": None})
  assert given == found["answer"] | {"beams": 3}


def test_lengths_fit_each_other():
  own = decoding.REFERENCE["caption"]
  found = decoding.changed("caption", own, {"max_new": 5})
  assert (found["min_new"], found["max_new"]) == (4, 5)
  found = decoding.complete({}, patches=16)["draw"]
  assert (found["min_new"], found["max_new"]) == (15, 16)
  with pytest.raises(ValueError, match=r"min_new must be in \[0, 5\), got 5"):
    both = decoding.changed("caption", own, {"max_new": 5, "min_new": 5})
    decoding.text("caption", both, WORDS)


def test_mistakes_are_named():
  with pytest.raises(ValueError, match="caption takes beams, .* got temperature"):
    decoding.changed("caption", decoding.REFERENCE["caption"], {"temperature": 1.0})
  with pytest.raises(ValueError, match="top_p has no effect at temperature 0, where"):
    decoding.changed("draw", decoding.TINY["draw"], {"top_p": 0.5})
  both = {"top_p": 0.5, "temperature": 1.0}
  found = decoding.changed("draw", decoding.TINY["draw"], both)
  assert found == decoding.TINY["draw"] | both
  with pytest.raises(ValueError, match=r"of caption, answer, draw, got \['sing'\]"):
    decoding.complete({"sing": {}}, patches=16)
  with pytest.raises(ValueError, match="config.decoding.answer: count must be in"):
    decoding.check({"answer": {"beams": 99}}, WORDS, 16)


def test_tiny_models_can_say_the_longest_caption_and_answer_in_a_word(toy_data):
  tokenizer = text.load_text_tokenizer(toy_data / "text_tokenizer")
  length = lambda words: len(tokenizer.encode(words))
  phrases = [
    f"{scene_texts.with_article(f'{size} {color} {shape}')} {scene_texts.place(0, 0)}"
    for size in world.SIZES
    for color in world.COLORS
    for shape in world.SHAPES
  ]
  longest = max(phrases, key=length)
  six = "a picture of " + scene_texts._join([longest] * world.MAX_OBJECTS)
  most = decoding.TINY["caption"]["max_new"]
  assert decoding.REFERENCE["caption"]["max_new"] < length(six) + 1 <= most
  assert decoding.TINY["answer"]["min_new"] == length("six") == 1


@pytest.mark.parametrize("file", [pretrain_config, finetune_config])
def test_configs_hold_the_defaults_of_their_size(file):
  found = file.get_config("tiny").decoding.to_dict()
  assert found == decoding.TINY
  assert file.get_config("7b").decoding.to_dict() == decoding.REFERENCE
  decoding.check(found, WORDS, 64)


# Directories


def test_an_older_directory_gets_the_references(folders):  # noqa: F811
  assert "decoding" not in model_directory.read_manifest(folders / "whole")
  model = api.LaVIT.load(folders / "whole", batch_size=2)
  assert model.defaults == decoding.complete({}, patches=16)
  assert model.how("answer").count == 5


def test_a_stage_on_top_keeps_the_defaults(folders, tmp_path):  # noqa: F811
  model_directory.save(folders / "below", {}, base=folders / "whole", decoding=OWN)
  model_directory.save(tmp_path / "above", {}, base=folders / "below")
  assert model_directory.decoding_of(tmp_path / "above") == OWN


# Who reads them


def test_captions_and_answers_are_decoded_by_the_directory(model):
  images = pictures(2)
  how = model.how("caption")
  assert (how.max_new, how.min_new) == (12, 3)
  explicit = decoding.text(
    "caption", decoding.REFERENCE["caption"] | OWN["caption"], WORDS
  )
  assert model.caption(images) == model.caption(images, how=explicit)
  reference = decoding.text("caption", decoding.REFERENCE["caption"], WORDS)
  assert model.caption(images) != model.caption(images, how=reference)
  assert list(model.stream(images[0]))[-1] == model.caption(images[0])[0]
  assert model.answer(images, ["a?", "b?"]) == model.answer(
    images, ["a?", "b?"], how=model.how("answer", beams=1, max_new=5, min_new=1)
  )


def test_drawings_are_decoded_by_the_directory(model):
  codes = model.draw_codes("a red circle")[0]
  for one in (
    model.draw_codes("a red circle", seed=7)[0],  # the most probable code: no chance
    model.draw_codes("a red circle", guidance=2.0, temperature=0.0)[0],
    model.draw_codes("a red circle", how=model.how("draw"))[0],
  ):
    np.testing.assert_array_equal(one, codes)
  assert 2 <= len(codes) <= 9
  other = model.draw_codes("a red circle", temperature=1.0, seed=7)[0]
  assert other.tolist() != codes.tolist()
  with pytest.raises(ValueError, match="`how` or some of guidance, .* got both"):
    model.draw_codes("a", guidance=1.0, how=model.how("draw"))
  with pytest.raises(ValueError, match="max_new must be at most 16"):
    model.how("draw", max_new=17)


def test_drawings_of_the_same_codes_are_no_copies(model):
  quick = pixels.Settings(steps=2, guidance=1.0, solver="dpm")
  one, two = model.draw("a red circle", n=2, sampling=quick)
  assert (np.asarray(one) != np.asarray(two)).mean() > 0.2
  alone = model.draw("a red circle", sampling=quick)[0]
  assert abs(np.asarray(alone).astype(int) - np.asarray(one)).max() <= 1
  codes = model.draw_codes("a red circle")
  painted = model.paint(codes, (64, 64), quick)[0]
  np.testing.assert_array_equal(np.asarray(painted), np.asarray(alone))


def test_requests_are_decoded_by_the_directory(model):
  image = pictures(1)[0]
  asked = [
    {"task": "caption", "image": image},
    {"task": "answer", "image": image, "question": "a?"},
    {"task": "draw", "prompt": "a red circle"},
  ]
  caption, answer, draw = requests.serve(model, asked)
  assert caption["text"] == model.caption(image)[0]
  assert answer["text"] == model.answer(image, "a?")[0]
  assert draw["codes"] == [model.draw_codes("a red circle")[0].tolist()]
  how = requests.check(model, asked[0] | {"beams": 4}).how
  assert (how.count, how.settings.max_new, how.settings.min_new) == (4, 12, 3)
  how = requests.check(model, asked[2] | {"setting": "reference"}).how
  assert (how.allowed, how.guidance, how.temperature) == ("reference", 4.0, 1.0)


def given(**more) -> types.SimpleNamespace:
  """Flags of `infer` as they are when none is given."""
  flags = dict.fromkeys(infer.DECODING_FLAGS) | dict(stream=False, prompts=[], n=1)
  return types.SimpleNamespace(**(flags | more))


def test_infer_decodes_by_the_directory_and_its_flags(model, tmp_path, capsys):
  path = tmp_path / "a.png"
  Image.fromarray(pictures(1)[0]).save(path)
  said = lambda: capsys.readouterr().out.strip()
  infer.caption(model, given(images=[str(path)]))
  assert said() == f"{path}: {model.caption(path)[0]}".strip()
  how = model.how("caption", beams=3, min_new=6, max_new=9)
  infer.caption(model, given(images=[str(path)], beams=3, min_new=6, max_new=9))
  assert said() == f"{path}: {model.caption(path, how=how)[0]}".strip()
  infer.answer(model, given(images=[str(path)], questions=["a?"]))
  assert said() == f"a? {model.answer(path, 'a?')[0]}".strip()
  with pytest.raises(ValueError, match="one beam, got --beams=2"):
    infer.caption(model, given(images=[str(path)], stream=True, beams=2))
  draw = given(images=[], prompts=["a"], target=str(tmp_path), top_k=5)
  with pytest.raises(ValueError, match="top_k has no effect at temperature 0"):
    infer.draw(model, draw)


class Flags(dict):
  """Flags of which some were given on the command line."""

  def __getitem__(self, name):
    return types.SimpleNamespace(present=int(name in self))


@pytest.mark.parametrize(
  "verb, name",
  [
    ("caption", "temperature"),
    ("caption", "top_k"),
    ("caption", "guidance"),
    ("answer", "top_p"),
    ("answer", "stream"),
    ("draw", "beams"),
    ("draw", "questions"),
    ("reconstruct", "min_new"),
    ("reconstruct", "n"),
    ("batch", "beams"),
    ("batch", "images"),
  ],
)
def test_a_flag_without_effect_is_refused(verb, name):
  with pytest.raises(ValueError, match=f"{verb} takes .* got --{name}, without effect"):
    infer.check_flags(verb, Flags({name: 1}))
  infer.check_flags(verb, Flags({own: 1 for own in infer.FLAGS[verb]}))


def test_the_command_refuses_before_it_loads_a_model(tmp_path):
  root = str(pathlib.Path(__file__).parents[1])
  done = subprocess.run(
    [
      *(sys.executable, "-m", "lavit_jax.infer", "caption", f"--model={tmp_path}"),
      *("--images=a.png", "--temperature=1"),
    ],
    env=os.environ | {"PYTHONPATH": root},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert "error: caption takes --images" in done.stderr
  assert "got --temperature" in done.stderr


def test_evaluations_decode_by_the_directory_and_say_so(model, tmp_path, monkeypatch):
  monkeypatch.setattr(model_tasks.ranking, "scorer_of", lambda model, folder: None)
  flags = dict(images=str(tmp_path), prompt="", target=str(tmp_path), truth="")
  flags |= dict(protocol="vqa", lemmas=False, min_new=None, guidance=None, top_k=None)
  flags |= dict(n=2, seed=0, ranker="", inception="", model=model.folder)
  Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")
  make = lambda name, **more: evaluate_model.make_task(
    name, model, types.SimpleNamespace(**(flags | more))
  )
  task = make("vqa")
  assert task.settings["decoding"] == model.defaults["answer"]
  asked = [{"image": "a.png", "question": "a?"}]
  assert task.predict(asked) == model.answer(tmp_path / "a.png", "a?")
  assert make("vqa", min_new=2).settings["decoding"]["min_new"] == 2
  assert make("caption").settings["decoding"] == model.defaults["caption"]
  facts = make("text_to_image", guidance=1.5).settings
  assert facts["decoding"] == model.defaults["draw"] | {"guidance": 1.5}
  assert facts["pixels"] == toy_pixels.SAMPLING
  json.dumps(facts)


def test_drawings_of_an_evaluation_follow_its_settings(tmp_path, monkeypatch):
  seen = {}

  def draw(texts, n, **how):
    seen.update(how)
    return [Image.new("RGB", (8, 8))] * (n * len(texts))

  Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
  fake = types.SimpleNamespace(draw=draw, batch_size=2, image_size=8)
  score = lambda folder, texts: np.zeros(len(texts))
  monkeypatch.setattr(model_tasks.ranking, "scorer_of", lambda model, folder: score)
  predict, _ = model_tasks.drawing(
    fake, str(tmp_path), str(tmp_path), "", "", 2, how="how", seed=3
  )
  assert predict([{"id": 1, "text": "a", "image": "a.png"}]) == [0.0]
  assert seen == {"how": "how", "seed": 3}


def test_the_toy_study_asks_as_a_user_does(monkeypatch):
  """Without a word on decoding: the report's figures are those of the defaults."""

  class Model:
    def caption(self, images):
      return ["a red ring"] * len(images)

    def answer(self, images, questions):
      return ["six"] * len(questions)

  question = study.language_figures.Question(0, "count", "how many?", "six")
  monkeypatch.setattr(
    study.language_figures, "questions_of", lambda records, most: [question]
  )
  objects = [dict(color="red", shape="ring", row=0, col=0)]
  truth = types.SimpleNamespace(
    scene=np.array([True]), single=np.array([0]), truths=[{"objects": objects}]
  )
  split = study.Split([{}], np.zeros((1, 8, 8, 3), np.uint8), truth)
  figures, _ = study._study_answers(Model(), split, 1)
  assert figures["answer_accuracy"]["value"] == 1.0
  found = study._study_captions(Model(), split, split, 1)
  assert found["caption_color_shape"]["value"] == 1.0
