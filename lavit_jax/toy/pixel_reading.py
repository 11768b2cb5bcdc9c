"""Reads toy pictures from their pixels alone, with small networks of its own.

    pixels u8[N, 64, 64, 3] -> windows [N, 9, 16, 16, 3] of the nine cells
    -> color f[N, 9, 9] (background last), shape f[N, 9, 6] -> the cell that shows most
    pixels u8[N, 64, 64, 3] -> grey [N, 16, 16] -> digit f[N, 10]

The networks are trained here on true renders and real digits of the training split and
see nothing of the model under test: neither its features nor its codes.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import rearrange

from lavit_jax.toy import scenes, world

BACKGROUND = scenes.BACKGROUND_COLOR
HIDDEN = (256, 128)
BATCH_SIZE = 256
DIGIT_SIDE = 16
NOISE = 0.05  # added in training, so that no single pixel decides

Params = list[dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class PixelReading:
  """What the windows of N pictures show, and the one object each picture shows.

  Attributes:
    foreground: float32[N, 9] probability that a cell shows no background.
    cell: int[N] the cell with most foreground, 3 row + col.
    color: int[N] the color there, index into COLORS.
    shape: int[N] the shape there, index into SHAPES.
  """

  foreground: np.ndarray
  cell: np.ndarray
  color: np.ndarray
  shape: np.ndarray

  def names(self, row: int) -> tuple[str, str, int]:
    """Color, shape and cell of the object read in a row."""
    color, shape = world.COLORS[self.color[row]], world.SHAPES[self.shape[row]]
    return color, shape, int(self.cell[row])


@dataclasses.dataclass(frozen=True)
class Readers:
  """The trained networks.

  Attributes:
    window: parameters that name a window's color and shape.
    digit: parameters that name a digit.
  """

  window: Params
  digit: Params


def windows(images: np.ndarray) -> np.ndarray:
  """Cuts u8[N, H, W, 3] into the windows u8[N, 9, w, w, 3] of the nine cells."""
  patch = images.shape[1] // scenes.GRID
  size, step = scenes.WINDOW * patch, scenes.CELL_STRIDE * patch
  starts = [step * i for i in range(world.CELLS)]
  cut = [images[:, r : r + size, c : c + size] for r in starts for c in starts]
  return np.stack(cut, axis=1)


def window_labels(truths: Sequence[Mapping]) -> tuple[np.ndarray, np.ndarray]:
  """Color int[N, 9] (background `BACKGROUND`) and shape int[N, 9] (-1 there)."""
  color = np.full((len(truths), world.CELLS**2), BACKGROUND)
  shape = np.full(color.shape, -1)
  for row, truth in enumerate(truths):
    for o in truth["objects"]:
      cell = world.CELLS * o["row"] + o["col"]
      color[row, cell] = world.COLORS.index(o["color"])
      shape[row, cell] = world.SHAPES.index(o["shape"])
  return color, shape


def train(images: np.ndarray, truths: Sequence[Mapping], steps: int = 1500) -> Readers:
  """Trains both networks on pictures of the training split.

  Args:
    images: u8[N, H, W, 3] true renders and real digits.
    truths: {"objects": [...]} of a scene or {"digit": int} of a digit, N of them.
    steps: optimizer steps of each network.
  """
  scene = np.array(["objects" in truth for truth in truths])
  color, shape = window_labels([t for t in truths if "objects" in t])
  inputs = _window_inputs(images[scene]).reshape(color.size, -1)
  labels = np.stack([color.ravel(), shape.ravel()], axis=1)
  # Most windows show background: take as many of them as of objects.
  objects = np.flatnonzero(labels[:, 1] >= 0)
  empty = np.flatnonzero(labels[:, 1] < 0)[: max(len(objects), 1)]
  chosen = np.concatenate([objects, empty])
  sizes = BACKGROUND + 1 + len(world.SHAPES)
  window = _fit(inputs[chosen], labels[chosen], sizes, _window_loss, steps)
  digit_labels = np.array([t["digit"] for t in truths if "digit" in t])
  digit = _fit(_digit_inputs(images[~scene]), digit_labels, 10, _digit_loss, steps)
  return Readers(window, digit)


def read(readers: Readers, images: np.ndarray) -> PixelReading:
  """Reads the one object of pictures u8[N, H, W, 3], wherever it is."""
  logits = np.asarray(_apply(readers.window, _window_inputs(images)))
  color, shape = logits[..., : BACKGROUND + 1], logits[..., BACKGROUND + 1 :]
  powers = np.exp(color - color.max(-1, keepdims=True))
  foreground = 1 - powers[..., BACKGROUND] / powers.sum(-1)
  # Log-odds separate cells whose probabilities are both one in float32.
  cell = (color[..., :BACKGROUND].max(-1) - color[..., BACKGROUND]).argmax(1)
  at = lambda values: np.take_along_axis(values, cell[:, None, None], 1)[:, 0]
  best = at(color)[:, :BACKGROUND].argmax(1), at(shape).argmax(1)
  return PixelReading(foreground, cell, *best)


def read_digits(readers: Readers, images: np.ndarray) -> np.ndarray:
  """Names the digit int[N] on pictures u8[N, H, W, 3]."""
  return np.asarray(_apply(readers.digit, _digit_inputs(images)).argmax(-1))


def _window_inputs(images: np.ndarray) -> np.ndarray:
  scaled = windows(images).astype(np.float32) / 127.5 - 1
  return rearrange(scaled, "n c h w x -> n c (h w x)")


def _digit_inputs(images: np.ndarray) -> np.ndarray:
  factor = images.shape[1] // DIGIT_SIDE
  grey = images.astype(np.float32).mean(-1) / 127.5 - 1
  pooled = rearrange(grey, "n (h p) (w q) -> n h w (p q)", p=factor, q=factor).mean(-1)
  return pooled.reshape(len(images), -1)


@jax.jit
def _apply(params: Params, inputs: jax.Array) -> jax.Array:
  x = inputs
  for layer in params[:-1]:
    x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
  return x @ params[-1]["kernel"] + params[-1]["bias"]


def _window_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Cross entropy of the color, and of the shape where there is an object."""
  color, shape = logits[:, : BACKGROUND + 1], logits[:, BACKGROUND + 1 :]
  entropy = optax.softmax_cross_entropy_with_integer_labels
  seen = labels[:, 1] >= 0
  of_shape = entropy(shape, jnp.maximum(labels[:, 1], 0)) * seen
  return (entropy(color, labels[:, 0]) + of_shape).mean()


def _digit_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _fit(
  inputs: np.ndarray, labels: np.ndarray, outputs: int, loss: Callable, steps: int
) -> Params:
  """Trains a small network on float[N, D] inputs with Adam."""
  rng = np.random.default_rng(0)
  widths = (inputs.shape[1], *HIDDEN, outputs)
  params = [
    {
      "kernel": rng.normal(size=(i, o), scale=(2 / i) ** 0.5).astype(np.float32),
      "bias": np.zeros(o, np.float32),
    }
    for i, o in zip(widths, widths[1:])
  ]
  tx = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
  state = tx.init(params)
  for _ in range(steps):
    rows = rng.integers(0, len(inputs), BATCH_SIZE)
    noise = rng.normal(size=(BATCH_SIZE, inputs.shape[1]), scale=NOISE)
    noisy = inputs[rows] + noise.astype(np.float32)
    params, state = _step(tx.update, loss, params, state, noisy, labels[rows])
  return params


@functools.partial(jax.jit, static_argnums=(0, 1))
def _step(update, loss, params, state, inputs, labels):
  grads = jax.grad(lambda p: loss(_apply(p, inputs), labels))(params)
  updates, state = update(grads, state, params)
  return optax.apply_updates(params, updates), state
