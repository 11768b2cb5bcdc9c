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


PUBLISHED = "published"  # where a part keeps the config.json that it was read from


def own_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  """A part's configuration without the published one: the fields of our module."""
  return {name: value for name, value in config.items() if name != PUBLISHED}


def count(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
  """A whole number of at least 1.

  Raises:
    ValueError: it is missing without a default, null, or something else.
  """
  value = config.get(key, default)
  if not isinstance(value, int) or isinstance(value, bool) or value < 1:
    raise ValueError(
      f"expected a whole number for {key} in config.json, got {value!r}; use a model of"
      " the Stable Diffusion 1.5 or SDXL type"
    )
  return value


def check_groups(channels: Any, groups: int) -> None:
  """Refuses groups of a norm that do not divide the channels of every level."""
  if any(width % groups for width in channels):
    raise ValueError(
      f"expected block_out_channels that are multiples of norm_num_groups {groups}, got"
      f" {list(channels)}; the config.json does not belong to this model"
    )


def per_level(value: Any, num_levels: int) -> tuple:
  """One value per level from a number or a list."""
  values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * num_levels
  if len(values) != num_levels:
    raise ValueError(
      f"expected one number for each of {num_levels} levels, got {list(values)}; the"
      " config.json does not belong to this model"
    )
  wrong = [v for v in values if not isinstance(v, int) or isinstance(v, bool) or v < 1]
  if wrong:
    raise ValueError(
      f"expected a whole number for each of {num_levels} levels, got {list(values)};"
      " use a model of the Stable Diffusion 1.5 or SDXL type"
    )
  return values


def even_levels(value: Any) -> Any:
  """Numbers per level of a list that may state them for each layer of a level.

  Raises:
    ValueError: the layers of one level differ.
  """
  if not isinstance(value, (list, tuple)):
    return value
  return [
    equal_levels(level, "transformer_layers_per_block") if level else level
    for level in value
  ]


def equal_levels(value: Any, key: str) -> Any:
  """The one value of a number or of a list of equal numbers."""
  values = set(map(repr, value)) if isinstance(value, (list, tuple)) else {repr(value)}
  if len(values) != 1:
    raise ValueError(
      f"expected the same {key} on every level, got {value}; use a model of the Stable"
      " Diffusion 1.5 or SDXL type"
    )
  return value[0] if isinstance(value, (list, tuple)) else value
