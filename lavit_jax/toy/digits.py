"""Handwritten digits: scikit-learn's 1797 small pictures as prepared records.

u8[8, 8] -> free border u8[10, 10] -> bicubic u8[H, W] -> shifted u8[H, W, 3]
"""

import dataclasses
import functools
import re

import numpy as np
from PIL import Image

from lavit_jax.toy import scene_texts, scenes, world

SPLITS = ("train", "validation", "test")
NUM_TRAIN, NUM_VALIDATION = 1400, 100
SPLIT_SEED = 0  # fixed, so that no choice of seed moves a digit to the other split
SHIFT = 16  # by up to 1/16 of the size, 4 px of 64; the free border is wider
NAMES = (
  *("zero", "one", "two", "three", "four"),
  *("five", "six", "seven", "eight", "nine"),
)
CAPTIONS = (
  "a handwritten {}",
  "the digit {}",
  "a handwritten digit {}",
  "a picture of the digit {}",
  "the number {} written by hand",
)
WHICH = "which digit is this?"

_NAMED = re.compile(rf"\b({'|'.join(NAMES)}|\d)\b")


def parse_digit(text: str) -> int | None:
  """Reads the digit that a text names.

  Args:
    text: a caption or an answer, ours or a model's.

  Returns:
    The digit, or None if the text names none or several.
  """
  found = set(_NAMED.findall(text.lower()))
  digits = {int(word) if word.isdigit() else NAMES.index(word) for word in found}
  return digits.pop() if len(digits) == 1 else None


@functools.cache
def _load() -> tuple[np.ndarray, np.ndarray]:
  """All pictures u8[1797, 8, 8] and their digits int[1797]."""
  from sklearn import datasets  # takes a second to import

  bundle = datasets.load_digits()
  pictures = np.rint(bundle.images * (255 / 16)).astype(np.uint8)
  return pictures, bundle.target


@functools.cache
def split_indices(split: str) -> np.ndarray:
  """The dataset's indices that belong to a split.

  Args:
    split: "train" (1400 digits), "validation" (100) or "test" (297).

  Returns:
    int[N] in the order of the source.
  """
  order = np.random.default_rng(SPLIT_SEED).permutation(len(_load()[1]))
  parts = np.split(order, np.cumsum([NUM_TRAIN, NUM_VALIDATION]))
  return parts[SPLITS.index(split)]


@dataclasses.dataclass(frozen=True)
class Digits:
  """Random-access source of prepared records of handwritten digits.

  Attributes:
    split: "train", "validation" or "test".
    num_examples: number of records; beyond the number of digits they come again with
      another shift and caption.
    size: height and width of the picture, a multiple of 16.
    seed: determines shifts and captions, not the split.
  """

  split: str
  num_examples: int
  size: int = 64
  seed: int = 0

  def __post_init__(self):
    if self.split not in SPLITS:
      raise ValueError(
        f"digits have the splits {', '.join(SPLITS)}, not {self.split!r}; "
        "choose one of them"
      )
    if self.size <= 0 or self.size % SHIFT:
      raise ValueError(
        f"picture size {self.size} is not a positive multiple of {SHIFT}; "
        "choose for example 64"
      )

  def __len__(self) -> int:
    return self.num_examples

  def _at(self, index: int) -> tuple[int, np.random.Generator]:
    if not 0 <= index < self.num_examples:
      raise IndexError(f"index {index} is outside the {self.num_examples} digits")
    indices = split_indices(self.split)
    stream = (self.seed, SPLITS.index(self.split), int(index))
    return indices[index % len(indices)], np.random.default_rng(stream)

  def picture(self, index: int) -> np.ndarray:
    """The picture u8[H, W, 3] at an index, not encoded."""
    source, rng = self._at(index)
    small = Image.fromarray(np.pad(_load()[0][source], 1))
    digit = small.resize((self.size, self.size), Image.Resampling.BICUBIC)
    reach = self.size // SHIFT
    top, left = rng.integers(0, 2 * reach + 1, size=2)
    padded = np.pad(np.asarray(digit), reach)
    shifted = padded[top : top + self.size, left : left + self.size]
    return np.repeat(shifted[..., None], 3, axis=2)

  def __getitem__(self, index: int) -> dict:
    """The prepared record at an index: picture, caption, one question, truth."""
    source, rng = self._at(index)
    digit = int(_load()[1][source])
    name, prompt = NAMES[digit], scene_texts.QUESTION.format(WHICH)
    caption = world.pick(rng, CAPTIONS).format(name)
    answer = {"task": "answer", "turns": [[prompt, name]], "kinds": ["digit"]}
    return {
      "id": f"digits-{self.split}-{self.seed}-{index:07d}",
      "image": scenes.encode_png(self.picture(index)),
      "texts": [{"task": "caption", "turns": [["", caption]]}, answer],
      "truth": {"digit": digit},
    }
