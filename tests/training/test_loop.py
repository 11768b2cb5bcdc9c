"""The loop around a step, with a stage of three numbers."""

import contextlib
import json
import os
import signal
import sys
import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from configs import common
from lavit_jax.core import sharding
from lavit_jax.layers import linear
from lavit_jax.training import (
  base,
  checkpoint,
  console,
  loop,
  metrics,
  optimizer,
  profile_window,
  stop,
  timing,
  utilization,
  watchdog,
)

ROWS = 4


class Batches:
  """Rows p, p + 1, ...: the row 4 * BAD and later ones may be not finite."""

  def __init__(self, position: int, bad=()):
    self.position, self.bad = position, bad

  def __next__(self):
    rows = np.arange(self.position, self.position + ROWS, dtype=np.float32)
    if self.position // ROWS in self.bad:
      rows[1] = np.nan
    self.position += ROWS
    return {"x": rows}, self.position

  replaced = 0

  def figures(self):
    return {"data_wait": 0.0, "replaced": 0.0}

  def close(self):
    pass


def make_stage(bad=()) -> base.Stage:
  mesh = sharding.make_mesh({"fsdp": 8})
  tx = optax.adam(0.1)
  abstract, shardings, initial = base.born_sharded(_init, tx, mesh)

  def step(state, frozen, batch, key):
    loss = lambda params: jnp.mean((params["a"].sum() - batch["x"]) ** 2)
    value, grads = jax.value_and_grad(loss)(state.params)
    state, norms = base.apply_gradients(state, grads, tx)
    return state, {"loss": value} | norms

  step = base.jitted(step, shardings)
  return base.Stage(
    mesh=mesh,
    abstract=abstract,
    shardings=shardings,
    initial=initial,
    frozen=None,
    frozen_checksums={},
    step=lambda number: step,
    batches=lambda position: Batches(position, bad),
    before_step=lambda state, number: state,
    evaluate=lambda state: ({}, {}),
    finish=lambda state, folder: None,
    records=lambda position: [f"r{p}" for p in range(position, position + ROWS)],
    contents={"tokens": 10},
  )


def _init(key):
  return {"params": {"a": linear.Named(jax.random.normal(key, (3,)), (None,))}}


def config(**changes) -> ml_collections.ConfigDict:
  made = common.base("toy", num_steps=12, batch_size=ROWS)
  made.optimizer = optimizer.default_config(learning_rate=0.1, groups=dict(a=0.5))
  made.update(dict(log_every=2, eval_every=4, checkpoint_every=5) | changes)
  return made


def run(folder, stage, settings, look=lambda state, step: {"loss": 2.0}):
  """Trains or resumes as `stage_run.run` does."""
  clock, saved = timing.Timing(0.0), checkpoint.Checkpoints(str(folder), KEEP)
  with (
    contextlib.closing(saved),
    contextlib.closing(metrics.Writer(str(folder), settings)) as writer,
    stop.StopRequest() as request,
  ):
    newest, state, meta = saved.newest(), None, {"position": 0, "skipped": 0}
    if newest is None:
      state = stage.initial(0)
    else:
      meta = saved.meta(newest)
      state = saved.restore(newest, stage.abstract, stage.shardings)
    window = profile_window.ProfileWindow("", str(folder))
    dog = watchdog.Watchdog(0)
    parts = loop.Parts(
      settings, stage, saved, writer, look, request, clock, dog, window
    )
    return loop.train(parts, state, meta["position"], meta["skipped"])


KEEP = checkpoint.Keep(last=9)


def records(folder) -> list[dict]:
  return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def test_records_checkpoints_and_their_figures(tmp_path):
  looked = []
  look = lambda state, step: looked.append(step) or {"loss": 2.0}
  run(tmp_path, make_stage(), config(), look)
  assert looked == [4, 8]  # the last step is looked at by `stage_run.run`
  found = records(tmp_path)
  assert [one["step"] for one in found] == [2, 4, 6, 8, 10, 12]
  last = found[-1]
  assert last["skipped"] == 0 and 0 < last["goodput"] <= 1
  assert last["tokens_per_second"] == pytest.approx(10 * last["examples_per_second"])
  assert last["examples_per_second"] == pytest.approx(ROWS / last["step_seconds"])
  assert "mfu" not in last  # a CPU has no peak
  rate = optimizer.schedule(config().optimizer, 12)(11)
  assert last["learning_rate"] == pytest.approx(float(rate))
  assert last["learning_rate_a"] == pytest.approx(float(rate) / 2)
  saved = checkpoint.Checkpoints(str(tmp_path), KEEP)
  assert saved.steps() == [5, 10, 12]
  meta = saved.meta(10)
  assert meta["position"] == 10 * ROWS and set(meta["figures"]) == {"train/loss"}
  assert meta["code"].count("+") == 1 and meta["config"]["num_steps"] == 12


def test_a_figure_to_keep_by_that_no_evaluation_has_is_named(tmp_path):
  settings = config()
  settings.keep.update(dict(best=1, metric="eval/los"))
  message = r"expected one of \['eval/loss'\] as config.keep.metric, got 'eval/los'"
  with pytest.raises(ValueError, match=message):
    run(tmp_path, make_stage(), settings)


def test_sigterm_at_any_step_resumes_exactly(tmp_path):
  whole = run(tmp_path / "whole", make_stage(), config())
  stage, at = make_stage(), int(np.random.default_rng().integers(1, 11))

  def interrupted(number):
    if number == at:
      os.kill(os.getpid(), signal.SIGTERM)
    return stage_step(number)

  stage_step, stage.step = stage.step, interrupted
  with pytest.raises(SystemExit) as stopped:
    run(tmp_path / "run", stage, config())
  assert stopped.value.code == 0
  assert checkpoint.Checkpoints(str(tmp_path / "run"), KEEP).newest() == at + 1
  resumed = run(tmp_path / "run", make_stage(), config())
  jax.tree.map(np.testing.assert_array_equal, resumed, whole)


def test_a_skipped_step_is_counted_and_passed_over(tmp_path):
  state = run(tmp_path, make_stage(bad=(3, 4)), config())
  assert int(state.step) == 12 and np.isfinite(state.params["a"]).all()
  assert checkpoint.Checkpoints(str(tmp_path), KEEP).meta(12)["skipped"] == 2
  skipped = [one for one in records(tmp_path) if one["kind"] == "skipped"]
  assert [one["step"] for one in skipped] == [4, 5]


def test_a_lost_run_ends_with_the_records_of_its_batch(tmp_path):
  message = r"in 3 steps in a row, the last step 8 on records \['r28', 'r29', 'r30'"
  with pytest.raises(ValueError, match=message):
    run(tmp_path, make_stage(bad=range(5, 99)), config(skip_limit=3))


def test_a_failed_write_ends_the_run_at_the_next_step(tmp_path, monkeypatch):
  def fail(folder):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(checkpoint.files, "write_checksums", fail)
  message = "write the checkpoint of step 5 .* No space left .* there is none: make"
  with pytest.raises(ValueError, match=message):
    run(tmp_path, make_stage(), config(num_steps=10**6, eval_every=0))


def test_the_share_of_the_peak(monkeypatch):
  step = jax.jit(lambda a, b: a @ b)
  pair = jnp.ones((4, 8)), jnp.ones((8, 16))
  assert utilization.step_flops(step, *pair) == 0.0
  monkeypatch.setitem(utilization.PEAKS, "cpu", 1000.0)
  assert utilization.step_flops(step, *pair) == 2 * 4 * 8 * 16
  assert utilization.mfu(2000.0, 0.5) == pytest.approx(4000 / 8000)


def test_each_phase_has_its_own_flops(tmp_path, monkeypatch):
  stage, asked, told = make_stage(), [], []
  first, second = stage.step(0), make_stage().step(0)
  flops = {first: 100.0, second: 300.0}
  stage.step = lambda number: first if number < 6 else second
  monkeypatch.setattr(
    utilization, "step_flops", lambda step, *_: asked.append(step) or flops[step]
  )
  monkeypatch.setattr(
    utilization, "mfu", lambda flops, seconds: told.append(flops) or 0
  )
  run(tmp_path, stage, config(eval_every=0, checkpoint_every=0))
  assert asked == [first, second]
  assert set(told[:3]) == {100.0} and set(told[3:]) == {300.0}


def test_a_state_that_is_not_as_planned_names_the_leaf():
  stage = make_stage()
  state = stage.initial(0)
  check = lambda **changes: base.check_state(
    state.replace(**changes), stage.abstract, stage.shardings
  )
  check()
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params)
  with pytest.raises(ValueError, match=r"params/a is bfloat16\[3\], planned float32"):
    check(params=half)
  with pytest.raises(ValueError, match="params/a is ndarray, not on the devices"):
    check(params=jax.device_get(state.params))
  (adam, rest) = state.opt_state
  shared = (adam._replace(mu=state.params), rest)
  with pytest.raises(
    ValueError, match="opt_state/0/mu/a shares its memory with params"
  ):
    check(opt_state=shared)


@pytest.mark.parametrize("terminal", [False, True])
def test_without_a_terminal_there_is_a_line_a_minute(terminal, monkeypatch, capsys):
  now = [100.0]
  monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
  monkeypatch.setattr(console.sys.stderr, "isatty", lambda: terminal, raising=False)
  said = console.Minutes(50, 10_000)
  for done in range(51, 112):
    now[0] += 2.0
    said.after(done, 2.5, 7)
  lines = capsys.readouterr().err.splitlines()
  expected = [
    "step 80 of 10000, loss 2.5000, 2 s a step, 5 h 31 min left, 7 bad records"
  ]
  expected += [
    "step 110 of 10000, loss 2.5000, 2 s a step, 5 h 30 min left, 7 bad records"
  ]
  assert lines == ([] if terminal else expected)
  assert "3 steps/s, 0 h 2 min left" in console.line(640, 1000, 1.0, 3.0, 0)


def test_weights_and_biases_gets_the_metrics(tmp_path, monkeypatch):
  calls = []
  log = lambda values, step: calls.append((step, values))
  opened = types.SimpleNamespace(log=log, finish=lambda: calls.append("finished"))
  module = types.SimpleNamespace(init=lambda **fields: calls.append(fields) or opened)
  monkeypatch.setitem(sys.modules, "wandb", module)
  writer = metrics.Writer(str(tmp_path), config(wandb="lavit"))
  writer.write(3, "train", {"loss": 1.5})
  writer.close()
  assert calls[0]["project"] == "lavit" and calls[0]["resume"] == "allow"
  assert calls[1:] == [(3, {"train/loss": 1.5}), "finished"]


def test_weights_and_biases_must_be_installed(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(ValueError, match="expected the package wandb .* pip install"):
    metrics.Writer(str(tmp_path), config(wandb="lavit"))
