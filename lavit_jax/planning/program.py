"""Reads the text of a compiled program into computations and instructions.

The text is XLA's own (`compiled.as_text()`), the same for CPU and TPU:

    %body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
      %x = f32[8]{0:T(128)} fusion(%p), kind=kLoop, calls=%fused, backend_config=...
    }

Instructions may span lines, which may begin with braces, and names are only unique
within a computation.
"""

import dataclasses
import functools
import math
import re

BITS = {
  "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "f8e4m3fn": 8, "f8e5m2": 8,
  "bf16": 16, "f16": 16, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "f32": 32,
  "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip

_SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$", re.DOTALL)
_STARTS = re.compile(
  r"^(\s+(ROOT )?%?[\w.\-]+ = |(ENTRY )?%?[\w.\-]+ \(|\}\s*$|HloModule|\s*$)"
)
_COMMENT = re.compile(r"/\*.*?\*/")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: its name.
    shape: its type, e.g. "(f32[8]{0}, s32[])".
    opcode: e.g. "dot".
    operands: names of its operands.
    literal: what stands between the parentheses.
    attributes: everything after them.
  """

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  literal: str
  attributes: str

  def attribute(self, pattern: str) -> str | None:
    """The first group of a regular expression over the attributes."""
    found = re.search(pattern, self.attributes)
    return found.group(1) if found else None

  def called(self, key: str) -> str | None:
    """The computation named by an attribute, such as "calls" or "body"."""
    return self.attribute(rf"\b{key}=%?([\w.\-]+)")

  @functools.cached_property
  def op_name(self) -> str:
    """Where in the Python program it comes from."""
    return self.attribute(r'op_name="([^"]*)"') or ""


@dataclasses.dataclass
class Computation:
  """A list of instructions.

  Attributes:
    name: its name.
    instructions: in order; the last one marked ROOT is the result.
    root: the result.
  """

  name: str
  instructions: list[Instruction] = dataclasses.field(default_factory=list)
  root: Instruction | None = None

  @functools.cached_property
  def by_name(self) -> dict[str, Instruction]:
    """Instructions by name."""
    return {i.name: i for i in self.instructions}

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """Instructions that read each name."""
    found: dict[str, list[Instruction]] = {}
    for instruction in self.instructions:
      for name in instruction.operands:
        found.setdefault(name, []).append(instruction)
    return found

  def operand_shape(self, instruction: Instruction, index: int) -> str:
    """Type of an operand."""
    return self.by_name[instruction.operands[index]].shape


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program.

  Attributes:
    computations: by name.
    entry: name of the one that runs.
  """

  computations: dict[str, Computation]
  entry: str


def dims(shape: str) -> list[tuple[str, tuple[int, ...]]]:
  """Element type and sizes of each array of a type, tuples flattened."""
  return [
    (kind, tuple(int(n.removeprefix("<=")) for n in sizes.split(",") if n))
    for kind, sizes in _SHAPE.findall(shape)
    if kind in BITS
  ]


def num_bytes(shape: str) -> int:
  """Bytes of a type without tile padding."""
  return sum(math.prod(sizes) * BITS[kind] // 8 for kind, sizes in dims(shape))


def parse(text: str) -> Program:
  """Parses program text.

  Raises:
    ValueError: the text holds no entry computation.
  """
  computations, current, entry = {}, None, None
  for line in _joined(text):
    header = _HEADER.match(line)
    if header and " = " not in line.split("(")[0]:
      current = computations[header.group(2)] = Computation(header.group(2))
      entry = header.group(2) if header.group(1) else entry
    elif line.rstrip() == "}":
      current = None
    elif current is not None and (found := _INSTRUCTION.match(line)):
      instruction = _instruction(found.group(2), _COMMENT.sub("", found.group(3)))
      current.instructions.append(instruction)
      if found.group(1):
        current.root = instruction
  if entry is None:
    raise ValueError(
      "expected the text of a compiled program, got none with an ENTRY; the compiler"
      " cannot print it: install the pinned pair (in the repository's root pip install"
      " --editable '.[tpu]')"
    )
  return Program(computations, entry)


def _joined(text: str) -> list[str]:
  """Lines, with those that continue an instruction joined to it."""
  lines: list[list[str]] = []
  for line in text.splitlines():
    if lines and not _STARTS.match(line):
      lines[-1].append(line)
    else:
      lines.append([line])
  return ["".join(parts) for parts in lines]


def _instruction(name: str, rest: str) -> Instruction:
  end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
  shape, rest = rest[:end], rest[end:].lstrip()
  start = rest.index("(")
  end = _closing(rest, start)
  literal = rest[start + 1 : end - 1]
  operands = () if rest.startswith("constant") else re.findall(r"%([\w.\-]+)", literal)
  return Instruction(name, shape, rest[:start], tuple(operands), literal, rest[end:])


def _closing(text: str, start: int) -> int:
  """Index after the parenthesis that closes the one at `start`."""
  depth = 0
  for found in re.compile(r"[()]").finditer(text, start):
    depth += 1 if found.group() == "(" else -1
    if not depth:
      return found.end()
  raise ValueError(f"unbalanced parentheses in {text[:80]!r}")
