"""Starting from the parameters of another run, as far as they fit.

Optimizer state, step and data position begin anew. Every array that has the same path
and shape is taken; the others keep their fresh values and are listed. The other run may
be training meanwhile: its directory is only read.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from lavit_jax.training import checkpoint, checkpoint_files

SHOWN = 8  # names listed of each kind


@dataclasses.dataclass(frozen=True)
class Matches:
  """How the parameters of a checkpoint meet ours, as paths like "llama/head/kernel".

  Attributes:
    taken: same path and shape.
    missing: ours, not in the checkpoint.
    reshaped: in both, with different shapes.
    unused: in the checkpoint only.
  """

  taken: list[str]
  missing: list[str]
  reshaped: list[str]
  unused: list[str]

  def text(self, source: Any) -> str:
    """A few lines for the user."""
    lines = [f"parameters from {source}: {len(self.taken)} arrays taken"]
    for name, verb in (
      ("missing", "are not in it and start fresh"),
      ("reshaped", "have another shape in it and start fresh"),
      ("unused", "in it are not used"),
    ):
      found = getattr(self, name)
      if found:
        more = f" and {len(found) - SHOWN} more" if found[SHOWN:] else ""
        lines.append(f"  {len(found)} {verb}: {', '.join(found[:SHOWN])}{more}")
    return "\n".join(lines)


def _flat(tree: Any, is_leaf=None) -> dict[str, Any]:
  """Leaves by path."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)[0]
  }


def match(ours: dict[str, tuple], theirs: dict[str, tuple]) -> Matches:
  """Compares shapes by path."""
  both = sorted(set(ours) & set(theirs))
  return Matches(
    taken=[name for name in both if ours[name] == theirs[name]],
    missing=sorted(set(ours) - set(theirs)),
    reshaped=[name for name in both if ours[name] != theirs[name]],
    unused=sorted(set(theirs) - set(ours)),
  )


def load(source: str, params: Any) -> tuple[Any, Matches]:
  """Reads the parameters that fit from the newest whole checkpoint of a run.

  Args:
    source: run directory.
    params: our parameters, placed on our mesh; those not found stay as they are.

  Returns:
    The parameters, sharded as before, and what was found.

  Raises:
    ValueError: there is no whole checkpoint, nothing in it fits, or it was deleted
      while it was read.
  """
  step = _newest(source)
  with _kept(step):
    return _fitting(step / checkpoint.STATE, params)


def _newest(source: str) -> epath.Path:
  """The newest whole checkpoint of a run."""
  folder = epath.Path(source).resolve() / checkpoint.FOLDER
  step, damaged = checkpoint.newest_whole(folder)
  if step is None and damaged:
    raise ValueError(
      f"{checkpoint.none_whole(folder, damaged)}; copy them again, or give another run"
      " as config.parameters_from"
    )
  if step is None:
    raise ValueError(
      "expected a run directory with checkpoints as config.parameters_from, got none"
      f" in {source}; give the --workdir of that run"
    )
  return folder / str(step)


@contextlib.contextmanager
def _kept(step: epath.Path) -> Iterator[None]:
  """Fails in one sentence when the other run deletes the checkpoint meanwhile."""
  try:
    yield
  except Exception:
    if checkpoint_files.is_complete(step):
      raise
  if not checkpoint_files.is_complete(step):
    raise ValueError(
      f"expected {step} to stay while its parameters are read, but the run that writes"
      " there deleted it; give the same command again to take a newer one, or raise"
      " keep.last of that run"
    )


def _fitting(folder: epath.Path, params: Any) -> tuple[Any, Matches]:
  """Reads what fits of a stored state."""
  theirs = {name: tuple(leaf.shape) for name, leaf in _stored(folder).items()}
  ours = _flat(params)
  matches = match({name: leaf.shape for name, leaf in ours.items()}, theirs)
  if not matches.taken:
    raise ValueError(
      f"expected parameters that fit in {folder}, got {sorted(theirs)[:SHOWN]} for"
      f" {sorted(ours)[:SHOWN]}; give a run of the same stage"
    )
  found = _read(folder, {name: ours[name] for name in matches.taken})
  leaves = [found.get(name, leaf) for name, leaf in ours.items()]
  return jax.tree.unflatten(jax.tree.structure(params), leaves), matches


def _stored(folder: epath.Path) -> dict[str, Any]:
  """Shapes of the parameters in a checkpoint."""
  with ocp.PyTreeCheckpointer() as reader:
    tree = reader.metadata(folder).item_metadata.tree["params"]
  return _flat(tree, is_leaf=lambda node: hasattr(node, "shape"))


def _read(folder: epath.Path, wanted: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Reads some parameters onto the shardings of the arrays they replace."""
  tree: dict[str, Any] = {}
  for name, leaf in wanted.items():
    *above, last = name.split("/")
    node = tree
    for key in above:
      node = node.setdefault(key, {})
    node[last] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
  target = {"params": tree}
  arguments = ocp.args.PyTreeRestore(
    item=target,
    restore_args=ocp.checkpoint_utils.construct_restore_args(target),
    partial_restore=True,
  )
  with ocp.PyTreeCheckpointer() as reader:
    return _flat(reader.restore(folder, args=arguments)["params"])
