"""Checkpoints of a run: written in the background, checked, restored onto any mesh.

A checkpoint holds the state (only what trains, plus running statistics), the data
position counted in rows, the config, the version of the code and the figures of its
step. It appears whole, with a checksum for each of its files, or not at all. When the
newest one is damaged, the one before it is taken, with a warning.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from lavit_jax.training import checkpoint_files as files
from lavit_jax.training.checkpoint_files import Keep

FOLDER, STATE, META = "checkpoints", "state", "meta"
WRITE_TIMEOUT = 3600  # seconds that hosts wait for each other while writing


class Checkpoints:
  """The checkpoints of one run directory.

  Every host calls every method; host 0 alone deletes and writes checksums.
  """

  def __init__(self, workdir: str, keep: Keep):
    """Opens `workdir`/checkpoints, which need not exist."""
    self.folder = epath.Path(workdir).resolve() / FOLDER
    self._keep, self._writing, self._figures = keep, None, {}
    self._checkpointer = ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(),
      async_options=ocp.options.AsyncOptions(
        timeout_secs=WRITE_TIMEOUT,
        post_finalization_callback=self._seal,
        # Otherwise a folder that cannot be made is noticed after ten minutes.
        create_directories_asynchronously=False,
      ),
    )

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, oldest first."""
    return files.steps(self.folder)

  # Writing

  def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
    """Copies the state from the devices and starts writing it in the background.

    Args:
      step: name of the checkpoint; one of that name is replaced.
      state: tree of arrays.
      meta: JSON-compatible; `figures`, if there, is what `Keep.metric` looks up.

    Raises:
      ValueError: this checkpoint, or the one before it, could not be written.
    """
    self.wait()
    self._writing = step
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(dict(meta))
    )
    try:
      self._checkpointer.save(self.folder / str(step), args=args, force=True)
    except (OSError, ValueError, RuntimeError) as error:
      raise self._lost(error) from error

  def check(self) -> None:
    """Raises ValueError if writing in the background has failed."""
    try:
      self._checkpointer.check_for_errors()
    except Exception as error:
      raise self._lost(error) from error

  def wait(self) -> None:
    """Waits for what is being written; raises ValueError if that failed."""
    try:
      self._checkpointer.wait_until_finished()
    except Exception as error:
      raise self._lost(error) from error

  def note(self, step: int, figures: Mapping[str, float]) -> None:
    """Adds figures that became known after the checkpoint of a step was written."""
    if not self._keep.best:
      return
    self.wait()  # what runs in the background prunes by the same figures
    self._figures.pop(step, None)
    if jax.process_index() == 0 and step in self.steps():
      known = files.late_figures(self.folder) | {str(step): dict(figures)}
      files.write_late_figures(self.folder, known)

  def close(self) -> None:
    """Waits for what is being written and deletes what need not be kept."""
    try:
      self.wait()
      if jax.process_index() == 0:
        self._prune()
    finally:
      self._checkpointer.close()

  def _seal(self) -> None:
    """Runs on host 0 in the background, before the folder takes its final name."""
    files.write_checksums(files.writing(self.folder, self._writing))
    self._prune()

  def _prune(self) -> None:
    """Deletes complete checkpoints that the policy does not keep, and remains."""
    steps = self.steps()
    figures = {step: self._figure(step) for step in steps} if self._keep.best else {}
    figures = {step: value for step, value in figures.items() if value is not None}
    for step in set(steps) - files.kept(steps, figures, self._keep):
      files.remove(self.folder / str(step))
    for path in files.unfinished(self.folder):
      if path.name.isdigit() and steps and int(path.name) < steps[-1]:
        files.remove(path)

  def _figure(self, step: int) -> float | None:
    if step not in self._figures:
      figures = self.meta(step).get("figures", {})
      figures |= files.late_figures(self.folder).get(str(step), {})
      self._figures[step] = figures.get(self._keep.metric)
    return self._figures[step]

  def _lost(self, error: BaseException) -> ValueError:
    steps = [step for step in self.steps() if step != self._writing]
    newest = (
      f"the newest whole one is of step {steps[-1]}" if steps else "there is none"
    )
    return ValueError(
      f"expected to write the checkpoint of step {self._writing} in {self.folder}, got"
      f" {_reason(error)}; {newest}: make room or bring the folder back, then give the"
      " same command again"
    )

  # Reading

  def newest(self) -> int | None:
    """Newest checkpoint whose files all have their checksums; None without any.

    Raises:
      ValueError: there are checkpoints, but none is whole.
    """
    self._clear()
    step, damaged = newest_whole(self.folder)
    if step is None and damaged:
      raise ValueError(
        f"{none_whole(self.folder, damaged)}; copy them again, or delete the folder to"
        " start anew"
      )
    if jax.process_index() == 0:
      for one in damaged:  # they count no more
        files.set_aside(self.folder / str(one))
    return step

  def problems(self, step: int) -> str:
    """What is wrong with the checkpoint of a step, "" for a whole one."""
    return _problems(self.folder / str(step))

  def go_back(self, step: int) -> None:
    """Lets the checkpoints after a step count no more; host 0 alone calls it."""
    for later in self.steps():
      if later > step:
        files.set_aside(self.folder / str(later))
    known = files.late_figures(self.folder)
    left = {name: known[name] for name in known if int(name) <= step}
    if left != known:
      files.write_late_figures(self.folder, left)

  def _clear(self) -> None:
    """Removes what a killed run was writing; says so where a name looks complete."""
    if jax.process_index() == 0:
      for path in files.unfinished(self.folder):
        if path.name.isdigit():
          logging.error("UNFINISHED CHECKPOINT passed over: %s", path)
        else:
          path.rmtree(missing_ok=True)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("checkpoints cleared")

  def meta(self, step: int) -> dict[str, Any]:
    """Reads all but the state."""
    path = self.folder / str(step) / META / "metadata"
    try:
      return json.loads(path.read_text())
    except (OSError, ValueError) as error:
      raise ValueError(
        f"expected the data position and config in {path}, got {_reason(error)}; delete"
        f" {self.folder / str(step)} to resume from an earlier step"
      ) from error

  def restore(self, step: int, abstract: Any, shardings: Any) -> Any:
    """Reads the state onto our shardings, whatever mesh and hosts wrote it."""
    target = jax.tree.map(
      lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
      abstract,
      shardings,
    )
    args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
    try:
      return self._checkpointer.restore(self.folder / str(step), args=args)[STATE]
    except (OSError, ValueError, KeyError) as error:
      raise ValueError(
        f"expected the state of this code and config in {self.folder / str(step)}, got"
        f" one that does not fit ({_reason(error)}); go on with the code that wrote it,"
        " or choose a new --workdir"
      ) from error


def newest_whole(folder: epath.Path) -> tuple[int | None, dict[int, str]]:
  """Finds the newest checkpoint whose files all have their checksums; only reads.

  Every host calls it and gets the same answer, also of a run that is being written:
  the first host says which checkpoints there are.

  Args:
    folder: the checkpoints of a run.

  Returns:
    Its step, None without any, and what is wrong with each newer one.
  """
  damaged = {}
  for step in _agreed_steps(folder):
    problems = _problems(folder / str(step))
    if not problems:
      break
    damaged[step] = problems
  else:
    step = None
  if jax.process_index() == 0:
    for one, problems in damaged.items():
      logging.error("DAMAGED CHECKPOINT passed over, step %d: %s", one, problems)
  return step, damaged


def none_whole(folder: epath.Path, damaged: Mapping[int, str]) -> str:
  """Says that a run has damaged checkpoints only."""
  told = "; ".join(f"step {step}: {problem}" for step, problem in damaged.items())
  return f"expected a whole checkpoint in {folder}, got damaged ones only ({told})"


def _agreed_steps(folder: epath.Path) -> list[int]:
  """Steps of the complete checkpoints that the first host sees, newest first."""
  found = files.steps(folder)[::-1]
  if jax.process_count() == 1:
    return found
  length = int(multihost_utils.broadcast_one_to_all(np.int32(len(found))))
  if not length:
    return []
  sent = np.resize(np.array(found, np.int32), length)
  return multihost_utils.broadcast_one_to_all(sent).tolist()


def _problems(folder: epath.Path) -> str:
  """What any host finds wrong with a checkpoint, "" for a whole one."""
  count, index = jax.process_count(), jax.process_index()
  found = files.damage(folder, index, count)
  text = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if found[3:] else "")
  if count > 1:
    wrong = multihost_utils.process_allgather(np.array(bool(found)))
    hosts = np.flatnonzero(wrong).tolist()
    text = text or (f"hosts {hosts} found damaged files" if hosts else "")
  return text


def _reason(error: BaseException) -> str:
  """First line of what went wrong, short."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0][:240]


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
