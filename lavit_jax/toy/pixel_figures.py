"""Figures of drawn pixels on the toy world, read by networks of their own.

What a picture shows is read from its pixels alone (`pixel_reading`); no feature, code
or weight of the model takes part.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from lavit_jax.evaluate.figures import figure, mean, number
from lavit_jax.toy import world
from lavit_jax.toy.pixel_reading import PixelReading
from lavit_jax.toy.tokenizer_figures import CELL_CHANCE, SEEN_CHANCE

PAIRS = f"one of {len(world.SEEN)} pairs"
CELLS = f"one of {world.CELLS**2} cells"
DIGITS = "one of 10 digits"
Expected = tuple[str, str, int]


@dataclasses.dataclass(frozen=True)
class PixelExample:
  """A drawn picture beside what it should show.

  Attributes:
    title: the prompt, or what the picture is.
    wanted: uint8[H, W, 3] a true picture of it.
    drawn: uint8[H, W, 3].
    read: what the classifier reads; empty where nothing is scored.
    right: whether that is what was asked for.
  """

  title: str
  wanted: np.ndarray
  drawn: np.ndarray
  read: str = ""
  right: bool = True


@dataclasses.dataclass(frozen=True)
class PixelFindings:
  """What the report shows of the pixel decoder.

  Attributes:
    drawings: requests and what was drawn.
    digits: requested digits and what was drawn.
    reconstructions: test pictures and what was drawn from their codes.
    sweep: share of reconstructions read right, by guidance: color and shape, cell.
  """

  drawings: list[PixelExample]
  digits: list[PixelExample]
  reconstructions: list[PixelExample]
  sweep: dict[float, tuple[float, float]]


def hits(reading: PixelReading, expected: Sequence[Expected]) -> dict[str, np.ndarray]:
  """Where color, shape, both and cell are read as expected: bool[N] by name."""
  found = np.array([reading.names(row) for row in range(len(expected))], object)
  color, shape, cell = (found == np.array(expected, object)).T
  return {"color": color, "shape": shape, "both": color & shape, "cell": cell}


def scene_figures(
  kind: str,
  right: Mapping[str, np.ndarray],
  of: str,
  **beside: float,
) -> dict[str, dict]:
  """The figures of color and shape, and of the cell.

  Args:
    kind: "drawn" or "reconstructed".
    right: as made by `hits`.
    of: what one case is.
    **beside: further numbers of the first figure.
  """
  n, together = len(right["both"]), mean(right["both"] & right["cell"])
  parts = {"color": mean(right["color"]), "shape": mean(right["shape"])}
  parts |= {"all_three": together} | beside
  cell = "drawn_cell" if kind == "drawn" else "reconstructed_pixel_cell"
  return {
    f"{kind}_color_shape": figure(
      mean(right["both"]), SEEN_CHANCE, n, of, PAIRS, **parts
    ),
    cell: figure(mean(right["cell"]), CELL_CHANCE, n, of, CELLS),
  }


def link_figure(
  scenes: Mapping[str, Mapping[str, np.ndarray]], digits: Mapping[str, float], of: str
) -> dict:
  """The figure drawn_all_three: what is read right after each link of drawing.

  Args:
    scenes: hits by what the pixels were drawn from, the last of them "drawn codes".
    digits: share of digits read right by the same.
    of: what one drawing is.
  """
  together = {name: right["both"] & right["cell"] for name, right in scenes.items()}
  links = {
    name: {
      "color_shape": mean(right["both"]),
      "cell": mean(right["cell"]),
      "all_three": mean(together[name]),
      "digit": number(digits[name]),
      "n": len(right["both"]),
    }
    for name, right in scenes.items()
  }
  drawn, chance = together["drawn codes"], SEEN_CHANCE * CELL_CHANCE
  value, n = mean(drawn), len(drawn)
  what = f"{PAIRS} in {CELLS}"
  return figure(value, chance, n, of, what, links=links)


def digit_figure(
  found: np.ndarray, asked: np.ndarray, true: float, reconstructed: float
) -> dict:
  """The figure drawn_digit_accuracy.

  Args:
    found: int[N] digits read from the drawings.
    asked: int[N] requested digits.
    true: the classifier's accuracy on real held-out digits.
    reconstructed: its accuracy on their reconstructions.
  """
  return figure(
    mean(found == asked),
    0.1,
    len(asked),
    "requests for a digit",
    DIGITS,
    true_pictures=true,
    reconstructed=reconstructed,
  )
