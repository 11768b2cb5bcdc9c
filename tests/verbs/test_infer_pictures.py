"""`infer` over many pictures: folders and patterns in, bad ones named and left out."""

import types

import pytest
from PIL import Image

from lavit_jax import infer


class FakeModel:
  """Names the red of what it is shown."""

  image_size = 8

  def how(self, task, **numbers):
    return task

  def caption(self, images, prompt, how):
    return [f"red {image[0, 0, 0]}" for image in images]

  def answer(self, images, questions, how):
    return [f"red {image[0, 0, 0]}" for image in images]


@pytest.fixture
def shelf(tmp_path):
  for i in range(3):
    Image.new("RGB", (9, 9), (10 * i, 0, 0)).save(tmp_path / f"{i}.png")
  (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
  (tmp_path / "notes.txt").write_text("no picture")
  return tmp_path


def given(images, questions=()):
  decoding = dict.fromkeys(infer.DECODING_FLAGS)
  return types.SimpleNamespace(
    images=images, prompts=[], questions=[*questions], stream=False, **decoding
  )


def test_a_bad_picture_is_named_and_the_rest_goes_on(shelf, capsys):
  with pytest.raises(ValueError, match="1 of 3 pictures could not be read"):
    infer.caption(FakeModel(), given([str(shelf)]))
  said = capsys.readouterr()
  assert said.out.splitlines() == [f"{shelf}/0.png: red 0", f"{shelf}/2.png: red 20"]
  assert said.err.startswith(f"failed: expected a picture at {shelf}/1.png")


def test_questions_about_a_bad_picture_are_left_out(shelf, capsys):
  asked = given([str(shelf / "{0..2}.png")], ["a?", "b?", "c?"])
  with pytest.raises(ValueError, match="1 of 3 pictures"):
    infer.answer(FakeModel(), asked)
  assert capsys.readouterr().out.splitlines() == ["a? red 0", "c? red 20"]
  infer.answer(FakeModel(), given([str(shelf / "2.png")], ["a?", "b?"]))
  assert capsys.readouterr().out.splitlines() == ["a? red 20", "b? red 20"]


def test_pictures_and_questions_must_pair(shelf):
  with pytest.raises(ValueError, match="expected one picture, or one for each of 3"):
    infer.answer(FakeModel(), given([f"{shelf}/0.png,{shelf}/2.png"], ["a?"] * 3))
