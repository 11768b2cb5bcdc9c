"""The whole of `stage_run.run` around a stage of three numbers."""

import contextlib
import json
import os
import signal
import types

import jax
import numpy as np
import pytest
import test_loop
import toy_run
from PIL import Image

from lavit_jax.data import skipping
from lavit_jax.stages import resuming, stage_run
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

  monkeypatch.setitem(stage_run.STAGES, "toy", build)
  monkeypatch.setattr(stage_run.widths, "of_run", lambda config: [])
  names = {name: f"records {name}" for name in ("data.train", "data.eval")}
  monkeypatch.setattr(stage_run.data_names, "of", lambda config: dict(names))
  return names


def config(**changes):
  made = test_loop.config(**changes)
  made.data = dict(train="here", eval="here", skip="")
  made.mesh.update(dict(fsdp=4, tensor=2))
  return made


def model(folder):
  return np.load(folder / "model/a.npy")


def test_a_run_and_what_it_leaves(tmp_path, capsys):
  seconds = stage_run.run(config(), str(tmp_path))
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
  stage_run.run(config(), str(whole))
  write = metrics.Writer.write

  def interrupted(writer, step, kind, values):
    if (step, kind) == (8, "eval"):
      os.kill(os.getpid(), signal.SIGTERM)
    return write(writer, step, kind, values)

  jax.clear_caches()  # each run compiles as a process of its own
  with monkeypatch.context() as patch, toy_run.own_compiled_programs():
    patch.setattr(metrics.Writer, "write", interrupted)
    with pytest.raises(SystemExit) as stopped:
      stage_run.run(config(), str(folder))
  assert stopped.value.code == 0 and not (folder / "model").exists()
  assert checkpoint.Checkpoints(str(folder), test_loop.KEEP).newest() == 8
  jax.clear_caches()
  with (
    contextlib.closing(compile_cache.Counter()) as counter,
    toy_run.own_compiled_programs(),
  ):
    stage_run.run(config(), str(folder))
  assert counter.requested > 0 and counter.compiled == 0
  np.testing.assert_array_equal(model(folder), model(whole))


def test_parameters_of_another_run(tmp_path, capsys):
  stage_run.run(config(), str(tmp_path / "first"))
  changes = dict(num_steps=1, parameters_from=str(tmp_path / "first"))
  stage_run.run(config(**changes), str(tmp_path / "second"))
  assert "parameters from" in capsys.readouterr().out
  moved = np.abs(model(tmp_path / "second") - model(tmp_path / "first"))
  assert moved.max() < 0.2  # one step of Adam away


def test_the_checkpoint_of_other_settings_is_refused(tmp_path):
  stage_run.run(config(num_steps=2), str(tmp_path))
  stage_run.run(config(num_steps=2, log_every=1, step_timeout=5), str(tmp_path))
  with pytest.raises(ValueError, match=r"configuration \(num_steps: 2 -> 3\)"):
    stage_run.run(config(num_steps=3), str(tmp_path))


def test_moved_data_are_accepted_and_changed_ones_refused(tmp_path, toy):
  stage_run.run(config(num_steps=2), str(tmp_path))
  moved = config(num_steps=2)
  moved.data.train = "elsewhere"
  stage_run.run(moved, str(tmp_path))
  toy["data.train"] = "other records"
  message = "other data, .*data.train: records data.train -> other records.; give"
  with pytest.raises(ValueError, match=message):
    stage_run.run(config(num_steps=2), str(tmp_path))


def asked(step=None, *change):
  return resuming.Asked(step, change)


def steered(folder, request, skip="", **changes):
  made = config(**changes)
  made.data.skip = skip
  stage_run.run(made, str(folder), asked=request)


def changes_of(folder):
  return [{k: e[k] for k in ("step", "changed")} for e in resuming.read_changes(folder)]


def test_a_longer_schedule_and_another_rate_are_asked_for_by_name(tmp_path):
  steered(tmp_path, asked(), num_steps=2)
  message = r"num_steps: 2 -> 4\); .* say --change=num_steps where that is meant,"
  with pytest.raises(ValueError, match=message):
    steered(tmp_path, asked(), num_steps=4)
  steered(tmp_path, asked(None, "num_steps"), num_steps=4)
  steered(tmp_path, asked(None, "num_steps"), num_steps=4)  # the same command resumes
  steered(tmp_path, asked(), num_steps=4)
  assert json.loads((tmp_path / "config.json").read_text())["num_steps"] == 4
  assert changes_of(tmp_path) == [{"step": 2, "changed": {"num_steps": [2, 4]}}]
  for wrong, message in (
    ("seed", "to name fields of num_steps, optimizer., .* got .'seed'.; what else"),
    ("optimizer.name", "got .'optimizer.name'."),
    ("optimizer.eps", "got the old ones of .'optimizer.eps'.; give"),
    ("optimizer.esp", "fields of the config after --change, got 'optimizer.esp'"),
  ):
    with pytest.raises(ValueError, match=message):
      steered(tmp_path, asked(None, wrong), num_steps=4)
  with pytest.raises(ValueError, match="a run with checkpoints in .* got none; leave"):
    steered(tmp_path / "new", asked(None, "num_steps"))


def test_a_run_goes_back_to_a_step_and_leaves_rows_out(tmp_path, capsys):
  """The same command resumes: it goes back once, however often it is given."""
  steered(tmp_path, asked(), num_steps=9, checkpoint_every=2)
  with pytest.raises(ValueError, match=r"resume_step to be one of \[8, 9\]"):
    steered(tmp_path, asked(4), num_steps=9)
  steered(tmp_path, asked(8), "32:36", num_steps=9)
  assert changes_of(tmp_path) == [{"step": 8, "changed": {"data.skip": ["", "32:36"]}}]
  newest = checkpoint.Checkpoints(str(tmp_path), test_loop.KEEP)
  assert newest.meta(9)["config"]["data"]["skip"] == "32:36"
  capsys.readouterr()
  steered(tmp_path, asked(8), "32:36", num_steps=9)
  assert len(changes_of(tmp_path)) == 1
  assert "note: this run went back to step 8 by this same" in capsys.readouterr().out
  steered(tmp_path, asked(9), "32:36", num_steps=9)  # the newest: noted all the same
  assert changes_of(tmp_path)[1] == {"step": 9, "changed": {}}


def test_rows_are_left_out_of_the_stream():
  spans = skipping.parse("7:9, 3:5,5:6")
  assert spans == [(3, 6), (7, 9)] and skipping.parse("") == []
  left_out = skipping.LeftOut(spans)
  order = skipping.Order(range(100, 200), left_out)
  assert [order[used] for used in range(6)] == [100, 101, 102, 106, 109, 110]
  for used in range(20):
    assert left_out.used(left_out.position(used)) == used
  assert [left_out.used(p) for p in (3, 4, 6, 7, 8, 9, 10)] == [3, 3, 3, 4, 4, 4, 5]
  for text in ("3", "5:3", "3:5;", "a:b", "-1:4"):
    with pytest.raises(ValueError, match="leave out as FIRST:LAST,FIRST:LAST, got"):
      skipping.parse(text)


def compared(old, new, frozen, *change):
  """Compares a checkpoint's config with that of now."""
  meta = {"frozen": frozen, "config": old}
  stage = types.SimpleNamespace(frozen_checksums=frozen)
  return resuming._checked("runs/a", meta, new, stage, asked(None, *change), False)


@pytest.mark.parametrize("frozen", [{"vit": "a"}, {"vit": "a", "whitening": "b"}])
def test_a_run_from_before_the_selector_s_input_goes_on(frozen):
  """A tiny stage 1 saw whitened features; without whitening both are the same."""
  old = {"model": {"num_codes": 8}}
  raw, whitened = (
    {"model": {"num_codes": 8, "selector_input": name}} for name in ("raw", "whitened")
  )
  if "whitening" in frozen:
    assert compared(old, whitened, frozen) == {}
    with pytest.raises(
      ValueError, match="model.selector_input: whitened -> raw.; rest"
    ):
      compared(old, raw, frozen)
  else:
    assert compared(old, raw, frozen) == {}
  assert compared(old, old, frozen) == {}  # another stage has no such field


def test_a_whole_group_of_fields_is_changed_by_its_name():
  old = {"kind_weights": {"text": 1}, "optimizer": {"name": "adamw", "eps": 1}}
  new = {"kind_weights": {"text": 2}, "optimizer": {"name": "adamw", "eps": 1}}
  assert list(compared(old, new, {}, "kind_weights")) == ["kind_weights.text"]
  new = old | {"optimizer": {"name": "lion", "eps": 2}}
  with pytest.raises(ValueError, match="optimizer.name: adamw -> lion.; restore"):
    compared(old, new, {}, "optimizer")
