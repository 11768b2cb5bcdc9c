"""Compiles a lowered program for absent chips, and reads what the compiler says."""

import dataclasses
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh

# The least effort towards a fast and a small program. Memory is right to about 1 %, and
# products and exchanges are the same; the schedule is not that of a real run.
DRAFT = {"jax_optimization_level": "O0", "jax_memory_fitting_level": "O0"}
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one chip.

  Attributes:
    arguments: parameters, optimizer state, batch and the like, with tile padding.
    outputs: results that do not live in a donated argument.
    donated: results that do, no memory of their own.
    temporaries: the peak of everything in between.
    code: the program itself.
  """

  arguments: int
  outputs: int
  donated: int
  temporaries: int
  code: int

  @property
  def total(self) -> int:
    """What must fit at once."""
    return self.arguments + self.outputs + self.temporaries + self.code


class DoesNotFitError(ValueError):
  """The compiler found no way to fit the program.

  Attributes:
    used: bytes that it needs on one chip.
    capacity: bytes that the compiler may use there.
  """

  def __init__(self, used: float, capacity: float):
    super().__init__(f"needs {used / 1e9:.2f} GB per chip of {capacity / 1e9:.2f} GB")
    self.used, self.capacity = used, capacity


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A compiled program.

  Attributes:
    text: its text.
    memory: bytes on one chip.
    seconds: time to compile.
    cpu_seconds: the same on the processor, summed over threads.
  """

  text: str
  memory: Memory
  seconds: float
  cpu_seconds: float


def compile_lowered(lowered: Any, mesh: Mesh, draft: bool = False) -> Compiled:
  """Compiles.

  Args:
    lowered: `jax.jit(f).lower(...)`.
    mesh: the mesh it was lowered on.
    draft: with `DRAFT`'s efforts, in a third of the time.

  Raises:
    DoesNotFitError: too large for the chip's memory.
    ValueError: the compiler cannot print this program.
  """
  started, worked = time.monotonic(), time.process_time()
  usual = {name: getattr(jax.config, name) for name in DRAFT}
  try:
    for name, effort in DRAFT.items() if draft else ():
      jax.config.update(name, effort)
    with jax.set_mesh(mesh):
      compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    raise _memory_error(str(error)) or error from error
  finally:
    for name, effort in usual.items():
      jax.config.update(name, effort)
  seconds, cpu_seconds = time.monotonic() - started, time.process_time() - worked
  found = compiled.memory_analysis()
  memory = Memory(
    arguments=found.argument_size_in_bytes,
    outputs=found.output_size_in_bytes - found.alias_size_in_bytes,
    donated=found.alias_size_in_bytes,
    temporaries=found.temp_size_in_bytes,
    code=found.generated_code_size_in_bytes,
  )
  try:
    text = compiled.as_text()
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(
      "this libtpu cannot print the compiled program, so nothing can be counted;"
      " install the pinned pair: in the repository's root pip install --editable"
      " '.[tpu]'"
    ) from error
  return Compiled(text, memory, seconds, cpu_seconds)


def _memory_error(message: str) -> DoesNotFitError | None:
  """Reads how much of how much out of the compiler's message.

  It is "Used 20.51G of 15.75G hbm", or, where it gives up before the code is placed,
  "HLO temporaries (24.12G) exceeds available HBM (15.75G)", which counts arguments and
  outputs too: 17 GB of arguments alone are named so.
  """
  amount = r"([\d.]+)([KMGT]?)"
  for pattern in (
    rf"Used {amount} of {amount} hbm",
    rf"\({amount}\) exceeds available HBM \({amount}\)",
  ):
    if found := re.search(pattern, message):
      used, used_unit, capacity, capacity_unit = found.groups()
      return DoesNotFitError(
        float(used) * UNITS[used_unit], float(capacity) * UNITS[capacity_unit]
      )
  return None
