"""Which mesh layouts are worth compiling for a pod, by arithmetic alone.

    every mesh that divides x policy -> the largest micro-batches whose memory fits
    -> by estimated seconds, the policies in turn

The compiler decides the rest: this only saves its time. The constants of `memory` are
fitted to stage 2 as compiled for v5e-64: 23 layouts over all axes, within 6 %.
"""

import dataclasses
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any

from lavit_jax.planning import topology
from lavit_jax.planning.topology import Topology

BFLOAT16 = 2
# Bytes for each trainable value: parameter, two moments, gradient, update in float32;
# with several micro-batches also their sum, and its copy while one is added.
STATE_BYTES = 5 * 4
SUM_BYTES = 2 * 4
# Layers whose weights are gathered at a time, in the compute dtype.
GATHERED = 2
# What a layer keeps of a position by rematerialization policy, in widths of the model
# as (whole, split over tensor): its input; the attention kernel's result; the results
# of the two maps that end in sums over tensor, and those of the five others.
KEPT = {"full": (1, 0), "attention": (1, 1), "dots": (3, 7.4)}
# What is alive of a position at once where memory peaks: a layer that is computed again
# with its gradients, the loss, the pictures' features. The last are the whole row's
# keys and values, for each further device that shares a row over sequence.
WORKING, WORKING_SPLIT, WORKING_ROW = 13, 33, 7
# Micro-batches to try of each mesh and policy: the largest that fits, and half of it.
SIZES_EACH = 2
# Sums of a layer's result over tensor: two forward, two again and two backward; one
# less where the maps are kept.
REDUCED = {"full": 6, "attention": 6, "dots": 5}


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
  """What the arithmetic knows of a stage.

  Attributes:
    parameters: trainable values.
    flops: FLOPs of a step of the whole pod by policy; the policies to try.
    heads: attention heads, which tensor must divide.
    fsdp: the most devices that weights split over.
    layers: recomputed layers.
    width: values of a position between layers.
    length: positions of a row.
    batch: rows of a step.
  """

  parameters: int
  flops: dict[str, float]
  heads: int
  fsdp: int
  layers: int
  width: int
  length: int
  batch: int


def powers(limit: int) -> list[int]:
  """Powers of two up to a limit."""
  return [1 << n for n in range(limit.bit_length())]


def memory(layout: Layout, sizes: Sizes) -> float:
  """Bytes on a chip: state, gathered weights, what layers keep, and what is at work."""
  mesh = layout.mesh
  values = sizes.parameters / (mesh["fsdp"] * mesh["tensor"])
  state = values * (STATE_BYTES + SUM_BYTES * (layout.accumulate > 1))
  weights = GATHERED * BFLOAT16 * sizes.parameters / sizes.layers / mesh["tensor"]
  whole, split = KEPT[layout.remat]
  widths = sizes.layers * (whole + split / mesh["tensor"])
  widths += WORKING + WORKING_SPLIT / mesh["tensor"]
  widths += WORKING_ROW * (mesh["sequence"] - 1)
  return state + weights + widths * _width(layout, sizes) / layout.accumulate


def _width(layout: Layout, sizes: Sizes) -> float:
  """Bytes on a chip of one value between layers, for all positions of a step."""
  ways = math.prod(layout.mesh[axis] for axis in ("data", "fsdp", "sequence"))
  return sizes.batch * sizes.length * sizes.width * BFLOAT16 / ways


def seconds(layout: Layout, sizes: Sizes, pod: Topology) -> float:
  """Seconds of a step at the chips' peak when no exchange hides behind compute."""
  mesh = layout.mesh
  weights = BFLOAT16 * sizes.parameters / mesh["tensor"] * layout.accumulate
  position = _width(layout, sizes) * sizes.layers
  sent = {
    # A sum over n devices sends 2 (n - 1) / n of its bytes, a gather or scatter half.
    "data": 2 * weights / mesh["fsdp"],  # gradients
    "fsdp": 3 * weights,  # gathered forward and backward; gradients scattered
    "sequence": 6 * position * mesh["sequence"],  # keys and values, thrice
    "tensor": 2 * REDUCED[layout.remat] * position,
  }
  exchange = sum(
    size * (mesh[axis] - 1) / mesh[axis] / _bandwidth(pod, axis, mesh[axis])
    for axis, size in sent.items()
  )
  return sizes.flops[layout.remat] / (pod.chips * pod.chip.flops) + exchange


def _bandwidth(pod: Topology, axis: str, size: int) -> float:
  """Bytes/s of a chip along a mesh axis: a link for each torus side that it needs."""
  if axis == "data" and pod.slices > 1:
    return topology.NETWORK
  sides = itertools.accumulate(sorted(pod.shape, reverse=True), operator.mul)
  return pod.chip.link * (1 + sum(reached < size for reached in sides))


def candidates(pod: Topology, sizes: Sizes) -> list[Layout]:
  """Layouts that divide and should fit, the most promising first, policies in turn.

  Args:
    pod: the pod; `data` spans its slices.
    sizes: of the stage.
  """
  ranked = []
  for policy in sizes.flops:
    fitting = itertools.chain.from_iterable(
      _largest(mesh, policy, sizes, pod.chip.memory) for mesh in _meshes(pod, sizes)
    )
    ranked.append(sorted(fitting, key=lambda one: seconds(one, sizes, pod)))
  return in_turn(ranked)


def in_turn(lists: Sequence[Sequence[Any]]) -> list[Any]:
  """The first of each list, then the second of each that has one, and so on."""
  none = object()
  turns = itertools.zip_longest(*lists, fillvalue=none)
  return [one for one in itertools.chain.from_iterable(turns) if one is not none]


def _meshes(pod: Topology, sizes: Sizes) -> list[dict[str, int]]:
  found = []
  tensors = [n for n in powers(8) if sizes.heads % n == 0]
  sequences = [1, *(n for n in (2, 4) if sizes.length % (128 * n) == 0)]
  for tensor, sequence in itertools.product(tensors, sequences):
    for data in powers(8):
      data *= pod.slices
      fsdp, rest = divmod(pod.chips, data * tensor * sequence)
      if fsdp and not rest and sizes.fsdp % fsdp == 0:
        found.append(dict(data=data, fsdp=fsdp, sequence=sequence, tensor=tensor))
  return found


def _largest(
  mesh: dict[str, int], policy: str, sizes: Sizes, capacity: float
) -> list[Layout]:
  """The largest micro-batches that divide and should fit, up to `SIZES_EACH`."""
  ways = mesh["data"] * mesh["fsdp"]
  layouts = [Layout(mesh, accumulate, policy) for accumulate in powers(sizes.batch)]
  return [
    one
    for one in layouts
    if sizes.batch % (one.accumulate * ways) == 0 and memory(one, sizes) < capacity
  ][:SIZES_EACH]


def frontier(points: Sequence[tuple[float, float]]) -> set[int]:
  """Indices of the points that no other beats in both coordinates (smaller wins)."""
  best, kept = float("inf"), set()
  for index in sorted(range(len(points)), key=lambda i: points[i]):
    if points[index][1] < best:
      best = points[index][1]
      kept.add(index)
  return kept
