import pickle

import pytest

from lavit_jax.data import bad


def test_counts_by_reason_with_the_first_examples():
  tally = bad.Tally(good=990)
  for i in range(9):
    tally.add(f"r{i}", bad.BadRecord("a hole", f"at {i}"))
  tally.add("x\n\ud800", bad.BadRecord("a speck"))
  assert tally.bad == 10
  assert tally.reasons["a hole"]["count"] == 9
  assert tally.reasons["a hole"]["examples"] == [f"r{i}: at {i}" for i in range(5)]
  assert tally.reasons["a speck"]["examples"] == ["x\\n\\ud800"]
  assert tally.summary().splitlines()[1].split() == "9 a hole, first r0: at 0".split()


def test_limit_is_a_share_of_all():
  tally = bad.Tally(99, {"a hole": {"count": 1, "examples": ["r0"]}})
  tally.check(0.01, "look")
  tally.good = 98
  with pytest.raises(ValueError, match="at most 1.00% bad records, got 1 of 99; look"):
    tally.check(0.01, "look")


def test_merge_adds_and_keeps_the_first_examples():
  parts = []
  for name in "ab":
    part = bad.Tally(good=2)
    for i in range(4):
      part.add(f"{name}{i}", bad.BadRecord("a hole"))
    parts.append(part)
  total = bad.merge(parts)
  assert (total.good, total.bad) == (4, 8)
  assert total.reasons["a hole"]["examples"] == ["a0", "a1", "a2", "a3", "b0"]
  assert parts[0].reasons["a hole"]["examples"] == ["a0", "a1", "a2", "a3"]


def test_the_error_survives_another_process():
  error = pickle.loads(pickle.dumps(bad.BadRecord("a hole", "here")))
  assert (error.reason, error.detail) == ("a hole", "here")
  assert isinstance(error, ValueError) and "a hole (here); replace" in str(error)
