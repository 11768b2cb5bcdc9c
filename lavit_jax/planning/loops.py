"""How often a loop of a compiled program turns.

The counter starts in the tuple that the loop is given, the body adds a step to it, and
the condition compares it with a limit. All three are read: a compiler that moves the
first turn out of the loop starts the counter at one, and one that unrolls adds two.
"""

import dataclasses
import re

from lavit_jax.planning.program import Computation, Instruction, Program

# What passes a value on as it is.
ALIASES = {"copy", "copy-start", "copy-done", "bitcast", "convert"}
ALIASES |= {"optimization-barrier"}
CALLS = {"call", "fusion"}


@dataclasses.dataclass(frozen=True)
class Scalar:
  """An integer as far as the text tells.

  Attributes:
    added: a constant, added to what the computation is given at `origin`.
    origin: a parameter's number, then tuple indices into it; None for the constant
      alone.
  """

  added: int
  origin: tuple[int, ...] | None = None


def trip_count(parsed: Program, around: Computation, loop: Instruction) -> int | None:
  """Turns of a loop, or None where its start, step or limit cannot be read.

  Args:
    parsed: the program.
    around: the computation that the loop is part of.
    loop: the `while` instruction.
  """
  known = loop.attribute(r'known_trip_count":\{"n":"(\d+)"')
  if known:
    return int(known)
  (counter, limit), direction = _comparison(parsed, loop)
  if counter is None or counter.origin is None or counter.added:
    return None
  if limit is None or limit.origin is not None or direction not in ("LT", "LE"):
    return None
  _, *path = counter.origin
  body = parsed.computations[loop.called("body")]
  start = _scalar(parsed, around, loop.operands[0], tuple(path))
  moved = _scalar(parsed, body, body.root.name, tuple(path))
  if start is None or start.origin is not None:
    return None
  if moved is None or moved.origin != counter.origin or moved.added <= 0:
    return None
  return len(range(start.added, limit.added + (direction == "LE"), moved.added))


def _comparison(
  parsed: Program, loop: Instruction
) -> tuple[list[Scalar | None], str | None]:
  """The two sides of a loop's condition, and the direction of their comparison."""
  condition = parsed.computations[loop.called("condition")]
  root, within = condition.root, condition
  if root.opcode in CALLS:
    within = _called(parsed, root)
  if within.root.opcode != "compare":
    return [None, None], None
  sides = [_scalar(parsed, within, name) for name in within.root.operands]
  if within is not condition:
    sides = [_outward(parsed, condition, root, side) for side in sides]
  return sides, within.root.attribute(r"direction=(\w+)")


def _called(parsed: Program, call: Instruction) -> Computation:
  return parsed.computations[call.called("calls") or call.called("to_apply")]


def _outward(
  parsed: Program, computation: Computation, call: Instruction, scalar: Scalar | None
) -> Scalar | None:
  """A scalar of a called computation, seen from where it is called."""
  if scalar is None or scalar.origin is None:
    return scalar
  number, *path = scalar.origin
  given = _scalar(parsed, computation, call.operands[number], tuple(path))
  return given and Scalar(given.added + scalar.added, given.origin)


def _scalar(
  parsed: Program, computation: Computation, name: str, path: tuple[int, ...] = ()
) -> Scalar | None:
  """Reads the integer at tuple indices `path` of an instruction, None if unknown."""
  one = computation.by_name[name]
  of = lambda operand, path: _scalar(parsed, computation, operand, path)
  if one.opcode == "constant":
    whole = re.fullmatch(r"-?\d+", one.literal)
    return Scalar(int(one.literal)) if whole else None
  if one.opcode == "parameter":
    return Scalar(0, (int(one.literal), *path))
  if one.opcode == "get-tuple-element":
    index = int(one.attribute(r"index=(\d+)"))
    return of(one.operands[0], (index, *path))
  if one.opcode == "tuple" and path:
    return of(one.operands[path[0]], path[1:])
  if one.opcode in ALIASES:
    return of(one.operands[0], path)
  if one.opcode == "add":
    return _sum(*(of(operand, ()) for operand in one.operands))
  if one.opcode in CALLS:
    inner = _called(parsed, one)
    found = _scalar(parsed, inner, inner.root.name, path)
    return _outward(parsed, computation, one, found)
  return None


def _sum(left: Scalar | None, right: Scalar | None) -> Scalar | None:
  """Of two scalars, of which one at most is given from outside."""
  if left is None or right is None:
    return None
  if left.origin is not None and right.origin is not None:
    return None
  origin = right.origin if left.origin is None else left.origin
  return Scalar(left.added + right.added, origin)
