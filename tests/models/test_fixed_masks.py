"""Fixed masks: as many patches as asked for, and which ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.models import fixed_masks


def test_counts_have_the_mean_and_differ_by_one_at_most():
  counts = fixed_masks.counts_of_mean(16.3, 1000)
  assert set(counts) == {16, 17} and abs(counts.mean() - 16.3) < 1e-3


def test_every_mask_keeps_what_is_asked_for():
  count = np.array([0, 3, 9])
  noise = jax.random.normal(jax.random.key(0), (3, 9))
  log_probs = -jax.random.exponential(jax.random.key(1), (3, 9))
  for keep in (
    fixed_masks.random(noise, count),
    fixed_masks.top_n(log_probs, count),
    fixed_masks.grid(9, count),
  ):
    assert keep.dtype == jnp.float32 and set(np.unique(keep)) == {0, 1}
    np.testing.assert_array_equal(keep.sum(1), count)


def test_top_n_keeps_the_most_probable():
  log_probs = jnp.log(jnp.array([[0.1, 0.7, 0.4, 0.6]]))
  keep = fixed_masks.top_n(log_probs, np.array([2]))
  np.testing.assert_array_equal(keep, [[0, 1, 0, 1]])


def test_random_masks_favour_no_patch():
  noise = jax.random.uniform(jax.random.key(2), (4000, 16))
  keep = fixed_masks.random(noise, np.full(4000, 4))
  np.testing.assert_allclose(keep.mean(0), 0.25, atol=0.03)


def test_a_quarter_of_the_patches_is_every_second_row_and_column():
  keep = np.asarray(fixed_masks.grid(64, np.array([16, 16]))).reshape(2, 8, 8)
  expected = np.zeros((8, 8))
  expected[::2, ::2] = 1
  np.testing.assert_array_equal(keep, [expected, expected])


def test_grids_of_any_count_leave_no_region_out():
  keep = np.asarray(fixed_masks.grid(256, np.array([40])))[0].reshape(16, 16)
  quarters = keep.reshape(2, 8, 2, 8).sum((1, 3))
  assert quarters.min() >= 8


def test_patches_that_make_no_square_are_refused():
  with pytest.raises(ValueError, match="expected a square number of patches, got 12"):
    fixed_masks.grid(12, np.array([3]))
