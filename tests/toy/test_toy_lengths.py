"""Length against content: means and deviations by number of objects."""

import numpy as np

from lavit_jax.toy import length_figures, tokenizer_figures


def truth():
  objects = np.zeros((4, 16), bool)
  objects[1, :4] = objects[2, :8] = True
  return tokenizer_figures.Truth(objects, np.array([0, 1, 2, -1]), [{}] * 4)


def test_digits_count_for_no_number_of_objects():
  found = length_figures.by_objects(np.array([2.0, 5.0, 9.0, 60.0]), truth())
  assert found == {
    str(count): {"mean": mean, "deviation": 0.0}
    for count, mean in enumerate((2.0, 5.0, 9.0))
  }


def test_spread_is_that_of_pictures_with_as_many_objects():
  known = tokenizer_figures.Truth(
    np.zeros((4, 16), bool), np.array([1, 1, 1, 0]), [{}] * 4
  )
  found = length_figures.by_objects(np.array([1.0, 2.0, 3.0, 9.0]), known)
  np.testing.assert_allclose(found["1"]["deviation"], np.sqrt(2 / 3))
  assert found["1"]["mean"] == 2 and found["0"]["mean"] == 9


def test_selections_are_told_apart_by_what_they_keep():
  known = truth()
  half = np.tile(np.arange(16) % 2 == 0, (4, 1))
  masks = {"selector": known.objects, "random": half}
  cosines = {"selector": np.where(known.objects, 0.9, 0.1), "random": half * 0.5}
  figure = length_figures.object_patches_kept(masks, cosines, known)[
    "object_patches_kept"
  ]
  assert figure["value"] == 1.0 and figure["n"] == 12
  np.testing.assert_allclose(figure["chance"], 12 / 64)
  own, other = figure["selections"]["selector"], figure["selections"]["random"]
  assert other["object_patches_kept"] == 0.5 and other["kept_share"] == 0.5
  np.testing.assert_allclose(own["object_patch_cosine"], 0.9)
  np.testing.assert_allclose(other["object_patch_cosine"], 0.25)
  assert own["kept_by_objects"]["2"] == {"mean": 8.0, "deviation": 0.0}
