"""The whole of `train.run` around a stage of three numbers."""

import contextlib
import json
import os
import signal

import jax
import numpy as np
import pytest
import test_loop
import toy_run
from PIL import Image

from lavit_jax import train
from lavit_jax.training import checkpoint, compile_cache, metrics


@pytest.fixture(autouse=True)
def toy(monkeypatch):
  """The stage "toy", which writes its parameters as its model."""

  def build(config, mesh):
    stage = test_loop.make_stage()
    stage.evaluate = lambda state: (
      {"loss": state.params["a"].sum()},
      {"shown": np.zeros((4, 6, 3), np.uint8)},
    )

    def finish(state, folder):
      os.makedirs(folder, exist_ok=True)
      np.save(f"{folder}/a.npy", state.params["a"])

    stage.finish = finish
    return stage

  monkeypatch.setitem(train.STAGES, "toy", build)


def config(**changes):
  made = test_loop.config(**changes)
  made.data = dict(train="here", eval="here")
  made.mesh.update(dict(fsdp=4, tensor=2))
  return made


def model(folder):
  return np.load(folder / "model/a.npy")


def test_a_run_and_what_it_leaves(tmp_path, capsys):
  seconds = train.run(config(), str(tmp_path))
  assert seconds["total"] > seconds["compile"] > 0 and seconds["start"] > 0
  said = capsys.readouterr().err
  assert said.startswith("mesh: data 1 x fsdp 4") and "parameters 12 B" in said
  assert json.loads((tmp_path / "config.json").read_text())["num_steps"] == 12
  evaluated = metrics.read(tmp_path, "eval")
  assert [one["step"] for one in evaluated] == [4, 8, 12]
  with Image.open(tmp_path / "pictures/shown-000012.png") as picture:
    assert picture.size == (6, 4)
  assert model(tmp_path).shape == (3,)


def test_sigterm_exits_0_and_resuming_is_exact_and_compiles_nothing(
  tmp_path, monkeypatch
):
  whole, folder = tmp_path / "whole", tmp_path / "run"
  train.run(config(), str(whole))
  write = metrics.Writer.write

  def interrupted(writer, step, kind, values):
    if (step, kind) == (8, "eval"):
      os.kill(os.getpid(), signal.SIGTERM)
    return write(writer, step, kind, values)

  jax.clear_caches()  # each run compiles as a process of its own
  with monkeypatch.context() as patch, toy_run.own_compiled_programs():
    patch.setattr(metrics.Writer, "write", interrupted)
    with pytest.raises(SystemExit) as stopped:
      train.run(config(), str(folder))
  assert stopped.value.code == 0 and not (folder / "model").exists()
  assert checkpoint.Checkpoints(str(folder), test_loop.KEEP).newest() == 8
  jax.clear_caches()
  with (
    contextlib.closing(compile_cache.Counter()) as counter,
    toy_run.own_compiled_programs(),
  ):
    train.run(config(), str(folder))
  assert counter.requested > 0 and counter.compiled == 0
  np.testing.assert_array_equal(model(folder), model(whole))


def test_parameters_of_another_run(tmp_path, capsys):
  train.run(config(), str(tmp_path / "first"))
  changes = dict(num_steps=1, parameters_from=str(tmp_path / "first"))
  train.run(config(**changes), str(tmp_path / "second"))
  assert "parameters from" in capsys.readouterr().out
  moved = np.abs(model(tmp_path / "second") - model(tmp_path / "first"))
  assert moved.max() < 0.2  # one step of Adam away


def test_the_checkpoint_of_other_settings_is_refused(tmp_path):
  train.run(config(num_steps=2), str(tmp_path))
  train.run(config(num_steps=2, log_every=1, step_timeout=5), str(tmp_path))
  with pytest.raises(ValueError, match=r"configuration \(num_steps: 2 -> 3\)"):
    train.run(config(num_steps=3), str(tmp_path))
