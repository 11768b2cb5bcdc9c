"""Which records of an input are wanted, and how their pictures are stored.

    width height size aspect     of the picture: pixels, shorter edge, longer : shorter
    any other name               a field or column of the data, or meta.language in it

Compared with >= <= > < = !=; `language=en|de` takes either. A record without the field
is left out.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from typing import Any

from lavit_jax.data import bad, images

RULE = re.compile(r"\s*([^<>=!]+?)\s*(>=|<=|!=|==|=|>|<)\s*(.+?)\s*")
MEASURED = ("width", "height", "size", "aspect")


@dataclasses.dataclass(frozen=True)
class Choice:
  """What is taken of an input.

  Attributes:
    filters: rules such as "similarity>=0.28"; all must hold.
    max_image_size: longest edge stored, 0 for any.
    holdout: share of the pictures, by their content, that is held out.
    held: takes the held-out ones instead of all others.
  """

  filters: tuple[str, ...] = ()
  max_image_size: int = 0
  holdout: float = 0.0
  held: bool = False

  def __post_init__(self):
    for rule in self.filters:
      if not RULE.fullmatch(rule):
        raise ValueError(
          f"expected a filter such as similarity>=0.28 or language=en, got {rule!r}"
        )
    if self.max_image_size and self.max_image_size < images.MIN_EDGE:
      raise ValueError(
        f"expected a largest edge of {images.MIN_EDGE} pixels or more, got"
        f" {self.max_image_size}"
      )
    if not 0 <= self.holdout < 1:
      raise ValueError(
        f"expected a share to hold out between 0 and 1, got {self.holdout}"
      )

  @property
  def columns(self) -> tuple[str, ...]:
    """Fields of the data that the filters ask for."""
    names = [RULE.fullmatch(rule)[1] for rule in self.filters]
    return tuple(name for name in names if name not in MEASURED)


def check_side(record: Mapping, choice: Choice) -> None:
  """Leaves out what is on the other side of the holdout.

  Equal pictures are on one side, whatever their captions and wherever they stand.
  """
  if not choice.holdout:
    return
  data = record["image"] or record["texts"][0]["turns"][0][1].encode()
  place = int.from_bytes(hashlib.sha256(data).digest()[:8]) / 2**64
  if (place < choice.holdout) != choice.held:
    raise bad.LeftOut("on the other side of the holdout")


def check_filters(size: tuple[int, int], row: Mapping, choice: Choice) -> None:
  """Leaves out what a filter does not take.

  Args:
    size: width and height of the picture, zeros without one.
    row: the fields of the data.
    choice: whose filters.
  """
  for rule in choice.filters:
    name, sign, wanted = RULE.fullmatch(rule).groups()
    value = _measure(name, size) if name in MEASURED else field(row, name)
    if name in MEASURED and not min(size):
      continue  # a text has no size
    if value is None:
      raise bad.LeftOut(f"left out by {rule}", f"no field {name}")
    if not holds(value, sign, wanted):
      raise bad.LeftOut(f"left out by {rule}", f"{name} is {str(value)[:50]}")


def _measure(name: str, size: tuple[int, int]) -> float:
  width, height = size
  shorter, longer = min(size), max(size)
  aspect = longer / max(shorter, 1)
  measures = {"width": width, "height": height, "size": shorter, "aspect": aspect}
  return measures[name]


def field(row: Mapping, name: str) -> Any:
  """A field of a row, by its name in any case, or inside others by dots; or None."""
  if name in row:
    return row[name]
  same = [key for key in row if str(key).lower() == name.lower()]
  if same:
    return row[same[0]]
  head, dot, tail = name.partition(".")
  inner = row.get(head) if dot else None
  return field(inner, tail) if isinstance(inner, Mapping) else None


def holds(value: Any, sign: str, wanted: str) -> bool:
  """Compares as numbers where both are numbers, else as text."""
  value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
  if sign in ("=", "=="):
    return any(_equal(value, one.strip()) for one in wanted.split("|"))
  if sign == "!=":
    return not any(_equal(value, one.strip()) for one in wanted.split("|"))
  try:
    left, right = float(value), float(wanted)
  except (TypeError, ValueError):
    left, right = str(value), wanted
  if sign in (">", ">="):
    return left > right or (sign == ">=" and left == right)
  return left < right or (sign == "<=" and left == right)


def _equal(value: Any, wanted: str) -> bool:
  try:
    if not isinstance(value, bool):
      return float(value) == float(wanted)
  except (TypeError, ValueError):
    pass
  return str(value).lower() == wanted.lower()
