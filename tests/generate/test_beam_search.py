"""Beam search against the reference and a search written out in numpy."""

import generating
import numpy as np
import pytest

from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.generate import beam, logits

pytestmark = pytest.mark.usefixtures("compile_fast")


def settings(max_new: int, min_new: int = 0) -> logits.Settings:
  return logits.Settings(
    end=Vocabulary.end, allowed="text", max_new=max_new, min_new=min_new
  )


CASES = {
  "caption": beam.Beams(settings(14, 4), count=2),
  "vqa": beam.Beams(settings(8, 2), count=5, length_penalty=0.0, early_stopping=True),
}


@pytest.mark.parametrize("name", CASES)
def test_golden_search(name):
  *_, arrays = generating.golden()
  row = (arrays["inputs_embeds"], arrays["attention_mask"])
  found = generating.from_vectors(*row, CASES[name])
  expected = arrays[f"{name}_ids"][:, 1:]
  ids = generating.padded(found, Vocabulary.end, expected.shape[1])
  np.testing.assert_array_equal(ids, expected)
  scores = [replies[0].score for replies in found]
  np.testing.assert_allclose(scores, arrays[f"{name}_scores"], rtol=1e-5)


def search(prompt: list[int], how: beam.Beams) -> list[tuple[float, list[int]]]:
  """The rules of transformers 4.33 in plain Python, on uncached log-probabilities."""
  import test_decode

  words = generating.golden()[2]
  open_, bank = [(0.0, [])], []
  for step in range(1, how.settings.max_new + 1):
    found = []
    for total, ids in open_:
      tokens, path = np.array([prompt]), np.array([[*ids, *[0] * (8 - len(ids))]])
      plain = test_decode.all_logits(tokens, np.ones_like(tokens), path)[0, len(ids)]
      row = plain - np.logaddexp.reduce(plain)
      row[~logits.text_ids(words)] = -np.inf
      if step <= how.settings.min_new:
        row[Vocabulary.end] = -np.inf
      found += [(total + row[i], ids, i) for i in np.flatnonzero(np.isfinite(row))]
    found = sorted(found, key=lambda entry: -entry[0])[: 2 * how.count]
    for total, ids, token in found[: how.count]:
      if token == Vocabulary.end:
        bank.append((total / step**how.length_penalty, ids))
    bank = sorted(bank, key=lambda entry: -entry[0])[: how.count]
    length = step + how.length_offset
    reach = found[0][0] / length**how.length_penalty
    open_ = [(total, [*ids, int(t)]) for total, ids, t in found if t != Vocabulary.end][
      : how.count
    ]
    if len(bank) == how.count and (how.early_stopping or bank[-1][0] >= reach):
      return bank
  bank += [(total / length**how.length_penalty, ids) for total, ids in open_]
  return sorted(bank, key=lambda entry: -entry[0])[: how.count]


@pytest.mark.parametrize(
  "how",
  [
    beam.Beams(settings(5), 3),
    beam.Beams(settings(6, 1), 3, length_penalty=2.0, length_offset=0),
    beam.Beams(settings(6), 3, length_penalty=-1.0, early_stopping=True),
  ],
)
def test_search_follows_the_rules(how):
  prompts = [[5, 9, 11, 3], [7, 8, 6, 21], [13, 3, 22, 30]]
  for prompt, replies in zip(prompts, generating.from_ids(prompts, how)):
    expected = search(prompt, how)
    assert [r.ids.tolist() for r in replies] == [ids for _, ids in expected]
    np.testing.assert_allclose(
      [r.score for r in replies], [score for score, _ in expected], rtol=1e-4
    )


def test_one_beam_is_greedy():
  greedy = generating.from_ids([[5, 9, 3], [7]], settings(6))
  found = generating.from_ids([[5, 9, 3], [7]], beam.Beams(settings(6), 1))
  for (one,), (other,) in zip(greedy, found):
    np.testing.assert_array_equal(one.ids, other.ids)


@pytest.mark.parametrize(
  "wrong, message",
  [
    (dict(count=0), r"count must be in \[1, 32\], got 0"),
    (dict(length_penalty=float("nan")), "length_penalty must be a finite number"),
    (
      dict(settings=logits.Settings(Vocabulary.end, "text", 4, temperature=1.0)),
      "temperature must be 0 in beam search, got 1.0",
    ),
  ],
)
def test_wrong_searches_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    beam.Beams(**dict(settings=settings(4), count=2) | wrong)
