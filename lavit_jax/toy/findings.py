"""What an evaluation on the toy world hands to the report: figures and examples."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lavit_jax.toy.patch_reading import Reading
from lavit_jax.toy.pixel_figures import PixelFindings


@dataclasses.dataclass(frozen=True)
class Pictures:
  """The visual tokenizer's view of N held-out pictures.

  Attributes:
    image: uint8[N, H, W, 3].
    count: int[N] objects, -1 for a digit.
    objects: bool[N, P] patches that an object covers; False for digits.
    keep: bool[N, P].
    probability: float32[N, P] of keeping.
    codes: int32[N, P], those of kept patches count.
    num_codes: K.
  """

  image: np.ndarray
  count: np.ndarray
  objects: np.ndarray
  keep: np.ndarray
  probability: np.ndarray
  codes: np.ndarray
  num_codes: int


@dataclasses.dataclass(frozen=True)
class TextExample:
  """A caption or an answer beside the truth.

  Attributes:
    image: uint8[H, W, 3].
    question: empty for captions.
    truth: the true text.
    text: the model's.
    right: as scored.
  """

  image: np.ndarray
  question: str
  truth: str
  text: str
  right: bool


@dataclasses.dataclass(frozen=True)
class GridExample:
  """Features read patch by patch, beside the picture they should show.

  Attributes:
    title: the prompt, or what the picture is.
    image: uint8[H, W, 3] the picture asked for.
    color: int[P] index into COLORS, background beyond.
    shape: int[P] index into SHAPES.
    asked: color, shape and place in words; empty when there is no single object.
    read: the same as read back.
    codes: the codes that the language model drew; none of a reconstruction.
  """

  title: str
  image: np.ndarray
  color: np.ndarray
  shape: np.ndarray
  asked: str = ""
  read: str = ""
  codes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Findings:
  """All that the report shows of a finished model.

  Attributes:
    figures: by name, as made by `figures.figure`.
    pictures: the tokenizer's view of the test split.
    captions: captions beside the truth.
    answers: answers beside the truth.
    drawings: requests and what was drawn, pairs seen in training.
    novel_drawings: the same for held-out pairs.
    reconstructions: test pictures and their reconstructions.
    pixels: what the pixel decoder drew; None without one.
  """

  figures: dict[str, dict]
  pictures: Pictures
  captions: list[TextExample]
  answers: list[TextExample]
  drawings: list[GridExample]
  novel_drawings: list[GridExample]
  reconstructions: list[GridExample]
  pixels: PixelFindings | None = None


def grid_example(
  reading: Reading,
  row: int,
  title: str,
  image: np.ndarray,
  asked: str,
  read: str,
  codes: Sequence[int] = (),
) -> GridExample:
  """Takes one row of a reading as an example."""
  color, shape = reading.patch_color[row], reading.patch_shape[row]
  own = tuple(int(code) for code in codes)
  return GridExample(title, image, color, shape, asked, read, own)
