"""The codebook against the reference, and its update by hand."""

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.models import codebook
from lavit_jax.models.feature_decoder import TaskLayer
from lavit_jax.weights import visual_tokenizer


def test_golden_quantizer():
  state, _, arrays = golden_data.load("quantizer.npz")
  rows = state["quantize.embedding.weight"]
  layer = TaskLayer(rows.shape[1], dtype="float32")
  for case in golden_data.cases(arrays).values():
    packed = jnp.asarray(case["packed"])[None]
    target = {
      "encode_task_layer": golden_data.abstract_params(layer, packed),
      "codebook": {"embedding": jax.ShapeDtypeStruct(rows.shape, "float32")},
    }
    params = golden_data.import_checked(visual_tokenizer.QUANTIZER, state, target)
    z = golden_data.run(layer, params["encode_task_layer"], packed)[0]
    z_l2, embedding = codebook.l2_normalize(z), params["codebook"]["embedding"]
    codes = codebook.lookup(embedding, z_l2)
    assert case["token_nums"].sum() == len(codes)
    actual = {
      "z": z,
      "z_l2": z_l2,
      "dist": codebook.distances(embedding, z_l2),
      "z_q": embedding[codes],
      "idx": codes,
    }
    margin = np.sort(actual["dist"], axis=-1)
    actual["margin"] = margin[:, 1] - margin[:, 0]
    clear = case.get("margin", np.ones(len(codes))) > 1e-4
    for name in {"idx", "z_q"} & set(case):  # a near tie may fall either way
      where = clear.reshape(-1, *[1] * (case[name].ndim - 1))
      actual[name] = np.where(where, actual[name], case[name])
    assert clear.mean() > 0.9
    golden_data.check(actual, case, inputs=("packed", "token_nums"))


def test_lookup_uses_rows_as_they_are():
  embedding = jnp.array([[2.0, 0.0], [0.6, 0.6]])  # the longer row has the better angle
  assert codebook.lookup(embedding, jnp.array([[1.0, 0.0]]))[0] == 1


def test_l2_normalize_has_a_gradient_at_zero():
  grad = jax.grad(lambda z: codebook.l2_normalize(z)[0])(jnp.zeros(3))
  assert np.isfinite(grad).all()
  np.testing.assert_array_equal(codebook.l2_normalize(jnp.zeros(3)), 0)


def test_straight_through_has_the_value_of_the_row_and_the_gradient_of_z():
  z, row = jnp.array([0.1, 0.7]), jnp.array([0.3, 0.3])
  np.testing.assert_array_equal(codebook.straight_through(z, row), row)
  weight = jnp.array([2.0, 5.0])
  loss = lambda z, row: (codebook.straight_through(z, row) * weight).sum()
  to_z, to_row = jax.grad(loss, argnums=(0, 1))(z, row)
  np.testing.assert_array_equal(to_z, weight)
  np.testing.assert_array_equal(to_row, 0)


def test_assignments_count_valid_vectors_only():
  codes = jnp.array([[0, 2], [2, 1]])
  z = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[2.0, 3.0], [9.0, 9.0]]])
  valid = jnp.array([[True, True], [True, False]])
  counts, sums = codebook.assignments(codes, z, valid, 3)
  np.testing.assert_array_equal(counts, [1, 0, 2])
  np.testing.assert_array_equal(sums, [[1, 0], [0, 0], [2, 4]])


def test_ema_update_by_hand():
  book = codebook.create(jnp.array([[1.0, 0.0], [0.0, 1.0]]), count=2.0)
  sums = jnp.array([[0.0, 4.0], [0.0, 0.0]])
  book = codebook.ema_update(book, jnp.array([4.0, 0.0]), sums, decay=0.5)
  np.testing.assert_allclose(book.counts, [3, 1])
  np.testing.assert_allclose(book.sums, [[1, 2], [0, 1]])
  np.testing.assert_allclose(book.embedding[0], np.array([1, 2]) / 5**0.5, rtol=1e-6)
  np.testing.assert_allclose(book.embedding[1], [0, 1])


def test_a_code_that_faded_away_keeps_its_row():
  book = codebook.create(jnp.eye(2))
  book = book.replace(sums=jnp.zeros((2, 2)))
  after = codebook.ema_update(book, jnp.zeros(2), jnp.zeros((2, 2)), decay=0.9)
  np.testing.assert_array_equal(after.embedding, np.eye(2))


def test_buffers_of_a_new_codebook_can_be_donated():
  rows = codebook.l2_normalize(jax.random.normal(jax.random.key(0), (8, 4)))
  book = codebook.create(rows)
  pointers = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(book)}
  assert len(pointers) == 3 and rows.unsafe_buffer_pointer() not in pointers
  step = jax.jit(
    lambda book: codebook.ema_update(book, book.counts, book.sums, 0.9),
    donate_argnums=0,
  )
  for _ in range(2):
    book = step(book)
  assert np.isfinite(rows).all() and np.isfinite(book.embedding).all()


def test_revive_replaces_dead_codes_by_distinct_valid_candidates():
  book = codebook.create(jnp.eye(4)).replace(counts=jnp.array([0.01, 5.0, 0.0, 3.0]))
  candidates = codebook.l2_normalize(jax.random.normal(jax.random.key(0), (6, 4)))
  valid = jnp.array([False, True, False, True, True, False])
  after, number = codebook.revive(book, candidates, jax.random.key(1), 0.1, valid)
  assert number == 2
  np.testing.assert_array_equal(after.embedding[jnp.array([1, 3])], np.eye(4)[[1, 3]])
  found = [
    np.flatnonzero((np.asarray(candidates) == row).all(1))[0]
    for row in np.asarray(after.embedding)[[0, 2]]
  ]
  assert found[0] != found[1] and set(found) <= {1, 3, 4}
  np.testing.assert_allclose(after.counts[0], book.counts.mean())
  sums = after.embedding[0] * after.counts[0]
  np.testing.assert_allclose(after.sums[0], sums, rtol=1e-6)


def test_revive_without_valid_candidates_changes_nothing():
  book = codebook.create(jnp.eye(2), count=0.0)
  nothing = jnp.zeros(3, bool)
  after, number = codebook.revive(
    book, jnp.ones((3, 2)), jax.random.key(0), 0.1, nothing
  )
  assert number == 0
  np.testing.assert_array_equal(after.embedding, np.eye(2))


def test_kmeans_finds_separate_directions():
  rng = np.random.default_rng(0)
  centers = np.linalg.qr(rng.normal(size=(8, 8)))[0]
  picks = rng.integers(0, 8, 3000)
  z = centers[picks] + 0.05 * rng.normal(size=(3000, 8))
  z = codebook.l2_normalize(jnp.asarray(z, jnp.float32))
  rows = codebook.kmeans(z, 8, jax.random.key(0), iterations=10)
  np.testing.assert_allclose(jnp.linalg.norm(rows, axis=1), 1, rtol=1e-5)
  cosine = np.asarray(rows) @ centers.T
  assert (cosine.max(axis=0) > 0.99).all()  # every direction has a row
  assert len(np.unique(codebook.lookup(rows, z))) == 8


def test_kmeans_needs_enough_vectors():
  with pytest.raises(ValueError, match="at least 8 vectors"):
    codebook.kmeans(jnp.ones((4, 2)), 8, jax.random.key(0), iterations=1)
