"""Which mesh layouts are worth compiling for a pod, by arithmetic alone.

A layout survives when its rows divide, and when parameters, optimizer state and the
inputs that the backward pass keeps of each layer fit on a chip. The compiler decides
the rest: this filter only saves its time.
"""

import dataclasses
import itertools
from collections.abc import Sequence

# Parameters and two moments in float32, and the gradient.
STATE_BYTES = 4 * 4
BFLOAT16 = 2


@dataclasses.dataclass(frozen=True)
class Layout:
  """One candidate.

  Attributes:
    mesh: size by mesh axis.
    accumulate: micro-batches of a step.
    remat: rematerialization policy.
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
    width: values of a position that a layer keeps.
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
  """Bytes on a chip that no layout can avoid: state, and the inputs of the layers."""
  mesh = layout.mesh
  state = STATE_BYTES * sizes.parameters / (mesh["fsdp"] * mesh["tensor"])
  rows = sizes.batch / layout.accumulate / (mesh["data"] * mesh["fsdp"])
  kept = rows * sizes.length / mesh["sequence"] * sizes.layers * sizes.width * BFLOAT16
  return state + kept


def candidates(
  chips: int, slices: int, sizes: Sizes, policies: Sequence[str], capacity: float
) -> list[Layout]:
  """Layouts that divide and may fit, the largest micro-batches first.

  Args:
    chips: of all slices.
    slices: of the pod; `data` spans them.
    sizes: of the model.
    policies: rematerialization policies to try.
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
      for accumulate, remat in itertools.product(powers(sizes.batch), policies):
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
