"""Checkpoints of a run: state, data position and config, restored onto any mesh."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

STATE, META = "state", "meta"


class Checkpoints:
  """The checkpoints of one run directory, written asynchronously.

  A checkpoint holds the state (only what trains, plus running statistics), the data
  position counted in rows, and the config. It is complete once its name has no
  temporary suffix, so a half-written one is never read.
  """

  def __init__(self, workdir: str, keep: int = 2):
    self._folder = epath.Path(workdir).resolve() / "checkpoints"
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(max_to_keep=keep),
    )

  def latest(self) -> int | None:
    """Newest complete step, None when there is none."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
    """Starts saving `state` and the JSON-compatible `meta` under `step`."""
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(dict(meta))
      ),
    )

  def meta(self, step: int) -> dict[str, Any]:
    """Reads only the data position and config."""
    return self._read(step, ocp.args.Composite(meta=ocp.args.JsonRestore()))[META]

  def restore(self, step: int, abstract: Any, shardings: Any) -> Any:
    """Reads the state onto our shardings, whatever mesh wrote it."""
    target = jax.tree.map(
      lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
      abstract,
      shardings,
    )
    args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
    return self._read(step, args)[STATE]

  def _read(self, step: int, args: Any) -> Any:
    try:
      return self._manager.restore(step, args=args)
    except (OSError, ValueError, KeyError) as error:
      reason = str(error).splitlines()[0]
      raise ValueError(
        f"expected a whole checkpoint in {self._folder / str(step)}, got one that"
        f" cannot be read ({reason}); delete that folder to resume from an earlier step"
      ) from error

  def close(self) -> None:
    """Waits for what is being written."""
    self._manager.wait_until_finished()
    self._manager.close()


def differing_fields(
  saved: Mapping[str, Any], current: Mapping[str, Any], prefix: str = ""
) -> list[str]:
  """Names the fields in which two configs differ, as 'model.vit.num_layers: 4 -> 6'."""
  saved = json.loads(json.dumps(saved))
  current = json.loads(json.dumps(current))
  found = []
  for name in sorted(set(saved) | set(current)):
    old, new = saved.get(name), current.get(name)
    if isinstance(old, dict) and isinstance(new, dict):
      found += differing_fields(old, new, f"{prefix}{name}.")
    elif old != new:
      found.append(f"{prefix}{name}: {old} -> {new}")
  return found
