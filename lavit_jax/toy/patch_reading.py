"""Reads toy pictures back from patch-word logits: what is where in the 8 x 8 grid.

    logits f[N, P, 9] color, f[N, P, 6] shape -> foreground f[N, P]
    -> the cell with most foreground -> the color and the shape summed over its patches

The word heads of stage 0 read true, reconstructed and drawn features alike. Every read
is local: a picture smeared over the grid does not pass.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from lavit_jax.toy import scenes, world

BACKGROUND = scenes.BACKGROUND_COLOR


@dataclasses.dataclass(frozen=True)
class Reading:
  """What patches show, and the one object that a cell shows.

  Attributes:
    foreground: float32[N, P] probability that a patch shows no background.
    patch_color: int[N, P] index into COLORS, `BACKGROUND` beyond.
    patch_shape: int[N, P] index into SHAPES.
    cell: int[N] the cell with most foreground, 3 row + col.
    color: int[N] its color.
    shape: int[N] its shape.
  """

  foreground: np.ndarray
  patch_color: np.ndarray
  patch_shape: np.ndarray
  cell: np.ndarray
  color: np.ndarray
  shape: np.ndarray

  def names(self, row: int) -> tuple[str, str, int]:
    """Color, shape and cell of the object read in a row."""
    color, shape = world.COLORS[self.color[row]], world.SHAPES[self.shape[row]]
    return color, shape, int(self.cell[row])


def cell_windows() -> np.ndarray:
  """Patches int[9, 4] of each cell's window."""
  patches = np.arange(scenes.GRID**2).reshape(scenes.GRID, scenes.GRID)
  steps = np.arange(world.CELLS) * scenes.CELL_STRIDE
  size = scenes.WINDOW
  windows = [patches[r : r + size, c : c + size].ravel() for r in steps for c in steps]
  return np.array(windows)


def read(logits: Mapping[str, np.ndarray]) -> Reading:
  """Reads patch-word logits.

  Args:
    logits: "color" float[N, P, 9], background last, and "shape" float[N, P, 6].

  Returns:
    The reading; color and shape come from the summed logits of the cell's patches.
  """
  color, shape = logits["color"], logits["shape"]
  foreground = 1 - _softmax(color)[..., BACKGROUND]
  windows = cell_windows()
  cell = foreground[:, windows].sum(-1).argmax(1)  # [N]
  chosen = windows[cell][..., None]  # [N, 4, 1]
  summed = lambda x: np.take_along_axis(x, chosen, 1).sum(1)
  return Reading(
    foreground=foreground,
    patch_color=color.argmax(-1),
    patch_shape=shape.argmax(-1),
    cell=cell,
    color=summed(color)[:, :BACKGROUND].argmax(1),
    shape=summed(shape).argmax(1),
  )


def count_objects(reading: Reading) -> np.ndarray:
  """Cells int[N] whose window shows an object rather than background."""
  return (reading.foreground[:, cell_windows()].mean(-1) > 0.5).sum(-1)


def _softmax(logits: np.ndarray) -> np.ndarray:
  powers = np.exp(logits - logits.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


def word_logits(
  heads: Mapping[str, Mapping[str, np.ndarray]], features: np.ndarray
) -> dict[str, np.ndarray]:
  """Applies the word heads of stage 0; their norm makes them blind to length.

  Args:
    heads: "word_norm" {"scale", "bias"} and "word_<kind>" {"kernel", "bias"}.
    features: float[N, P, D].

  Returns:
    float32[N, P, W] logits by word kind.
  """
  centered = features - features.mean(-1, keepdims=True)
  spread = np.sqrt(np.square(centered).mean(-1, keepdims=True) + 1e-5)
  normed = centered / spread * heads["word_norm"]["scale"] + heads["word_norm"]["bias"]
  words = {k.removeprefix("word_"): v for k, v in heads.items() if k != "word_norm"}
  return {kind: normed @ head["kernel"] + head["bias"] for kind, head in words.items()}
