"""Counts what one step of a compiled program does on one device.

`cost_analysis()` counts the body of a loop once; here every body counts as often as
its loop turns.
"""

import dataclasses
import math
import re

from lavit_jax.layers import splash
from lavit_jax.planning import collectives, loops, products, program
from lavit_jax.planning.collectives import Collective
from lavit_jax.planning.program import Computation, Instruction, Program

# Matrix products of query times key size in each attention kernel.
KERNEL_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
# Above it, an estimate is the compiler's word for "unknown".
MOST_CYCLES = 10**13


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A hand-written kernel, whose work the compiler does not see.

  Attributes:
    name: where it comes from.
    flops: analytic FLOPs of one call, the mean of the devices.
    slowest: those of the device with the most.
    calls: calls per step.
  """

  name: str
  flops: float
  slowest: float
  calls: int


@dataclasses.dataclass
class Cost:
  """One step on one device.

  Attributes:
    flops: FLOPs of matrix products that the compiler sees.
    cycles: the compiler's own estimate of compute and memory time, without collectives
      and kernels; 0 where it gives none (CPU).
    collectives: all of them.
    kernels: hand-written kernels.
    loops: trip count of each loop by name, None where unknown (counted once).
  """

  flops: float = 0.0
  cycles: float = 0.0
  collectives: list[Collective] = dataclasses.field(default_factory=list)
  kernels: list[Kernel] = dataclasses.field(default_factory=list)
  loops: dict[str, int | None] = dataclasses.field(default_factory=dict)

  @property
  def kernel_flops(self) -> float:
    """Analytic FLOPs of the kernels, the mean of the devices."""
    return sum(kernel.flops * kernel.calls for kernel in self.kernels)

  @property
  def slowest_kernel_flops(self) -> float:
    """The same on the device that the others wait for."""
    return sum(kernel.slowest * kernel.calls for kernel in self.kernels)

  def bytes_by(self, key) -> dict[str, float]:
    """Bytes that one device sends in a step, summed by `key(collective)`."""
    added: dict[str, float] = {}
    for one in self.collectives:
      added[key(one)] = added.get(key(one), 0.0) + one.total
    return added


def count(text: str, num_devices: int) -> Cost:
  """Counts a program from its text (`compiled.as_text()`)."""
  parsed = program.parse(text)
  cost = Cost()
  _walk(parsed, parsed.computations[parsed.entry], 1, num_devices, cost)
  return cost


def _walk(parsed: Program, computation: Computation, calls, num_devices, cost) -> None:
  for instruction in computation.instructions:
    cost.flops += calls * products.flops(computation, instruction)
    cost.cycles += calls * _cycles(instruction)
    if collectives.kind_of(instruction):
      _add_collective(computation, instruction, calls, num_devices, cost)
    elif instruction.opcode == "while":
      trips = loops.trip_count(parsed, computation, instruction)
      cost.loops[instruction.name] = trips
      body = parsed.computations[instruction.called("body")]
      _walk(parsed, body, calls * (1 if trips is None else trips), num_devices, cost)
    elif instruction.opcode == "conditional":
      _walk_costliest(parsed, instruction, calls, num_devices, cost)
    elif instruction.opcode in ("call", "fusion", "async-start"):
      name = instruction.called("calls") or instruction.called("to_apply")
      inner = Cost()
      _walk(parsed, parsed.computations[name], calls, num_devices, inner)
      _merge(cost, inner, with_cycles=instruction.opcode == "call")
    elif instruction.opcode == "custom-call":
      _add_kernel(computation, instruction, calls, cost)


def _merge(cost: Cost, inner: Cost, with_cycles: bool) -> None:
  """Adds an inner computation; that of a fusion is estimated as a whole."""
  cost.flops += inner.flops
  cost.cycles += inner.cycles if with_cycles else 0.0
  cost.collectives += inner.collectives
  cost.kernels += inner.kernels
  cost.loops |= inner.loops


def _walk_costliest(parsed, conditional, calls, num_devices, cost) -> None:
  """Adds the branch with the most FLOPs: one of them runs."""
  names = conditional.attribute(r"branch_computations=\{([^}]*)\}")
  if names is None:
    names = " ".join(
      f"%{conditional.called(f'{side}_computation')}" for side in ("true", "false")
    )
  branches = []
  for name in re.findall(r"%([\w.\-]+)", names):
    branches.append(Cost())
    _walk(parsed, parsed.computations[name], calls, num_devices, branches[-1])
  _merge(cost, max(branches, key=lambda branch: branch.flops), with_cycles=True)


def _cycles(instruction: Instruction) -> int:
  if collectives.kind_of(instruction):
    return 0
  cycles = int(instruction.attribute(r'estimated_cycles":"(\d+)"') or 0)
  return cycles if cycles < MOST_CYCLES else 0


def _add_collective(computation, instruction, calls, num_devices, cost) -> None:
  found = collectives.read(computation, instruction, calls, num_devices)
  if found is not None and len(found.group) > 1:
    cost.collectives.append(found)


def _add_kernel(computation, instruction, calls, cost) -> None:
  if instruction.attribute(r'custom_call_target="([^"]*)"') != "tpu_custom_call":
    return
  name = instruction.op_name or instruction.name
  cost.kernels.append(Kernel(name, *kernel_flops(computation, instruction), calls))


def kernel_flops(computation: Computation, call: Instruction) -> tuple[float, float]:
  """FLOPs of one call of the splash attention kernels under a causal mask.

  Reads sizes from the operands: query [.., heads, T, H], then keys [.., heads, S, H].
  A mesh that spreads the sequence leaves T < S queries to each device, and the last of
  them sees nearly all keys. Segments make it less still, depending on data; they are
  not subtracted.

  Returns:
    The mean of the devices, and those of the last one; 0 for any other kernel.
  """
  arrays = [
    sizes
    for name in call.operands
    for kind, sizes in program.dims(computation.by_name[name].shape)
    if len(sizes) >= 3 and kind in ("bf16", "f32", "f16")
  ]
  if len(arrays) < 2 or "splash" not in (call.op_name + call.name):
    return 0.0, 0.0
  query, key = arrays[:2]
  passes = max(n for part, n in KERNEL_PRODUCTS.items() if part in _kernel_name(call))
  whole = 2 * passes * math.prod(query) * key[-2]
  block = math.gcd(query[-2], splash.BLOCK)
  rows, columns = query[-2] // block, key[-2] // block
  return whole * (columns + 1) / (2 * columns), whole * (1 - (rows - 1) / (2 * columns))


def _kernel_name(call: Instruction) -> str:
  """The name of the kernel, or "fwd" where none of the known parts occurs."""
  name = call.op_name.rsplit("/", 1)[-1] + call.name
  return name if any(part in name for part in KERNEL_PRODUCTS) else "fwd"
