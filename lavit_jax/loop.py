"""The training loop: one step per batch, with records, evaluation and checkpoints."""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from tqdm import tqdm

from lavit_jax import checkpoint, code_version, metrics, stop
from lavit_jax.stages import base


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
  """

  config: ml_collections.ConfigDict
  stage: base.Stage
  saved: checkpoint.Checkpoints
  writer: metrics.Writer
  look: Callable[[Any, int], dict[str, float]]
  request: stop.StopRequest


def train(parts: Parts, state: Any, position: int) -> tuple[Any, dict[str, float]]:
  """Trains from a state and data position to the last step.

  Args:
    parts: what the loop works with.
    state: where to begin.
    position: rows already used.

  Returns:
    The last state, and seconds spent: compile (first step), data (waiting).

  Raises:
    SystemExit: status 0, when the run was told to stop; its checkpoint is being
      written.
  """
  config, stage = parts.config, parts.stage
  first = int(state.step)
  batches = stage.batches(position)
  key = jax.random.key(config.seed)
  seconds = {"compile": 0.0, "data": 0.0}
  bar = tqdm(
    total=config.num_steps,
    initial=first,
    desc=config.stage,
    disable=jax.process_index() != 0 or not sys.stderr.isatty(),
  )
  clock, since = time.monotonic(), 0
  for number in range(first, config.num_steps):
    parts.saved.check()
    waited = time.monotonic()
    batch, position = next(batches)
    seconds["data"] += time.monotonic() - waited
    with jax.set_mesh(stage.mesh):
      state = stage.before_step(state, number)
      step = stage.step(number)
      state, values = step(state, stage.frozen, batch, jax.random.fold_in(key, number))
    since += 1
    done, figures = number + 1, {}
    if number == first:
      jax.block_until_ready(values)
      seconds["compile"] = time.monotonic() - clock
      clock, since = time.monotonic(), 0
    if done % config.log_every == 0 or done == config.num_steps:
      values = jax.block_until_ready(values)
      rate = since * config.batch_size / max(time.monotonic() - clock, 1e-9)
      values = dict(values) | batches.figures()
      if since:
        values |= {"examples_per_second": rate}
      record = parts.writer.write(done, "train", values)
      figures["train/loss"] = record["loss"]
      bar.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
      clock, since = time.monotonic(), 0
    bar.update()
    if config.eval_every and done % config.eval_every == 0 and done < config.num_steps:
      found = parts.look(state, done)
      figures |= {f"eval/{name}": value for name, value in found.items()}
      clock, since = time.monotonic(), 0
    _save_if_due(parts, state, done, position, figures)
  bar.close()
  batches.close()
  return state, seconds


def _save_if_due(parts: Parts, state, done: int, position: int, figures: dict) -> None:
  """Writes the checkpoints of the schedule, and the last one before stopping."""
  config, last = parts.config, done == parts.config.num_steps
  every = config.checkpoint_every
  stopping = parts.request.reached(done)
  if stopping or (every and (done % every == 0 or last)):
    meta = {
      "config": json.loads(config.to_json()),
      "frozen": parts.stage.frozen_names,
      "code": code_version.code_version(),
      "position": position,
      "figures": figures,
    }
    parts.saved.save(done, state, meta)
  if stopping and not last:
    if jax.process_index() == 0:
      print(f"told to stop: saved step {done}; the same command goes on from there")
    sys.exit(0)
