"""Reads the config.json files of published models, refusing what is not built here."""

from collections.abc import Mapping
from typing import Any


def refuse_unknown(
  config: Mapping[str, Any], known: Mapping[str, tuple], read: set[str], kind: str
) -> None:
  """Checks the keys that are not read as sizes.

  Args:
    config: the published config.
    known: the values that this program can act on, by key.
    read: keys that the caller reads or may ignore.
    kind: e.g. "U-Net", for the message.

  Raises:
    ValueError: names every key whose value asks for something else.
  """
  wrong = {}
  for key, value in config.items():
    if key.startswith("_") or key in read:
      continue
    # What a later version of the library added is off when it is null or false.
    if value not in known.get(key, (None, False)):
      wrong[key] = value
  if wrong:
    raise ValueError(
      f"this {kind} config asks for what is not built here: {wrong}; expected"
      f" { ({key: known.get(key, (None,))[0] for key in wrong}) }, use a {kind} of the"
      " Stable Diffusion 1.5 or SDXL type"
    )


def per_level(value: Any, num_levels: int) -> tuple:
  """One value per level from a number or a list."""
  values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * num_levels
  if len(values) != num_levels:
    raise ValueError(
      f"expected one number for each of {num_levels} levels, got {list(values)}; the"
      " config.json does not belong to this model"
    )
  return values


def equal_levels(value: Any, key: str) -> Any:
  """The one value of a number or of a list of equal numbers."""
  values = set(value) if isinstance(value, (list, tuple)) else {value}
  if len(values) != 1:
    raise ValueError(
      f"expected the same {key} on every level, got {value}; use a model of the Stable"
      " Diffusion 1.5 or SDXL type"
    )
  return values.pop()
