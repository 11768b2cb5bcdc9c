"""Classifiers of pixels and the figures made of what they read."""

import numpy as np
import pytest

from lavit_jax.toy import pixel_figures, pixel_reading, scenes, world

pytestmark = pytest.mark.usefixtures("compile_fast")


def scene(color, shape, row, col):
  thing = world.SceneObject(color, shape, "large", row, col)
  return world.Scene((thing,), "bright")


def test_windows_are_the_nine_cells():
  picture = scenes.draw(scene("red", "square", 1, 2)).image[None]
  cut = pixel_reading.windows(picture)
  assert cut.shape == (1, 9, 16, 16, 3)
  redness = cut[0].astype(int)[..., 0] - cut[0].astype(int)[..., 1]
  assert redness.mean((1, 2)).argmax() == 5
  color, shape = pixel_reading.window_labels([scene("red", "square", 1, 2).truth()])
  assert color[0, 5] == 0 and world.SHAPES[shape[0, 5]] == "square"
  assert (np.delete(color[0], 5) == pixel_reading.BACKGROUND).all()
  assert (np.delete(shape[0], 5) == -1).all()


def test_readers_learn_true_pictures():
  train = scenes.Scenes("train", 300)
  images = np.stack([train.picture(i).image for i in range(300)])
  truths = [train.scene(i).truth() for i in range(300)]
  digit = np.zeros((20, 64, 64, 3), np.uint8)
  digit[::2, 20:44, 20:44] = 255
  labels = [{"digit": int(i % 2)} for i in range(20)]
  readers = pixel_reading.train(
    np.concatenate([images, digit]), truths + labels, steps=80
  )
  np.testing.assert_array_equal(
    pixel_reading.read_digits(readers, digit), [i % 2 for i in range(20)]
  )
  test = scenes.Scenes("test", 40, num_objects=1)
  expected = [
    (o.color, o.shape, 3 * o.row + o.col)
    for o in (test.scene(i).objects[0] for i in range(40))
  ]
  reading = pixel_reading.read(
    readers, np.stack([test.picture(i).image for i in range(40)])
  )
  right = pixel_figures.hits(reading, expected)
  assert right["cell"].mean() > 0.9 and right["color"].mean() > 0.8


def test_figures_count_what_is_right():
  reading = pixel_reading.PixelReading(
    foreground=np.zeros((2, 9)),
    cell=np.array([4, 0]),
    color=np.array([0, 1]),
    shape=np.array([2, 3]),
  )
  expected = [("red", world.SHAPES[2], 4), ("red", world.SHAPES[3], 0)]
  right = pixel_figures.hits(reading, expected)
  figures = pixel_figures.scene_figures("drawn", right, "requests")
  assert figures["drawn_color_shape"]["value"] == 0.5
  assert figures["drawn_color_shape"]["shape"] == 1.0
  assert figures["drawn_cell"]["value"] == 1.0
  assert figures["drawn_cell"]["chance"] == 1 / 9
  digit = pixel_figures.digit_figure(np.array([1, 2]), np.array([1, 3]), 0.9, 0.8)
  assert digit["value"] == 0.5 and digit["reconstructed"] == 0.8


def test_links_tell_where_drawings_are_lost():
  hit = lambda *right: {
    name: np.array(right, bool) for name in ("color", "shape", "both", "cell")
  }
  scenes_by_link = {"true codes": hit(1, 1, 1, 0), "drawn codes": hit(1, 0)}
  found = pixel_figures.link_figure(
    scenes_by_link, {"true codes": 0.9, "drawn codes": 0.4}, "requests"
  )
  assert found["value"] == 0.5 and found["n"] == 2
  assert found["links"]["true codes"] == dict(
    color_shape=0.75, cell=0.75, all_three=0.75, digit=0.9, n=4
  )
