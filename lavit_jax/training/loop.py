"""The training loop: one step per batch, with records, evaluation and checkpoints."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from tqdm import tqdm

from lavit_jax.training import (
  base,
  checkpoint,
  code_version,
  console,
  guard,
  hosts,
  metrics,
  optimizer,
  profile_window,
  stop,
  timing,
  utilization,
  watchdog,
)


@dataclasses.dataclass(frozen=True)
class Parts:
  """What the loop works with.

  Attributes:
    config: stage config.
    stage: the assembled stage.
    saved: checkpoints of the run.
    writer: its records.
    look: (state, step) -> figures on held-out data, which it also records.
    request: tells when to stop.
    clock: where the time goes.
    dog: notices when a step hangs.
    window: steps to profile.
  """

  config: ml_collections.ConfigDict
  stage: base.Stage
  saved: checkpoint.Checkpoints
  writer: metrics.Writer
  look: Callable[[Any, int], dict[str, float]]
  request: stop.StopRequest
  clock: timing.Timing
  dog: watchdog.Watchdog
  window: profile_window.ProfileWindow


def train(parts: Parts, state: Any, position: int, skipped: int) -> Any:
  """Trains from a state and data position to the last step.

  Args:
    parts: what the loop works with.
    state: where to begin.
    position: rows already used.
    skipped: steps skipped so far, their gradients not being finite.

  Returns:
    The last state.

  Raises:
    SystemExit: status 0, when the run was told to stop; its checkpoint is being
      written.
  """
  config, stage = parts.config, parts.stage
  first, counted, flops = int(state.step), None, 0.0
  key = jax.random.key(config.seed)
  eyes = guard.Guard(config.skip_limit, stage.records, parts.writer, skipped)
  said = console.Minutes(first, config.num_steps)
  with (
    contextlib.closing(eyes),
    contextlib.closing(stage.batches(position)) as batches,
    contextlib.closing(parts.window) as window,
    _bar(config, first) as bar,
  ):
    parts.clock.begin()
    for number in range(first, config.num_steps):
      parts.saved.check()
      begun = position
      parts.dog.enter("batch", number)
      with parts.clock.part("data"):
        batch, position = next(batches)
      parts.dog.enter("step", number)
      window.before(number)
      with jax.set_mesh(stage.mesh):
        state = stage.before_step(state, number)
        step = stage.step(number)
        arguments = (state, stage.frozen, batch, jax.random.fold_in(key, number))
        if step is not counted:  # phases of a stage have different ones
          counted, flops = step, utilization.step_flops(step, *arguments)
        state, values = step(*arguments)
      window.after(number, values)
      parts.clock.step()
      done = number + 1
      if number == first:
        _await_first(parts, values)
      eyes.after(done, begun, values)
      figures = {}
      if done % config.log_every == 0 or done == config.num_steps:
        parts.dog.enter("records", done)
        values = {**values, **batches.figures(), "skipped": eyes.skipped}
        values |= optimizer.rates_taken(config, state.opt_state)
        figures = _record(parts, done, values, flops)
        bar.set_postfix(loss=f"{figures['train/loss']:.3f}", refresh=False)
      bar.update()
      if hosts.is_primary():
        said.after(done, eyes.loss, batches.replaced)
      figures |= _look_if_due(parts, state, done)
      _save_if_due(parts, state, done, position, figures, eyes.skipped)
    eyes.finish()
  return state


def _bar(config, first: int) -> tqdm:
  return tqdm(
    total=config.num_steps,
    initial=first,
    desc=config.stage,
    disable=not hosts.is_primary() or not sys.stderr.isatty(),
  )


def _await_first(parts: Parts, values: Any) -> None:
  """The first step compiles; rates begin after it."""
  jax.block_until_ready(values)
  _, parts.clock.seconds["compile"] = parts.clock.stretch()
  parts.clock.seconds["compile"] -= parts.clock.seconds["data"]
  parts.clock.begin()


def _record(parts: Parts, done: int, values: dict, flops: float) -> dict:
  """Writes the metrics of a step; returns the loss by its full name."""
  values = jax.block_until_ready(values) | {"goodput": parts.clock.goodput()}
  steps, seconds = parts.clock.stretch()
  if steps:
    rate = steps / max(seconds, 1e-9)
    values["step_seconds"] = 1 / rate
    if flops:
      values["mfu"] = utilization.mfu(flops, 1 / rate)
    rate *= parts.config.batch_size
    values["examples_per_second"] = rate
    for name, count in parts.stage.contents.items():
      values[f"{name}_per_second"] = rate * count
  for name in ("compile", "checkpoint", "evaluation"):
    values[f"{name}_seconds"] = parts.clock.seconds[name]
  record = parts.writer.write(done, "train", values)
  parts.clock.begin()
  return {"train/loss": record["loss"]}


def _look_if_due(parts: Parts, state: Any, done: int) -> dict[str, float]:
  """Evaluates between the first and the last step; the last one is looked at apart."""
  every = parts.config.eval_every
  if not every or done % every or done == parts.config.num_steps:
    return {}
  parts.dog.enter("evaluation", done)
  with parts.clock.part("evaluation"):
    return evaluated(parts, state, done)


def evaluated(parts: Parts, state: Any, done: int) -> dict[str, float]:
  """Evaluates a state; its figures by full name.

  Raises:
    ValueError: the figure that checkpoints are kept by is not among them.
  """
  found = parts.look(state, done)
  found = {f"eval/{name}": value for name, value in found.items()}
  wanted = parts.config.keep.metric
  if parts.config.keep.best and wanted.startswith("eval/") and wanted not in found:
    raise ValueError(
      f"expected one of {sorted(found)} as config.keep.metric, got {wanted!r}; name one"
      " of these"
    )
  return found


def _save_if_due(
  parts: Parts, state, done: int, position: int, figures: dict, skipped: int
) -> None:
  """Writes the checkpoints of the schedule, and the last one before stopping."""
  every, last = parts.config.checkpoint_every, done == parts.config.num_steps
  stopping = parts.request.reached(done)
  if stopping or (every and (done % every == 0 or last)):
    meta = {
      "config": json.loads(parts.config.to_json()),
      "frozen": parts.stage.frozen_checksums,
      "data": parts.stage.data_names,
      "code": code_version.code_version(),
      "position": position,
      "skipped": skipped,
      "figures": figures,
    }
    parts.dog.enter("checkpoint", done)
    with parts.clock.part("checkpoint"):
      parts.saved.save(done, state, meta)
  if stopping and not last:
    if hosts.is_primary():
      print(f"told to stop: saved step {done}; the same command goes on from there")
    sys.exit(0)
