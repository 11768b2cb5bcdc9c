"""Inception's table: every convolution of the published file, and its shapes."""

import math

import jax
import numpy as np
import published
import pytest

from lavit_jax.models import inception
from lavit_jax.weights import inception as weights
from lavit_jax.weights import part, rules


@pytest.fixture(scope="module")
def tree():
  return part.abstract_params(inception.Inception(), part.shape(1, 299, 299, 3))


def test_the_table_fills_the_network(tree):
  shapes = rules.source_shapes(weights.table(), tree)
  assert len(inception.convolutions()) == 94 and len(shapes) == 5 * 94
  assert shapes["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
  assert shapes["Mixed_6c.branch7x7dbl_2.conv.weight"] == (160, 160, 7, 1)
  assert shapes["Mixed_7c.branch3x3dbl_3b.bn.running_var"] == (384,)
  assert {match.path for match in rules.match_keys(weights.table(), shapes, tree)} == (
    set(rules.flatten(tree))
  )
  # 21,785,568 in kernels, scales and biases; each normalization holds two more vectors.
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
  assert count - 2 * 17_216 == 21_785_568


def test_a_file_without_a_block_is_refused(tree, tmp_path):
  shapes = rules.source_shapes(weights.table(), tree)
  few = {k: np.zeros(s, np.float32) for k, s in shapes.items() if "Mixed_7" not in k}
  few["fc.bias"] = np.zeros(1008, np.float32)  # the classifier is left out
  published.write_file(tmp_path / "inception.safetensors", few)
  with pytest.raises(ValueError, match="Missing for the model: .'Mixed_7a.branch3x3_1"):
    weights.read(tmp_path / "inception.safetensors")


def test_plain_pictures_stay_plain():
  images = np.full((1, 7, 500, 3), 77, np.uint8)
  np.testing.assert_allclose(inception.resized(images), 77, rtol=1e-6)


def test_averages_leave_out_the_border():
  x = np.ones((1, 4, 4, 1), np.float32)
  np.testing.assert_allclose(inception._pool(x, inception.AVERAGE, 1), x)
  np.testing.assert_allclose(inception._pool(-x, inception.MAX, 1), -x)
