"""Work dealt by size; sets that are unlike the training set are named."""

import numpy as np

from lavit_jax.data import bad, dealing, token_figures


def test_the_largest_go_first_and_all_go_once():
  sizes = [5, 1, 9, 1, 1, 8, 3, 2]
  found = dealing.deal(sizes, 3)
  assert sorted(n for own in found for n in own) == list(range(8))
  assert sorted(sum(sizes[n] for n in own) for own in found) == [10, 10, 10]
  assert dealing.deal([], 2) == [[], []] and dealing.deal([4], 3) == [[0], [], []]


def report(kept: int, codes: int, unknown: int = 0):
  """Figures of 200 pictures with `kept` of 10 patches and `codes` codes in even use."""
  figures = token_figures.new(10, 50)
  for i in range(200):
    figures.add((np.arange(kept) + i * kept) % codes)
  texts = [{"turns": [[[], [7] * (1000 - unknown) + [0] * unknown]]}]
  figures.add_texts(texts, 0)
  return figures.report()


def test_sets_unlike_the_training_set_are_named():
  trained = {"kept_share": 0.4, "codes_perplexity": 40.0}
  assert token_figures.outside(report(4, 40), trained) == []
  (few,) = token_figures.outside(report(2, 40), trained)
  assert "0.2 of the patches are kept, in training 0.4" in few
  (narrow,) = token_figures.outside(report(4, 5), trained)
  assert "5 codes are in even use, in training 40" in narrow
  (strange,) = token_figures.outside(report(4, 40, unknown=20), trained)
  assert "2.0% of the text ids are unknown" in strange
  assert token_figures.outside(report(2, 5), {}) == []  # a model that does not say


def test_figures_of_earlier_versions_are_read(tmp_path):
  figures = token_figures.new(4, 8)
  figures.add_texts([{"turns": [[[1], [2, 0]]]}], 0)
  figures.save(tmp_path / "new.npz")
  assert token_figures.load(tmp_path / "new.npz").texts.tolist() == [3, 1]
  arrays = dict(np.load(tmp_path / "new.npz"))
  del arrays["texts"]
  np.savez(tmp_path / "old.npz", **arrays)
  old = token_figures.load(tmp_path / "old.npz")
  joined = token_figures.join([old, token_figures.load(tmp_path / "new.npz")])
  assert joined.texts.tolist() == [3, 1] and joined.tally.good == bad.Tally().good
