"""Whole runs of `train`: interrupted, damaged, on another mesh, and resumed."""

import contextlib
import json
import os
import pathlib
import shutil
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import toy_run

from lavit_jax.stages import stage_run
from lavit_jax.training import compile_cache, metrics

ROOT = pathlib.Path(__file__).parents[2]


def arrays_of(workdir: pathlib.Path, step: int) -> dict:
  """Every array of a checkpoint, as it was stored."""
  folder = workdir / "checkpoints" / str(step) / "state"
  found = ocp.StandardCheckpointer().restore(folder)
  return jax.tree.map(np.asarray, found)


def tensors_of(workdir: pathlib.Path) -> dict[str, bytes]:
  return {p.name: p.read_bytes() for p in (workdir / "model").glob("*.safetensors")}


def cut_back(whole: pathlib.Path, folder: pathlib.Path, step: int) -> pathlib.Path:
  """A copy of a run as if it had stopped after the checkpoint of a step."""
  shutil.copytree(whole, folder)
  for path in (folder / "checkpoints").iterdir():
    if path.name.isdigit() and int(path.name) > step:
      shutil.rmtree(path)
  shutil.rmtree(folder / "model")
  return folder


def assert_same_arrays(found, expected, check=np.testing.assert_array_equal):
  paths = jax.tree_util.tree_flatten_with_path(found)[0]
  for (path, a), b in zip(paths, jax.tree.leaves(expected), strict=True):
    check(a, b, err_msg=jax.tree_util.keystr(path))


def assert_resumed(whole: pathlib.Path, resumed: pathlib.Path):
  assert_same_arrays(arrays_of(resumed, 6), arrays_of(whole, 6))
  assert tensors_of(resumed) == tensors_of(whole)
  meta = [
    json.loads((f / "checkpoints/6/meta/metadata").read_text())
    for f in (whole, resumed)
  ]
  assert meta[0] == meta[1]
  for kind in ("train", "eval"):
    last = [metrics.read(folder, kind)[-1] for folder in (whole, resumed)]
    timed = ("time", "goodput", "data_wait", "_second", "_seconds")
    a, b = ({k: v for k, v in r.items() if not k.endswith(timed)} for r in last)
    assert a == b and a["step"] == 6


@pytest.fixture(scope="module")
def language_config(tokenized_data, visual_tokenizer_directory):
  return lambda: toy_run.language_run(tokenized_data, visual_tokenizer_directory)


@pytest.fixture(scope="module")
def tokenizer_config(toy_data, encoder_directory):
  return lambda: toy_run.visual_tokenizer_run(toy_data, encoder_directory)


# Resuming


def test_stage_2_resumes_bit_for_bit(language_run, language_config, tmp_path):
  resumed = cut_back(language_run, tmp_path / "run", 3)
  stage_run.run(language_config(), str(resumed))
  assert_resumed(language_run, resumed)
  assert not np.array_equal(
    *(arrays_of(language_run, s)["params"]["vit_proj"]["kernel"] for s in (3, 6))
  )


def test_stage_1_resumes_bit_for_bit_across_the_phase_change(
  tokenizer_run, tokenizer_config, tmp_path
):
  books = [arrays_of(tokenizer_run, step)["codebook"]["embedding"] for step in (3, 6)]
  assert np.abs(books[0] - books[1]).max() > 0.1  # k-means came between them
  resumed = cut_back(tokenizer_run, tmp_path / "resumed", 3)
  stage_run.run(tokenizer_config(), str(resumed))
  assert_resumed(tokenizer_run, resumed)


def test_sigterm_saves_exits_0_and_resuming_compiles_nothing(
  language_run, language_config, tmp_path, monkeypatch
):
  shutil.copytree(language_run / "compiled", tmp_path / "run/compiled")
  config = language_config()
  config.log_every = 1
  write, stop_at = metrics.Writer.write, int(np.random.default_rng().integers(1, 6))

  def interrupted(writer, step, kind, values):
    if step == stop_at:
      os.kill(os.getpid(), signal.SIGTERM)
    return write(writer, step, kind, values)

  with monkeypatch.context() as patch, toy_run.own_compiled_programs():
    patch.setattr(metrics.Writer, "write", interrupted)
    with pytest.raises(SystemExit) as stopped:
      stage_run.run(config, str(tmp_path / "run"))
  assert stopped.value.code == 0
  assert (tmp_path / "run/checkpoints" / str(stop_at) / "checksums.json").is_file()
  with (
    contextlib.closing(compile_cache.Counter()) as counter,
    toy_run.own_compiled_programs(),
  ):
    stage_run.run(language_config(), str(tmp_path / "run"))
  assert counter.requested > 0 and counter.compiled == 0
  assert_resumed(language_run, tmp_path / "run")


def test_a_run_resumes_on_another_mesh(language_run, language_config, tmp_path):
  resumed = cut_back(language_run, tmp_path / "run", 3)
  config = language_config()
  config.mesh.update(dict(data=1, fsdp=4, sequence=2, tensor=1))
  stage_run.run(config, str(resumed))
  # Adam divides by the root of tiny moments, so equal gradients differ a little more.
  close = lambda a, b, err_msg: np.testing.assert_allclose(
    a, b, atol=1e-4, err_msg=err_msg
  )
  assert_same_arrays(arrays_of(resumed, 6), arrays_of(language_run, 6), close)


def test_a_finished_run_is_not_trained_again(language_run, language_config, tmp_path):
  again = tmp_path / "run"
  shutil.copytree(language_run, again)
  stage_run.run(language_config(), str(again))
  assert tensors_of(again) == tensors_of(language_run)


def test_a_half_written_checkpoint_is_passed_over(
  language_run, language_config, tmp_path
):
  resumed = cut_back(language_run, tmp_path / "run", 3)
  name = "6.orbax-checkpoint-tmp-1"
  shutil.copytree(resumed / "checkpoints/3", resumed / "checkpoints" / name)
  stage_run.run(language_config(), str(resumed))
  assert_resumed(language_run, resumed)


def test_what_a_run_directory_holds(language_run):
  config = json.loads((language_run / "config.json").read_text())
  assert config["stage"] == "pretrain" and config["model"]["num_heads"] == 8
  manifest = json.loads((language_run / "model/manifest.json").read_text())
  assert set(manifest["parts"]) == {
    "vit",
    "whitening",
    "visual_tokenizer",
    "codebook",
    "llama",
    "understanding",
  }
  assert (language_run / "model/text_tokenizer/tokenizer.json").is_file()
  stored = arrays_of(language_run, 6)["params"]
  assert set(stored) == {"llama", "merger", "vit_proj"}  # nothing frozen
  assert list((language_run / "tensorboard").iterdir())


def test_a_damaged_checkpoint_is_never_a_silent_start(
  language_run, language_config, tmp_path, caplog
):
  resumed = cut_back(language_run, tmp_path / "run", 6)
  shutil.rmtree(resumed / "checkpoints/6/state/d")
  with caplog.at_level("ERROR"):
    stage_run.run(language_config(), str(resumed))
  assert "DAMAGED CHECKPOINT passed over, step 6: state/d/" in caplog.text
  assert_resumed(language_run, resumed)  # from step 3
  shutil.rmtree(resumed / "checkpoints/3")
  shutil.rmtree(resumed / "checkpoints/6/state/d")
  message = "expected a whole checkpoint in .*checkpoints, got damaged ones only"
  with pytest.raises(ValueError, match=message):
    stage_run.run(language_config(), str(resumed))
