"""Collectives of a compiled program: kind, bytes that a chip sends, and mesh axes.

Bytes follow the ring algorithms: with n devices in a group and a payload of b bytes, an
all-gather sends b (n - 1), a reduce-scatter b (n - 1) / n, an all-reduce both.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from lavit_jax.planning import program
from lavit_jax.planning.program import Computation, Instruction

KINDS = (
  "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute",
  "ragged-all-to-all", "collective-broadcast",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of a program.

  Attributes:
    kind: one of `KINDS`.
    shape: what it makes, as printed.
    sent: bytes that one device sends per call.
    group: device numbers of the first group, in mesh order.
    calls: how often one step runs it.
    is_async: whether compute may run beside it.
    op_name: where in the Python program it comes from.
  """

  kind: str
  shape: str
  sent: float
  group: tuple[int, ...]
  calls: int
  is_async: bool
  op_name: str

  @property
  def total(self) -> float:
    """Bytes that one device sends in a step."""
    return self.sent * self.calls


def kind_of(instruction: Instruction) -> str | None:
  """The kind of collective that an instruction starts, or None."""
  kind = instruction.opcode.removesuffix("-start")
  return kind if kind in KINDS else None


def read(
  computation: Computation, instruction: Instruction, calls: int, num_devices: int
) -> Collective | None:
  """Reads a collective, or None for a later mention of one that is under way.

  One asynchronous collective is printed three times and more: where it starts, inside
  the compute that runs beside it, and where it ends. The start is what counts.
  """
  kind, is_async = kind_of(instruction), instruction.opcode.endswith("-start")
  targets = {
    user.attribute(r'custom_call_target="([^"]*)"')
    for user in computation.users.get(instruction.name, ())
  }
  if "AsyncCollectiveStart" in targets:
    is_async = True
  elif "AsyncCollectiveDone" in targets or computation.name.startswith(
    "async_collective_fusion"
  ):
    return None
  payload = sum(
    program.num_bytes(computation.by_name[name].shape) for name in instruction.operands
  )
  opcodes = {i.opcode for i in computation.instructions}
  # A reduce-scatter is printed as a fusion of an all-reduce and a slice of its result.
  if kind == "all-reduce" and "scatter" in computation.name:
    if "dynamic-slice" in opcodes:
      kind = "reduce-scatter"
  group = first_group(instruction, num_devices)
  sent = payload * _share(kind, len(group))
  return Collective(
    kind, instruction.shape, sent, group, calls, is_async, instruction.op_name
  )


def _share(kind: str, size: int) -> float:
  """Bytes sent per byte of payload in a group of `size`."""
  if kind == "all-gather":
    return size - 1
  if kind == "all-reduce":
    return 2 * (size - 1) / size
  if kind in ("collective-permute", "collective-broadcast"):
    return 1
  return (size - 1) / size


def first_group(instruction: Instruction, num_devices: int) -> tuple[int, ...]:
  """Members of the first group, or the first two devices between which data moves."""
  text = instruction.attributes
  if found := re.search(r"source_target_pairs=\{([\d,{}]*)\}", text):
    pairs = re.findall(r"\{(\d+),(\d+)\}", found.group(1))
    between = ((int(a), int(b)) for a, b in pairs if a != b)
    return next(between, (0,))  # what a device sends to itself crosses no link
  if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text):
    return _mesh_group(*found.groups())
  pattern = r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
  if found := re.search(pattern, text):
    shape, source, order = (
      [int(n) for n in part.split(",")] if part else None for part in found.groups()
    )
    ids = np.arange(math.prod(source)).reshape(source)
    if order:
      ids = ids.transpose(order)
    return tuple(int(n) for n in ids.reshape(shape)[0])
  if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
    return tuple(int(n) for n in found.group(1).split(","))
  return tuple(range(num_devices))


def _mesh_group(sizes: str, axes: str) -> tuple[int, ...]:
  """The first group over named axes, or over parts of one: 'axis':(before)size."""
  shape = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", sizes)}
  split, taken = [], []
  chosen = {}
  for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes):
    chosen.setdefault(name, []).append((int(before or 1), int(size or shape[name])))
  for name, size in shape.items():
    done = 1
    for before, part in sorted(chosen.get(name, ())):
      split += [before // done, part]
      taken += [False, True]
      done = before * part
    split.append(size // done)
    taken.append(False)
  ids = np.arange(math.prod(split)).reshape(split)
  first = ids[tuple(slice(None) if t else 0 for t in taken)]
  return tuple(int(n) for n in first.reshape(-1))


def mesh_axes(group: Sequence[int], mesh: dict[str, int]) -> tuple[str, ...]:
  """Names of the mesh axes along which the members of a group differ."""
  place = np.unravel_index(np.array(group), tuple(mesh.values()))
  return tuple(name for name, at in zip(mesh, place) if len(set(at.tolist())) > 1)
