"""Which mesh layouts are worth compiling for a pod, by arithmetic alone.

A layout survives when its rows divide, and when parameters, optimizer state, what the
backward pass keeps of each layer and one layer at work fit on a chip. The compiler
decides the rest: this filter only saves its time.
"""

import dataclasses
import itertools
from collections.abc import Sequence

# Parameters and two moments in float32, and the gradient.
STATE_BYTES = 4 * 4
BFLOAT16 = 2
# What a layer keeps of a position by rematerialization policy, in widths of the model:
# its input; the attention kernel's result; at least the results of eight linear maps.
KEPT = {"full": 1, "attention": 2, "dots": 10}


@dataclasses.dataclass(frozen=True)
class Layout:
  """One candidate.

  Attributes:
    mesh: size by mesh axis.
    accumulate: micro-batches of a step.
    remat: rematerialization policy, a key of `KEPT`.
  """

  mesh: dict[str, int]
  accumulate: int
  remat: str

  def __str__(self) -> str:
    axes = " ".join(f"{axis}={n}" for axis, n in self.mesh.items() if n > 1)
    return f"{axes} accumulate={self.accumulate} remat={self.remat}"


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What the filter knows of a model.

  Attributes:
    parameters: trainable values.
    heads: attention heads, which tensor must divide.
    layers: recomputed layers.
    width: values of a position between layers.
    length: positions of a row.
    batch: rows of a step.
  """

  parameters: int
  heads: int
  layers: int
  width: int
  length: int
  batch: int


def powers(limit: int) -> list[int]:
  """Powers of two up to a limit."""
  return [1 << n for n in range(limit.bit_length())]


def memory(layout: Layout, sizes: Sizes) -> float:
  """Bytes on a chip that no layout avoids: state, kept values, and a layer at work."""
  mesh = layout.mesh
  state = STATE_BYTES * sizes.parameters / (mesh["fsdp"] * mesh["tensor"])
  rows = sizes.batch / layout.accumulate / (mesh["data"] * mesh["fsdp"])
  one = rows * sizes.length / mesh["sequence"] * sizes.width * BFLOAT16
  widths = lambda policy: 1 + (KEPT[policy] - 1) / mesh["tensor"]
  # The layer whose gradient is taken holds all its results again, and their gradients.
  return state + one * (sizes.layers * widths(layout.remat) + 2 * widths("dots"))


def candidates(
  chips: int, slices: int, sizes: Sizes, capacity: float
) -> list[Layout]:
  """Layouts that divide and may fit, the largest micro-batches first.

  Args:
    chips: of all slices.
    slices: of the pod; `data` spans them.
    sizes: of the model.
    capacity: bytes of a chip.
  """
  found = []
  widths = [n for n in powers(8) if sizes.heads % n == 0]
  parts = [n for n in powers(4) if sizes.length % (128 * n) == 0]
  for tensor, sequence in itertools.product(widths, parts):
    for data in powers(chips):
      fsdp, rest = divmod(chips, data * tensor * sequence)
      if rest or not fsdp or data % slices or data > 8 * slices:
        continue
      mesh = dict(data=data, fsdp=fsdp, sequence=sequence, tensor=tensor)
      for accumulate, remat in itertools.product(powers(sizes.batch), KEPT):
        layout = Layout(mesh, accumulate, remat)
        rows, rest = divmod(sizes.batch, accumulate * data * fsdp)
        if rows and not rest and memory(layout, sizes) < capacity:
          found.append(layout)
  return sorted(found, key=lambda x: (x.accumulate, _splits(x.mesh)))


def _splits(mesh: dict[str, int]) -> int:
  """How far a layout is from plain fsdp, the usual winner."""
  return mesh["data"] * mesh["tensor"] ** 2 * mesh["sequence"] ** 2


def frontier(points: Sequence[tuple[float, float]]) -> set[int]:
  """Indices of the points that no other beats in both coordinates (smaller wins)."""
  best, kept = float("inf"), set()
  for index in sorted(range(len(points)), key=lambda i: points[i]):
    if points[index][1] < best:
      best = points[index][1]
      kept.add(index)
  return kept
