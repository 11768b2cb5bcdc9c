"""Encoded texts are kept by their bytes, not by their number."""

from lavit_jax.data import remembered


def test_long_texts_do_not_pile_up():
  asked = []

  def encode(text):
    asked.append(text)
    return [300 + i for i in range(len(text))]

  spell = remembered.Remembered(encode, capacity=200_000)
  for i in range(2000):
    assert len(spell(f"{i} " + "x" * (i % 40))) == len(f"{i} ") + i % 40
  assert spell.held <= 200_000 and len(spell._known) > 40
  assert spell.held == sum(remembered._size(*pair) for pair in spell._known.items())
  before = len(asked)
  assert spell("1999 " + "x" * 39) == [300 + i for i in range(44)]
  assert len(asked) == before  # the newest is remembered
  spell("0 ")
  assert len(asked) == before + 1  # the oldest is not
  for _ in range(2):
    spell("y" * 50_000)
  assert len(asked) == before + 3 and spell.held <= 200_000  # and no giant is
