"""Inception v3 as the FID knows it: TensorFlow's network of December 2015, pool3.

    u8[B, H, W, 3] -> f32[B, 299, 299, 3] in [-1, 1) -> blocks -> mean -> f32[B, 2048]

Pictures are resized as TensorFlow 1 did it, bilinear from the upper left corner and
without smoothing; averages leave out padding; the last block pools its maximum. Each
of these moves an FID visibly. Heusel et al. 2017; Szegedy et al. 2015.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax.layers import linear

SIDE, FEATURES = 299, 2048
EPS = 1e-3
MAX, AVERAGE = "max", "average"

# A branch is a chain: (name, filters, kernel, stride), a pool (kind, stride), or a list
# of convolutions side by side. Kernels are (height, width). Stride 1 pads to the same
# size, stride 2 does not pad.
Convolution = tuple[str, int, tuple[int, int], int]
ONE, THREE, FIVE = (1, 1), (3, 3), (5, 5)
FLAT, TALL = (1, 7), (7, 1)


def _a(pool: int) -> list[list]:
  return [
    [("branch1x1", 64, ONE, 1)],
    [("branch5x5_1", 48, ONE, 1), ("branch5x5_2", 64, FIVE, 1)],
    [
      ("branch3x3dbl_1", 64, ONE, 1),
      ("branch3x3dbl_2", 96, THREE, 1),
      ("branch3x3dbl_3", 96, THREE, 1),
    ],
    [(AVERAGE, 1), ("branch_pool", pool, ONE, 1)],
  ]


_B = [
  [("branch3x3", 384, THREE, 2)],
  [
    ("branch3x3dbl_1", 64, ONE, 1),
    ("branch3x3dbl_2", 96, THREE, 1),
    ("branch3x3dbl_3", 96, THREE, 2),
  ],
  [(MAX, 2)],
]


def _c(width: int) -> list[list]:
  return [
    [("branch1x1", 192, ONE, 1)],
    [
      ("branch7x7_1", width, ONE, 1),
      ("branch7x7_2", width, FLAT, 1),
      ("branch7x7_3", 192, TALL, 1),
    ],
    [
      ("branch7x7dbl_1", width, ONE, 1),
      ("branch7x7dbl_2", width, TALL, 1),
      ("branch7x7dbl_3", width, FLAT, 1),
      ("branch7x7dbl_4", width, TALL, 1),
      ("branch7x7dbl_5", 192, FLAT, 1),
    ],
    [(AVERAGE, 1), ("branch_pool", 192, ONE, 1)],
  ]


_D = [
  [("branch3x3_1", 192, ONE, 1), ("branch3x3_2", 320, THREE, 2)],
  [
    ("branch7x7x3_1", 192, ONE, 1),
    ("branch7x7x3_2", 192, FLAT, 1),
    ("branch7x7x3_3", 192, TALL, 1),
    ("branch7x7x3_4", 192, THREE, 2),
  ],
  [(MAX, 2)],
]


def _e(pool: str) -> list[list]:
  both = lambda name, a, b: [(name + a, 384, (1, 3), 1), (name + b, 384, (3, 1), 1)]
  return [
    [("branch1x1", 320, ONE, 1)],
    [("branch3x3_1", 384, ONE, 1), both("branch3x3_2", "a", "b")],
    [
      ("branch3x3dbl_1", 448, ONE, 1),
      ("branch3x3dbl_2", 384, THREE, 1),
      both("branch3x3dbl_3", "a", "b"),
    ],
    [(pool, 1), ("branch_pool", 192, ONE, 1)],
  ]


# The stem is one chain; None there stands for "stride 1 without padding".
STEM = [
  ("Conv2d_1a_3x3", 32, THREE, 2),
  ("Conv2d_2a_3x3", 32, THREE, None),
  ("Conv2d_2b_3x3", 64, THREE, 1),
  (MAX, 2),
  ("Conv2d_3b_1x1", 80, ONE, 1),
  ("Conv2d_4a_3x3", 192, THREE, None),
  (MAX, 2),
]
BLOCKS = {
  "Mixed_5b": _a(32),
  "Mixed_5c": _a(64),
  "Mixed_5d": _a(64),
  "Mixed_6a": _B,
  "Mixed_6b": _c(128),
  "Mixed_6c": _c(160),
  "Mixed_6d": _c(160),
  "Mixed_6e": _c(192),
  "Mixed_7a": _D,
  "Mixed_7b": _e(AVERAGE),
  "Mixed_7c": _e(MAX),
}


def resized(images: jax.Array) -> jax.Array:
  """Resizes u8 or float[B, H, W, 3] to float32[B, 299, 299, 3] as TensorFlow 1 did."""
  rows, columns = (_weights(size) for size in images.shape[1:3])
  wide = images.astype(jnp.float32)
  wide = jnp.einsum("bhwc,qw->bhqc", wide, columns, precision="highest")
  return jnp.einsum("bhqc,ph->bpqc", wide, rows, precision="highest")


def _weights(size: int) -> np.ndarray:
  """float32[299, size]: output i lies at i * size / 299 of the input."""
  place = np.arange(SIDE, dtype=np.float32) * np.float32(size / SIDE)
  low = place.astype(int)
  share = place - low
  weights = np.zeros((SIDE, size), np.float32)
  weights[np.arange(SIDE), low] += 1 - share
  weights[np.arange(SIDE), np.minimum(low + 1, size - 1)] += share
  return weights


class BasicConv(nn.Module):
  """Convolution without bias, the normalization of its training, ReLU.

  Attributes:
    filters: D.
    kernel: height and width.
    stride: 1 keeps the size, 2 and None do not pad.
  """

  filters: int
  kernel: tuple[int, int]
  stride: int | None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps float32[B, H, W, C] to float32[B, H', W', D]."""
    shape = (*self.kernel, x.shape[-1], self.filters)
    init = linear.fan_in(int(np.prod(shape[:3])))
    kernel = linear.param(self, "kernel", init, shape, (None,) * 4)
    zeros, ones = nn.initializers.zeros, nn.initializers.ones
    vector = lambda name, start: linear.param(
      self, name, start, (self.filters,), (None,)
    )
    mean, variance = vector("mean", zeros), vector("variance", ones)
    scale, bias = vector("scale", ones), vector("bias", zeros)
    y = jax.lax.conv_general_dilated(
      x,
      kernel,
      (self.stride or 1,) * 2,
      "SAME" if self.stride == 1 else "VALID",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      precision="highest",
    )
    return nn.relu((y - mean) * (scale * jax.lax.rsqrt(variance + EPS)) + bias)


def _pool(x: jax.Array, kind: str, stride: int) -> jax.Array:
  """A window of 3 x 3; an average counts only what lies inside the picture."""
  padding = "SAME" if stride == 1 else "VALID"
  window = ((3, 3), (stride, stride), padding)
  if kind == MAX:
    return nn.max_pool(x, *window)
  return nn.avg_pool(x, *window, count_include_pad=False)


class Block(nn.Module):
  """Branches of one input, joined along the channels.

  Attributes:
    branches: chains of the table.
  """

  branches: tuple

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps float32[B, H, W, C] to float32[B, H', W', D]."""
    return jnp.concatenate([run(x, steps) for steps in self.branches], axis=-1)


def run(x: jax.Array, steps: list) -> jax.Array:
  """Runs a chain inside the module that calls it."""
  for step in steps:
    if not isinstance(step[0], str):  # side by side
      made = [BasicConv(*one[1:], name=one[0])(x) for one in step]
      x = jnp.concatenate(made, axis=-1)
    elif len(step) == 2:
      x = _pool(x, *step)
    else:
      x = BasicConv(*step[1:], name=step[0])(x)
  return x


class Inception(nn.Module):
  """The whole network up to its 2048 mean features; all in float32."""

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Features float32[B, 2048] of u8[B, H, W, 3] pictures of any size."""
    x = run((resized(images) - 128) / 128, STEM)
    for name, branches in BLOCKS.items():
      x = Block(branches, name=name)(x)
    return x.mean(axis=(1, 2))


def convolutions() -> list[str]:
  """Path of every convolution, e.g. "Mixed_5b/branch1x1"."""
  found = [step[0] for step in STEM if len(step) == 4]
  for name, branches in BLOCKS.items():
    for branch in branches:
      flat = [one for s in branch for one in (s if isinstance(s, list) else [s])]
      found += [f"{name}/{step[0]}" for step in flat if len(step) == 4]
  return found
