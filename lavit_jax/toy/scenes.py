"""Drawn scenes: a random-access source of pictures with exact truth.

A scene is drawn from (seed, split, index) alone. The picture has 8 x 8 patches; every
object lies in a window of 2 x 2 patches at patch rows and columns 0, 3 or 6:

    index -> scene graph -> u8[H, W, 3], bool[H, W], bool[P] -> prepared record
"""

import dataclasses
import functools
import struct
import zlib

import numpy as np

from lavit_jax.toy import scene_texts, world

GRID = 8  # patches per side, whatever the size of the picture
WINDOW = 2  # patches per side of an object's window
CELL_STRIDE = 3  # patches from one cell's window to the next
BASE_SIZE = 64  # the size in which the radii and jitters are given
RADIUS = {"small": 5.2, "large": 7.2}
SUPERSAMPLING = 4
SIZE_STEP = 4 * GRID  # the noisy background has 4 x 4 grains per patch
BACKGROUND_COLOR, UNLABELLED = len(world.COLORS), 255
RGB = {
  "red": (225, 30, 35),
  "green": (35, 165, 55),
  "blue": (40, 75, 235),
  "yellow": (250, 225, 40),
  "orange": (245, 135, 20),
  "purple": (130, 45, 185),
  "cyan": (40, 215, 225),
  "pink": (255, 135, 195),
}


@dataclasses.dataclass(frozen=True)
class Picture:
  """A drawn scene.

  Attributes:
    image: u8[H, W, 3].
    pixel_mask: bool[H, W], pixels that an object covers at least in part.
    patch_mask: bool[P], patches of the objects' windows in raster order.
  """

  image: np.ndarray
  pixel_mask: np.ndarray
  patch_mask: np.ndarray


def _inside(shape: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
  """Tests points of the unit disc (y downwards) for lying in a shape."""
  radius = np.hypot(y, x)
  if shape == "circle":
    return radius <= 1
  if shape == "ring":
    return (radius <= 1) & (radius >= 0.55)
  if shape == "square":
    return np.maximum(abs(y), abs(x)) <= 0.85
  if shape == "triangle":
    return (y <= 0.8) & (abs(x) <= 0.57 * (y + 1))
  if shape == "cross":
    return (np.minimum(abs(y), abs(x)) <= 0.3) & (np.maximum(abs(y), abs(x)) <= 1)
  # Star: fold the angle onto half a ray; the edge runs from the tip to the notch.
  angle = np.arctan2(x, -y)
  folded = abs((angle + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
  notch_y, notch_x = 0.42 * np.sin(np.pi / 5), 0.42 * np.cos(np.pi / 5)
  along, across = radius * np.cos(folded), radius * np.sin(folded)
  return across * (1 - notch_x) <= (1 - along) * notch_y


@functools.lru_cache(maxsize=8192)
def _coverage(
  shape: str, object_size: str, dy: int, dx: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
  """Antialiased stencil: float32[width, width, 1] coverage and bool[width, width]."""
  samples = np.arange(width * SUPERSAMPLING) + 0.5
  base = samples / (width * SUPERSAMPLING) * (BASE_SIZE // GRID * WINDOW)
  middle = BASE_SIZE // GRID * WINDOW / 2
  y = (base - middle - dy * world.JITTER_STEP) / RADIUS[object_size]
  x = (base - middle - dx * world.JITTER_STEP) / RADIUS[object_size]
  inside = _inside(shape, y[:, None], x[None, :])
  blocks = inside.reshape(width, SUPERSAMPLING, width, SUPERSAMPLING)
  coverage = blocks.mean(axis=(1, 3), dtype=np.float32)
  return coverage[..., None], coverage > 0


def _draw_background(scene: world.Scene, size: int) -> np.ndarray:
  """Draws a grey background, float32[H, W] or broadcastable to it, within 0..255."""
  rng = np.random.default_rng(scene.texture)
  vary = rng.uniform(-10, 10)
  ramp = (np.arange(size, dtype=np.float32) + 0.5) / size
  if scene.background == "dark":
    grey = np.full((1, size), 35 + vary, np.float32)
  elif scene.background == "bright":
    grey = np.full((1, size), 205 + vary, np.float32)
  elif scene.background == "gradient":
    grey = (60 + 110 * (ramp if rng.random() < 0.5 else ramp[::-1]) + vary)[None]
  elif scene.background == "stripes":
    grey = (90 + vary + 50 * (ramp * GRID % 1 < 0.5).astype(np.float32))[None]
  else:
    grains = rng.integers(105 + int(vary), 136 + int(vary), (SIZE_STEP, SIZE_STEP))
    return grains.repeat(size // SIZE_STEP, 0).repeat(size // SIZE_STEP, 1)
  return grey if rng.random() < 0.5 else grey.T


def _window(o: world.SceneObject, patch: int) -> tuple[slice, slice]:
  top, left = o.row * CELL_STRIDE * patch, o.col * CELL_STRIDE * patch
  return slice(top, top + WINDOW * patch), slice(left, left + WINDOW * patch)


def draw(scene: world.Scene, size: int = BASE_SIZE) -> Picture:
  """Draws a scene.

  Args:
    scene: the scene graph.
    size: height and width in pixels, a multiple of 32; the geometry scales with it.

  Returns:
    The picture with its masks.
  """
  patch = size // GRID
  image = np.empty((size, size, 3), np.uint8)
  image[...] = _draw_background(scene, size).astype(np.uint8)[..., None]
  pixel_mask = np.zeros((size, size), bool)
  patch_mask = np.zeros((GRID, GRID), bool)
  for o in scene.objects:
    cover, touched = _coverage(o.shape, o.size, o.dy, o.dx, WINDOW * patch)
    rows, cols = _window(o, patch)
    color = np.array(RGB[o.color], np.float32)
    image[rows, cols] = image[rows, cols] * (1 - cover) + (color * cover + 0.5)
    pixel_mask[rows, cols] |= touched
    patch_mask[_window(o, 1)] = True
  return Picture(image, pixel_mask, patch_mask.reshape(-1))


def patch_labels(scene: world.Scene) -> dict[str, np.ndarray]:
  """Names the color and shape of the object on each patch.

  Args:
    scene: the scene graph.

  Returns:
    "color" u8[P], 8 on the background, and "shape" u8[P], 255 on the background.
  """
  color = np.full((GRID, GRID), BACKGROUND_COLOR, np.uint8)
  shape = np.full((GRID, GRID), UNLABELLED, np.uint8)
  for o in scene.objects:
    color[_window(o, 1)] = world.COLORS.index(o.color)
    shape[_window(o, 1)] = world.SHAPES.index(o.shape)
  return {"color": color.reshape(-1), "shape": shape.reshape(-1)}


def _png_chunk(kind: bytes, data: bytes) -> bytes:
  check = zlib.crc32(kind + data)
  return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def encode_png(image: np.ndarray) -> bytes:
  """Encodes a picture as PNG, unfiltered: four times as fast as the imaging library.

  Args:
    image: u8[H, W, 3].

  Returns:
    The bytes of the file.
  """
  height, width, _ = image.shape
  lines = np.zeros((height, 1 + 3 * width), np.uint8)  # byte 0 of a line: no filter
  lines[:, 1:] = image.reshape(height, -1)
  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
  return b"".join(
    (
      b"\x89PNG\r\n\x1a\n",
      _png_chunk(b"IHDR", header),
      _png_chunk(b"IDAT", zlib.compress(lines, 1)),
      _png_chunk(b"IEND", b""),
    )
  )


@dataclasses.dataclass(frozen=True)
class Scenes:
  """Random-access source of prepared records of drawn scenes.

  Attributes:
    split: "train", "validation" and "test" hold the pairs seen in training, "novel"
      the held-out ones; no two of them share a random stream.
    num_examples: number of scenes.
    size: height and width of the picture, a multiple of 32.
    seed: together with split and index it determines a scene.
    num_objects: 0 to 6 objects in every scene; drawn per scene when absent.
  """

  split: str
  num_examples: int
  size: int = BASE_SIZE
  seed: int = 0
  num_objects: int | None = None

  def __post_init__(self):
    if self.split not in world.SPLITS:
      raise ValueError(
        f"scenes have the splits {', '.join(world.SPLITS)}, not {self.split!r}; "
        "choose one of them"
      )
    if self.size <= 0 or self.size % SIZE_STEP:
      raise ValueError(
        f"picture size {self.size} is not a positive multiple of {SIZE_STEP}; "
        f"choose for example {BASE_SIZE}"
      )
    if self.num_objects is not None and not 0 <= self.num_objects <= world.MAX_OBJECTS:
      raise ValueError(
        f"a scene holds 0 to {world.MAX_OBJECTS} objects, not {self.num_objects}; "
        "change num_objects"
      )

  def __len__(self) -> int:
    return self.num_examples

  def _rng(self, index: int, purpose: int) -> np.random.Generator:
    if not 0 <= index < self.num_examples:
      raise IndexError(f"index {index} is outside the {self.num_examples} scenes")
    stream = (self.seed, world.SPLITS.index(self.split), int(index), purpose)
    return np.random.default_rng(stream)

  def scene(self, index: int) -> world.Scene:
    """The scene graph at an index."""
    return world.draw_scene(self.split, self._rng(index, 0), self.num_objects)

  def picture(self, index: int) -> Picture:
    """The picture at an index with its exact masks, not encoded."""
    return draw(self.scene(index), self.size)

  def __getitem__(self, index: int) -> dict:
    """The prepared record at an index: picture, caption, questions, labels, truth."""
    scene, rng = self.scene(index), self._rng(index, 1)
    objects = "" if self.num_objects is None else f"-{self.num_objects}objects"
    caption = {"task": "caption", "turns": [["", scene_texts.caption(scene, rng)]]}
    labels = {name: ids.tobytes() for name, ids in patch_labels(scene).items()}
    return {
      "id": f"scenes-{self.split}-{self.seed}{objects}-{index:07d}",
      "image": encode_png(draw(scene, self.size).image),
      "texts": [caption, *scene_texts.answer_entries(scene, rng)],
      "labels": labels,
      "truth": scene.truth(),
    }
