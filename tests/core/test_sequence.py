"""Gathers and masks by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax.core import sequence


def test_left_align_keeps_order():
  features = jnp.arange(1.0, 9.0).reshape(2, 4, 1)
  keep = jnp.array([[False, True, False, True], [False] * 4])
  aligned, length = sequence.left_align(features, keep)
  np.testing.assert_array_equal(aligned[..., 0], [[2, 4, 0, 0], [0, 0, 0, 0]])
  np.testing.assert_array_equal(length, [2, 0])


def test_left_align_sends_gradient_to_kept_rows_only():
  keep = jnp.array([[False, True, False, True]])
  weight = jnp.array([1.0, 10.0, 100.0, 1000.0])
  loss = lambda x: (sequence.left_align(x, keep)[0][..., 0] * weight).sum()
  grad = jax.grad(loss)(jnp.ones((1, 4, 1)))
  np.testing.assert_array_equal(grad[0, :, 0], [0, 1, 0, 10])


def test_features_are_taken_from_their_own_row():
  features = jnp.arange(1.0, 7.0).reshape(2, 3, 1)
  index = jnp.array([[2, -1, 0, 0], [-1, 1, -1, 2]])
  taken = sequence.gather_features(features, index)
  np.testing.assert_array_equal(taken[..., 0], [[3, 0, 1, 1], [0, 5, 0, 6]])


def test_positions_without_a_feature_send_no_gradient():
  index = jnp.array([[2, -1, 0, 0]])
  loss = lambda x: sequence.gather_features(x, index).sum()
  grad = jax.grad(loss)(jnp.ones((1, 3, 1)))
  np.testing.assert_array_equal(grad[0, :, 0], [2, 0, 1])


def test_packed_mask_by_hand():
  segments = jnp.array([[1, 1, 2, 2, 0]])
  mask = sequence.packed_mask(segments)
  expected = [
    [1, 0, 0, 0, 0],
    [1, 1, 0, 0, 0],
    [0, 0, 1, 0, 0],
    [0, 0, 1, 1, 0],
    [0, 0, 0, 0, 0],
  ]
  np.testing.assert_array_equal(mask[0], np.array(expected, bool))


def test_targets_are_one_to_the_right():
  tokens = jnp.array([[5, 6, 7]])
  np.testing.assert_array_equal(sequence.next_tokens(tokens), [[6, 7, 0]])


def test_percentiles_are_those_of_the_valid_counts():
  rng = np.random.default_rng(0)
  counts, valid = rng.integers(0, 26, (40, 3)), rng.random((40, 3)) < 0.8
  found = sequence.percentiles(jnp.asarray(counts), 25, jnp.asarray(valid))
  for name, share in (("p10", 0.1), ("p50", 0.5), ("p90", 0.9)):
    assert found[name] == np.quantile(counts[valid], share, method="inverted_cdf")
  nothing = sequence.percentiles(jnp.asarray(counts), 25, jnp.zeros((40, 3), bool))
  assert set(map(int, nothing.values())) == {0}
