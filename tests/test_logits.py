"""The processors of logits: small numbers by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.generate import logits
from lavit_jax.vocabulary import Vocabulary

INF = np.inf
WORDS = Vocabulary(text_size=5, num_codes=3)


def kept(scores) -> list[int]:
  return np.flatnonzero(np.isfinite(np.asarray(scores)[0])).tolist()


def test_guidance_moves_away_from_the_unconditional_stream():
  prompted = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
  free = jnp.log(jnp.array([[0.25, 0.5, 0.25]]))
  guided = logits.guide(prompted + 3.0, free - 1.0, 2.0)
  np.testing.assert_allclose(jnp.exp(guided), [[1.0, 0.125, 0.25]], rtol=1e-5)


def test_guidance_of_one_is_the_prompt_alone():
  prompted, free = jnp.array([[1.0, 2.0, -INF]]), jnp.array([[0.0, 5.0, -INF]])
  expected = jnp.array([[1.0, 2.0]]) - jnp.logaddexp(1.0, 2.0)
  guided = logits.guide(prompted, free, 1.0)
  np.testing.assert_allclose(guided[:, :2], expected, rtol=1e-5)
  assert guided[0, 2] == -INF


def test_end_waits_for_the_minimum_length():
  scores = jnp.zeros((1, 3))
  assert kept(logits.delay_end(scores, jnp.array(1), 2, 2)) == [0, 1]
  assert kept(logits.delay_end(scores, jnp.array(2), 2, 2)) == [0, 1, 2]


def test_allowed_ids():
  ids = lambda mask: np.flatnonzero(mask).tolist()
  assert ids(logits.text_ids(WORDS)) == [0, 1, 2, 3, 4]
  assert ids(logits.drawing_ids(WORDS)) == [6, 7, 8, 9]  # [/IMG], three codes
  assert ids(logits.reference_drawing_ids(WORDS)) == [0, 1, 2, 5, 6, 7, 8, 9]


def test_top_k_keeps_ties_with_the_kth():
  scores = jnp.array([[3.0, 1.0, 2.0, 2.0, 0.0]])
  assert kept(logits.keep_top_k(scores, 2)) == [0, 2, 3]
  assert kept(logits.keep_top_k(scores, 99)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
  "p, expected", [(0.45, [1]), (0.55, [1, 3]), (0.95, [0, 1, 2, 3]), (0.01, [1])]
)
def test_top_p_keeps_the_smallest_set_above_p(p, expected):
  scores = jnp.log(jnp.array([[0.125, 0.5, 0.0625, 0.3125, 0.0]]))
  assert kept(logits.keep_top_p(scores, p)) == expected


def test_processors_run_in_their_order():
  scores = jnp.array([[9.0, 4.0, 3.0, 2.0, 1.0]])
  allowed = jnp.array([False, True, True, True, True])
  settings = logits.Settings(
    end=1, allowed="text", max_new=4, min_new=1, temperature=0.5, top_k=2
  )
  first = logits.process(scores, None, jnp.array(0), allowed, settings)
  np.testing.assert_allclose(first, [[-INF, -INF, 6.0, 4.0, -INF]])
  later = logits.process(scores, None, jnp.array(1), allowed, settings)
  np.testing.assert_allclose(later, [[-INF, 8.0, 6.0, -INF, -INF]])


def test_greedy_ignores_the_warpers_of_sampling():
  settings = logits.Settings(end=1, allowed="text", max_new=4, top_k=1, top_p=0.1)
  allowed = jnp.ones(3, bool)
  scores = jnp.array([[1.0, 2.0, 3.0]])
  found = logits.process(scores, None, jnp.array(0), allowed, settings)
  np.testing.assert_array_equal(found, scores)


@pytest.mark.parametrize(
  "wrong, message",
  [
    (dict(allowed="pictures"), "is not one of"),
    (dict(min_new=8), r"min_new must be in \[0, 8\), got 8"),
    (dict(top_p=0.0), r"top_p must be in \(0, 1\], got 0.0"),
    (dict(temperature=-1.0), "temperature must be 0"),
  ],
)
def test_wrong_settings_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    logits.Settings(**dict(end=2, allowed="text", max_new=8) | wrong)
