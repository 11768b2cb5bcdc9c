"""Pictures from a tiny model directory of random parameters."""

import types

import jax
import numpy as np
import pytest
import test_api
import toy_pixels
from PIL import Image

from lavit_jax import infer
from lavit_jax.generate import pixels
from lavit_jax.inference import api, sheet
from lavit_jax.weights import model_directory

compile_fast, folders = test_api.compile_fast, test_api.folders
QUICK = pixels.Settings(steps=2, guidance=2.0, solver="dpm")


@pytest.fixture(scope="module")
def model(folders):
  parts = toy_pixels.parts(width=16)
  model_directory.save(folders / "pixels", parts, base=folders / "whole")
  return api.LaVIT.load(folders / "pixels", batch_size=2)


def arrays(pictures) -> np.ndarray:
  return np.stack([np.asarray(picture) for picture in pictures])


def test_drawings_follow_from_prompt_and_seed_alone(model):
  together = arrays(model.draw(["a red circle", "two stars", "a"], sampling=QUICK))
  assert together.shape == (3, 64, 64, 3) and together.dtype == np.uint8
  alone = arrays(model.draw("two stars", sampling=QUICK))
  assert abs(alone[0].astype(int) - together[1]).max() <= 1  # rounding of a batch
  assert (together[0] != together[1]).mean() > 0.2
  other = arrays(model.draw("two stars", seed=1, sampling=QUICK))
  assert (other[0] != alone[0]).mean() > 0.2


def test_reconstruction_paints_the_pictures_own_codes(model):
  images = test_api.pictures(2)
  codes = [found["codes"] for found in model.tokenize(images)]
  painted = arrays(model.paint(codes, (64, 64), QUICK))
  np.testing.assert_array_equal(
    arrays(model.reconstruct(images, sampling=QUICK)), painted
  )
  assert model.pixel_decoder.settings == pixels.Settings(**toy_pixels.SAMPLING)


def test_a_prompt_of_pictures_and_text_is_their_bare_codes(model, tmp_path):
  image = test_api.pictures(1)[0]
  Image.fromarray(image).save(tmp_path / "a.png")
  words = model.language.vocabulary
  codes = (model.tokenize(image)[0]["codes"] + words.code_start).tolist()
  text = model.language.tokenizer.encode("two stars")
  assert model._prompt_ids([tmp_path / "a.png", "two stars"]) == codes + text
  assert model._prompt_ids([image, image]) == codes + codes
  drawn = model.draw_codes([[image, "two stars"], "two stars"], top_k=8)
  assert drawn[0].tolist() != drawn[1].tolist()


def test_a_checker_blanks_what_it_flags(model):
  codes = [np.array([3, 1]), np.array([2])]
  free = arrays(model.paint(codes, (64, 64), QUICK))
  model.image_checker = lambda drawn: np.arange(len(drawn)) == 1
  checked = arrays(model.paint(codes, (64, 64), QUICK))
  model.image_checker = lambda drawn: [True]
  with pytest.raises(ValueError, match="one flag for each of 2 pictures"):
    model.paint(codes, (64, 64), QUICK)
  model.image_checker = None
  np.testing.assert_array_equal(checked[0], free[0])
  assert free[1].any() and not checked[1].any()


def test_mistakes_end_in_one_sentence(model):
  for arguments, words in (
    (dict(ratio="4:3"), "draws the ratios 1:1, got '4:3'"),
    (dict(size=(64, 100)), "multiples of 64 pixels, got 64x100"),
  ):
    with pytest.raises(ValueError, match=words):
      model.draw("a", **arguments)
  with pytest.raises(ValueError, match="1 to 16 codes"):
    model.paint([np.array([], int)], (64, 64))


def test_a_unet_of_another_width_is_refused(folders):
  parts = toy_pixels.parts(width=16)
  facts = parts["condition"].config | {"head": dict(condition_dim=12)}
  parts["condition"] = model_directory.Part(parts["condition"].params, facts)
  model_directory.save(folders / "misfit", parts, base=folders / "whole")
  with pytest.raises(ValueError, match="width 8, .* head makes .* width 12,"):
    _ = api.LaVIT.load(folders / "misfit").pixel_decoder


def given(tmp_path, **more):
  defaults = dict(
    images=[],
    prompts=[],
    target=str(tmp_path / "out"),
    n=1,
    keep_best=False,
  )
  defaults |= dict.fromkeys(infer.DECODING_FLAGS) | dict(guidance=2.0)
  defaults |= dict(ratio="1:1", size="", solver="", steps=2, pixel_guidance=1.0)
  return types.SimpleNamespace(**(defaults | more))


def test_infer_writes_pictures_and_a_sheet(model, tmp_path, capsys):
  Image.fromarray(test_api.pictures(1)[0]).save(tmp_path / "a.png")
  infer.reconstruct(model, given(tmp_path, images=[str(tmp_path / "a.png")]))
  said = capsys.readouterr().out
  assert infer.CHECKER_NOTE in said and "0000.png" in said
  assert Image.open(tmp_path / "out" / "0000.png").size == (64, 64)
  assert Image.open(tmp_path / "out" / "grid.png").width > sheet.TILE
  infer.draw(
    model, given(tmp_path, prompts=["a", "two"], n=2, target=str(tmp_path / "b"))
  )
  assert len(list((tmp_path / "b").glob("000*.png"))) == 4
  with pytest.raises(ValueError, match="HEIGHTxWIDTH, got '64'"):
    infer.draw(model, given(tmp_path, prompts=["a"], size="64"))


def test_the_keys_of_pictures_are_their_own():
  names = np.array([3, 5], np.uint32)
  keys = api.tasks.fold_keys(jax.random.key(0), names, np.zeros_like(names))
  again = api.tasks.fold_keys(
    jax.random.key(0), names[::-1].copy(), np.zeros_like(names)
  )
  data = lambda key: jax.random.key_data(key)
  np.testing.assert_array_equal(data(keys[0]), data(again[1]))
