"""One reported figure: a value, its chance level and how many cases it rests on."""

import math
from typing import Any

import numpy as np


def figure(
  value: float,
  chance: float | None,
  n: int,
  of: str,
  chance_is: str,
  **extra: Any,
) -> dict[str, Any]:
  """Makes a figure as stored in report.json.

  Args:
    value: the measurement; not a number where there were no cases.
    chance: what no skill at all would reach.
    n: cases.
    of: what one case is.
    chance_is: how the chance level came about.
    **extra: further numbers or tables that belong to the figure.

  Returns:
    {"value", "chance", "n", "of", "chance_is", ...}; undefined numbers are None.
  """
  base = {"value": number(value), "chance": number(chance), "n": int(n)}
  return base | {"of": of, "chance_is": chance_is} | extra


def number(value: float | None) -> float | None:
  """A plain float, or None where it is undefined: JSON has no NaN."""
  if value is None or not math.isfinite(value):
    return None
  return float(value)


def mean(cases: np.ndarray | list) -> float:
  """The mean of cases, not a number without any."""
  return float(np.mean(cases)) if len(cases) else math.nan
