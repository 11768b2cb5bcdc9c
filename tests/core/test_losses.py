"""Losses against numbers computed by hand or in one line of numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.core import losses, traced_flops

B, L, D, V, SIZE = 2, 5, 4, 12, 10  # ten real ids, two of padding


def example():
  rng = np.random.default_rng(0)
  hidden = rng.normal(size=(B, L, D)).astype(np.float32)
  head = rng.normal(size=(D, V)).astype(np.float32) * 2
  targets = rng.integers(0, SIZE, (B, L)).astype(np.int32)
  mask = rng.random((B, L)) < 0.7
  return jnp.asarray(hidden), jnp.asarray(head), targets, mask


def test_cross_entropy_is_that_of_the_real_ids():
  hidden, head, targets, mask = example()
  found = losses.next_token(hidden, head, targets, mask, SIZE)
  logits = np.asarray(hidden @ head)[..., :SIZE].astype(np.float64)
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  picked = -np.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
  np.testing.assert_allclose(found.losses, picked * mask, atol=1e-5)
  np.testing.assert_array_equal(found.correct, (logits.argmax(-1) == targets) & mask)
  assert found.count == mask.sum()
  summed = np.log(np.exp(logits).sum(-1))
  np.testing.assert_allclose(found.normalizer, summed * mask, atol=1e-5)


@pytest.mark.parametrize("chunks", [1, 3])
def test_the_normalizer_has_the_gradient_of_a_plain_log_sum_exp(chunks):
  hidden, head, targets, mask = example()

  def ours(hidden, head):
    found = losses.next_token(hidden, head, targets, mask, SIZE, chunks)
    return jnp.square(found.normalizer).sum()

  def plain(hidden, head):
    logits = (hidden @ head)[..., :SIZE]
    return (jnp.square(jax.nn.logsumexp(logits, -1)) * mask).sum()

  for a, b in zip(*(jax.grad(f, (0, 1))(hidden, head) for f in (ours, plain))):
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("chunks", [2, 3, 6, 12])
def test_chunks_of_the_vocabulary_change_nothing(chunks):
  hidden, head, targets, mask = example()

  def run(hidden, head, chunks):
    found = losses.next_token(hidden, head, targets, mask, SIZE, chunks)
    return found.losses.sum(), found

  grad = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)
  (_, whole), grads = grad(hidden, head, 1)
  (_, split), split_grads = grad(hidden, head, chunks)
  np.testing.assert_allclose(split.losses, whole.losses, atol=1e-6)
  np.testing.assert_array_equal(split.correct, whole.correct)
  for a, b in zip(split_grads, grads):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_one_chunk_is_kept_and_several_are_computed_again():
  hidden, head, targets, mask = example()

  def flops(chunks):
    run = lambda *args: losses.next_token(
      *args, targets, mask, SIZE, chunks
    ).losses.sum()
    return traced_flops.flops(jax.jit(jax.grad(run, (0, 1))).trace(hidden, head).jaxpr)

  assert flops(1) == 3 * 2 * B * L * D * V
  assert flops(2) == 4 * 2 * B * L * D * V


def test_the_heads_gradient_is_a_product_in_the_compute_dtype():
  hidden, head, *_ = example()
  wide = (hidden.astype("bfloat16"), head.astype("bfloat16"))
  run = lambda *args: losses.token_logits(*args).sum()
  products = str(jax.make_jaxpr(jax.grad(run, (0, 1)))(*wide))
  kinds = [line for line in products.splitlines() if "dot_general" in line]
  assert sum(":bf16" in line for line in kinds) == 2, products


@pytest.mark.parametrize("chunks", [1, 6])
def test_padded_ids_get_no_gradient_and_give_none(chunks):
  hidden, head, targets, mask = example()
  run = lambda h: losses.next_token(hidden, h, targets, mask, SIZE, chunks).losses.sum()
  value, grad = jax.value_and_grad(run)(head)
  assert np.isfinite(grad).all() and not np.asarray(grad)[:, SIZE:].any()
  # With six chunks the last one is all padding.
  assert run(head.at[:, SIZE:].set(50.0)) == value


def test_masked_positions_get_no_gradient():
  hidden, head, targets, _ = example()
  mask = np.zeros((B, L), bool)
  mask[0, 2] = True
  run = lambda h: losses.next_token(h, head, targets, mask, SIZE, 2).losses.sum()
  grad = np.asarray(jax.grad(run)(hidden))
  reached = np.abs(grad).max(-1) > 0
  np.testing.assert_array_equal(reached, mask)


def test_chunks_must_divide_the_vocabulary():
  hidden, head, targets, mask = example()
  with pytest.raises(ValueError, match="12 rows is not a multiple of 5 loss chunks"):
    losses.next_token(hidden, head, targets, mask, SIZE, 5)


def test_feature_cosine_by_hand():
  a = jnp.array([[[3.0, 0.0], [1.0, 1.0], [1.0, 0.0]]])
  b = jnp.array([[[5.0, 0.0], [-2.0, -2.0], [0.0, 4.0]]])
  np.testing.assert_allclose(losses.feature_cosine(a, b), [[0, 2, 1]], atol=1e-6)


def test_keep_rate_is_the_squared_distance_of_the_batch_mean():
  np.testing.assert_allclose(losses.keep_rate(jnp.array(0.5), 0.25), 0.0625)


def test_contrastive_loss_of_a_perfect_batch_and_of_twin_captions():
  image = jnp.eye(2)
  logit = 3.0
  alone = -np.log(np.exp(logit) / (np.exp(logit) + 1))
  found = losses.contrastive(image, image, jnp.array(logit), jnp.eye(2, dtype=bool))
  np.testing.assert_allclose(found, alone, rtol=1e-5)
  # Equal captions share the target, so that neither picture is called wrong.
  text = jnp.array([[1.0, 0.0], [1.0, 0.0]])
  twins = losses.contrastive(text, text, jnp.array(logit), jnp.ones((2, 2), bool))
  np.testing.assert_allclose(twins, np.log(2), rtol=1e-5)


def test_patch_words_by_hand():
  logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.4, 0.4]]]))
  labels = jnp.array([[0, 2, 255]])  # a word, background, unlabeled
  expected = (-np.log(0.5) - 0.2 * np.log(0.8)) / 1.2
  np.testing.assert_allclose(losses.words(logits, labels, 0.2), expected, rtol=1e-5)
  nothing = losses.words(logits, jnp.full((1, 3), 255), 0.2)
  assert nothing == 0.0


def test_holes_are_never_predicted_and_get_no_gradient():
  hidden, head, targets, mask = example()
  targets = np.where((targets >= 3) & (targets < 5), 2, targets)
  holes = ((3, 5), (8, 9))
  targets = np.where(targets == 8, 9, targets)
  for chunks in (1, 2):

    def run(head, chunks=chunks):
      found = losses.next_token(hidden, head, targets, mask, SIZE, chunks, holes)
      return found.losses.sum(), found.losses

    (_, found), grad = jax.value_and_grad(run, has_aux=True)(head)
    real = [i for i in range(SIZE) if i not in (3, 4, 8)]
    logits = np.asarray(hidden @ head).astype(np.float64)
    total = np.log(np.exp(logits[..., real]).sum(-1))
    picked = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(found, (total - picked) * mask, atol=1e-5)
    assert not np.asarray(grad)[:, [3, 4, 8, 10, 11]].any()
