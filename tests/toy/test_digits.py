"""Handwritten digits as a source: splits, shifts, captions."""

import io

import numpy as np
import pytest
from PIL import Image

from lavit_jax.toy import digits


def test_splits_are_disjoint_and_complete():
  parts = [digits.split_indices(split).tolist() for split in digits.SPLITS]
  assert [len(part) for part in parts] == [1400, 100, 297]
  assert sorted(sum(parts, [])) == list(range(1797))


def test_record_is_deterministic_and_repeats_with_another_shift():
  source = digits.Digits("test", 1000)
  assert source[5] == digits.Digits("test", 600)[5]
  first, again = source[5], source[5 + 297]
  assert first["truth"] == again["truth"]
  assert first["image"] != again["image"]


@pytest.mark.parametrize("size", [64, 128])
def test_picture_is_grey_and_shift_leaves_the_digit_inside(size):
  source = digits.Digits("train", 200, size=size)
  for i in range(200):
    picture = source.picture(i)
    assert picture.shape == (size, size, 3)
    assert (picture == picture[..., :1]).all()
    edges = (picture[0], picture[-1], picture[:, 0], picture[:, -1])
    assert max(edge.max() for edge in edges) < 64  # only the faint tail of bicubic
  image = np.asarray(Image.open(io.BytesIO(source[0]["image"])))
  np.testing.assert_array_equal(image, source.picture(0))


def test_texts_name_the_digit():
  source = digits.Digits("train", 100)
  for i in range(100):
    record = source[i]
    for entry in record["texts"]:
      (_, text) = entry["turns"][0]
      assert digits.parse_digit(text) == record["truth"]["digit"]
    assert entry["turns"][0][0] == "Question: which digit is this? Answer:"


def test_parse_digit_refuses_none_and_several():
  assert digits.parse_digit("A Seven.") == 7
  assert digits.parse_digit("the digit 0") == 0
  assert digits.parse_digit("a red circle") is None
  assert digits.parse_digit("four or five") is None
  assert digits.parse_digit("seventeen") is None


def test_wrong_arguments_end_in_one_sentence():
  with pytest.raises(ValueError, match="not 'novel'"):
    digits.Digits("novel", 3)
  with pytest.raises(ValueError, match="picture size 50"):
    digits.Digits("train", 3, size=50)
