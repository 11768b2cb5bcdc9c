"""The processors of logits: small numbers by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.generate import logits

INF = np.inf
WORDS = Vocabulary(text_size=5, num_codes=3)


def kept(scores) -> list[int]:
  return np.flatnonzero(np.isfinite(np.asarray(scores)[0])).tolist()


def settings(**fields) -> logits.Rows:
  return logits.rows(
    [logits.Settings(**dict(end=1, allowed="text", max_new=4) | fields)]
  )


def padded(values) -> jnp.ndarray:
  """float32[1, V] with given first values, -inf at padded ids."""
  return (
    jnp.full((1, WORDS.padded_size), -INF).at[0, : len(values)].set(jnp.array(values))
  )


def test_guidance_moves_away_from_the_unconditional_stream():
  prompted = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
  free = jnp.log(jnp.array([[0.25, 0.5, 0.25]]))
  guided = logits.guide(prompted + 3.0, free - 1.0, jnp.array([2.0]))
  np.testing.assert_allclose(jnp.exp(guided), [[1.0, 0.125, 0.25]], rtol=1e-5)


def test_guidance_of_one_is_the_prompt_alone():
  prompted, free = jnp.array([[1.0, 2.0, -INF]]), jnp.array([[0.0, 5.0, -INF]])
  expected = jnp.array([[1.0, 2.0]]) - jnp.logaddexp(1.0, 2.0)
  guided = logits.guide(prompted, free, jnp.array([1.0]))
  np.testing.assert_allclose(guided[:, :2], expected, rtol=1e-5)
  assert guided[0, 2] == -INF


def test_penalties_make_chosen_ids_less_likely():
  scores = jnp.array([[2.0, -2.0, 3.0, -INF], [2.0, -2.0, 3.0, 1.0]])
  chosen = jnp.array([[True, True, False, True], [False] * 4])
  found = logits.penalize(scores, chosen, jnp.array([2.0, 2.0]))
  np.testing.assert_allclose(found, [[1.0, -4.0, 3.0, -INF], [2.0, -2.0, 3.0, 1.0]])


def test_end_waits_for_the_minimum_length():
  scores, end, least = jnp.zeros((1, 3)), jnp.array([2]), jnp.array([2])
  assert kept(logits.delay_end(scores, jnp.array(1), end, least)) == [0, 1]
  assert kept(logits.delay_end(scores, jnp.array(2), end, least)) == [0, 1, 2]


def test_allowed_ids():
  ids = lambda mask: np.flatnonzero(mask).tolist()
  assert ids(logits.text_ids(WORDS)) == [0, 1, 2, 3, 4]
  assert ids(logits.drawing_ids(WORDS)) == [6, 7, 8, 9]  # [/IMG], three codes
  assert ids(logits.reference_drawing_ids(WORDS)) == [0, 1, 2, 5, 6, 7, 8, 9]


def test_top_k_keeps_ties_with_the_kth():
  ranked = jnp.array([[3.0, 2.0, 2.0, 1.0, 0.0]])
  assert kept(logits.keep_top_k(ranked, jnp.array([2]))) == [0, 1, 2]
  for all_of_them in (0, 99):
    found = logits.keep_top_k(ranked, jnp.array([all_of_them]))
    assert kept(found) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
  "p, expected", [(0.45, [0]), (0.55, [0, 1]), (0.95, [0, 1, 2, 3]), (0.01, [0])]
)
def test_top_p_keeps_the_smallest_set_above_p(p, expected):
  ranked = jnp.log(jnp.array([[0.5, 0.3125, 0.125, 0.0625, 0.0]]))
  assert kept(logits.keep_top_p(ranked, jnp.array([p]))) == expected


def test_processors_run_in_their_order():
  scores = padded([9.0, 4.0, 3.0, 2.0, 1.0, 20.0])
  own = settings(min_new=1, temperature=0.5, top_k=2)

  def ranked(step):
    found = logits.score(scores, None, None, jnp.array(step), WORDS, own)
    values, ids = logits.warp(found, 3, own)
    return np.asarray(values)[0].tolist(), np.asarray(ids)[0].tolist()

  assert ranked(0) == ([18.0, 6.0, -INF], [0, 2, 3])  # 1 is the end, 5 no text
  assert ranked(1) == ([18.0, 8.0, -INF], [0, 1, 2])


def test_rows_have_their_own_settings():
  scores = jnp.tile(padded([1.0] * WORDS.size), (2, 1))
  own = logits.rows(
    [
      logits.Settings(end=2, allowed="text", max_new=4, min_new=2),
      logits.Settings(end=WORDS.image_end, allowed="codes", max_new=4),
    ]
  )
  found = logits.score(scores, None, None, jnp.array(1), WORDS, own)
  assert kept(found[:1]) == [0, 1, 3, 4] and kept(found[1:]) == [6, 7, 8, 9]


@pytest.mark.parametrize(
  "wrong, message",
  [
    (dict(allowed="pictures"), "allowed must be one of"),
    (dict(min_new=8), r"min_new must be in \[0, 8\), got 8"),
    (dict(top_p=0.0), r"top_p must be in \(0, 1\], got 0.0"),
    (dict(temperature=-1.0), "temperature must be 0"),
    (dict(temperature=float("nan")), "temperature must be 0"),
    (dict(guidance=float("inf")), "guidance must be a finite number"),
    (dict(repetition_penalty=0), "repetition_penalty must be above 0"),
  ],
)
def test_wrong_settings_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    logits.Settings(**dict(end=2, allowed="text", max_new=8) | wrong)
