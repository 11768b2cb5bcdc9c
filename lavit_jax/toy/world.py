"""The toy world's scene graph: what a drawn scene may hold, without pixels or words.

A scene has up to six colored shapes, each in its own cell of a 3 x 3 grid, on one of
five grey backgrounds. Six (color, shape) pairs are held out: they occur in the split
"novel" only.
"""

import dataclasses

import numpy as np

COLORS = ("red", "green", "blue", "yellow", "orange", "purple", "cyan", "pink")
SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
SIZES = ("small", "large")
BACKGROUNDS = ("dark", "bright", "gradient", "stripes", "noise")
# Each split draws from the random stream of its position; "test" came last.
SPLITS = ("train", "validation", "novel", "test")
CELLS = 3
COUNT_SHARES = (0.06, 0.20, 0.11, 0.13, 0.15, 0.17, 0.18)
MAX_OBJECTS = len(COUNT_SHARES) - 1
JITTER_STEP, JITTER_STEPS = 0.2, 3  # the center moves by up to 3 steps of 0.2 px

HELD_OUT = (
  ("red", "star"),
  ("green", "ring"),
  ("blue", "triangle"),
  ("yellow", "cross"),
  ("purple", "square"),
  ("orange", "circle"),
)
SEEN = tuple((c, s) for c in COLORS for s in SHAPES if (c, s) not in HELD_OUT)

_COUNT_LIMITS = np.cumsum(COUNT_SHARES)


@dataclasses.dataclass(frozen=True)
class SceneObject:
  """One colored shape in one cell.

  Attributes:
    color: one of COLORS.
    shape: one of SHAPES.
    size: one of SIZES.
    row: cell row, 0 at the top.
    col: cell column, 0 on the left.
    dy: steps that the center lies below the cell's center, in -3..3.
    dx: steps that the center lies right of the cell's center, in -3..3.
  """

  color: str
  shape: str
  size: str
  row: int
  col: int
  dy: int = 0
  dx: int = 0


@dataclasses.dataclass(frozen=True)
class Scene:
  """A scene graph.

  Attributes:
    objects: in raster order of their cells.
    background: one of BACKGROUNDS.
    texture: seed of the background's free parameters.
  """

  objects: tuple[SceneObject, ...]
  background: str
  texture: int = 0

  def truth(self) -> dict:
    """The graph as plain types, as stored in prepared records."""
    names = ("color", "shape", "size", "row", "col")
    objects = [{name: getattr(o, name) for name in names} for o in self.objects]
    return {"objects": objects, "background": self.background}


def pick(rng: np.random.Generator, items):
  """Draws one item uniformly; several times faster than `rng.choice`."""
  return items[int(rng.random() * len(items))]


def _draw_count(split: str, rng: np.random.Generator) -> int:
  lowest = _COUNT_LIMITS[0] if split == "novel" else 0.0  # an empty scene is not novel
  where = lowest + (1 - lowest) * rng.random()
  return min(int(np.searchsorted(_COUNT_LIMITS, where, "right")), MAX_OBJECTS)


def draw_scene(
  split: str, rng: np.random.Generator, num_objects: int | None = None
) -> Scene:
  """Draws a scene graph.

  Args:
    split: one of SPLITS; every object of a novel scene is a held-out pair, no object
      of the other splits is.
    rng: source of randomness.
    num_objects: 0 to 6; drawn by COUNT_SHARES when absent.

  Returns:
    The scene.
  """
  count = _draw_count(split, rng) if num_objects is None else num_objects
  pairs = HELD_OUT if split == "novel" else SEEN
  cells = np.sort(rng.permutation(CELLS * CELLS)[:count]).tolist()
  jitter = rng.integers(-JITTER_STEPS, JITTER_STEPS + 1, size=(count, 2)).tolist()
  objects = tuple(
    SceneObject(*pick(rng, pairs), pick(rng, SIZES), *divmod(cell, CELLS), dy, dx)
    for cell, (dy, dx) in zip(cells, jitter)
  )
  return Scene(objects, pick(rng, BACKGROUNDS), int(rng.integers(2**31)))
