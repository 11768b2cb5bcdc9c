"""A directory that another run writes is only read."""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_warm_start
import toy_run
from etils import epath

from configs import pretrain as config_file
from lavit_jax import doctor
from lavit_jax.core import sharding
from lavit_jax.inference import frozen_parts, tokenizing
from lavit_jax.stages import warm_start
from lavit_jax.training import checkpoint, metrics, parameters_from, train_state
from lavit_jax.training import checkpoint_files as files


def listing(folder: pathlib.Path) -> dict[str, tuple]:
  """Kind, size, time and place on the disk of all that a folder holds."""
  found = {".": folder.stat().st_mtime_ns}
  for path in folder.rglob("*"):
    stat = path.stat()
    found[str(path.relative_to(folder))] = (
      *(stat.st_mode, stat.st_size, stat.st_mtime_ns),
      *(stat.st_ino, stat.st_nlink),
    )
  return found


def state_of(value: float):
  return train_state.fresh({"kernel": jnp.full((8, 4), value)}, optax.adam(0.1))


@pytest.fixture
def run(tmp_path):
  """A run at work: step 1 whole, 2 damaged, 3 half written, 4 without checksums yet."""
  saved = checkpoint.Checkpoints(str(tmp_path / "run"), files.Keep(last=9))
  for step in (1, 2):
    saved.save(step, state_of(float(step)), {"position": step})
  saved.close()
  folder = tmp_path / "run/checkpoints"
  shutil.copytree(folder / "2", folder / f"3{files.TEMPORARY}-7")
  shutil.copytree(folder / "2", folder / "4")
  (folder / "4" / files.CHECKSUMS).unlink()
  (folder / "2/meta/metadata").write_bytes(b"{}")
  (tmp_path / "run/config.json").write_text("{}")
  (tmp_path / "run/metrics.jsonl").write_text('{"step": 1, "kind": "train"}\n')
  return tmp_path / "run"


def test_its_parameters_are_taken_and_its_files_stay(run, caplog):
  before = listing(run)
  with caplog.at_level("ERROR"):
    found, _ = parameters_from.load(str(run), state_of(0.0).params)
  np.testing.assert_array_equal(found["kernel"], np.ones((8, 4)))
  assert "DAMAGED CHECKPOINT passed over, step 2: meta/metadata differs" in caplog.text
  assert listing(run) == before
  assert len([name for name in before if files.TEMPORARY in name]) > 5


def test_its_own_run_still_tidies_up(run):
  assert checkpoint.Checkpoints(str(run), files.Keep()).newest() == 1
  names = sorted(path.name for path in (run / "checkpoints").iterdir())
  assert names == ["1", "2", "4"] and files.steps(run / "checkpoints") == [1]


def test_damaged_ones_alone_are_refused_and_stay(run):
  shutil.rmtree(run / "checkpoints/1")
  before = listing(run)
  message = "got damaged ones only .step 2: meta.*another run as config.parameters_from"
  with pytest.raises(ValueError, match=message):
    parameters_from.load(str(run), state_of(0.0).params)
  assert listing(run) == before


@pytest.mark.parametrize("place", ["_stored", "_read"])
def test_a_checkpoint_deleted_while_it_is_read_is_one_sentence(run, monkeypatch, place):
  step = epath.Path(run) / "checkpoints/1"
  read = getattr(parameters_from, place)

  def deleted(folder, *args):
    files.remove(step)
    return read(folder, *args)

  monkeypatch.setattr(parameters_from, place, deleted)
  with pytest.raises(ValueError, match="/checkpoints/1 to stay .* deleted it; give"):
    parameters_from.load(str(run), state_of(0.0).params)


def test_a_folder_without_a_run_is_not_made(tmp_path):
  with pytest.raises(ValueError, match="expected a run directory with checkpoints"):
    parameters_from.load(str(tmp_path / "none"), state_of(0.0).params)
  assert not list(tmp_path.iterdir())


def test_the_doctor_and_a_report_look_without_touching(run):
  config = config_file.get_config("tiny")
  config.parameters_from = str(run)
  before = listing(run)
  said = list(doctor.paths(config, str(run)))
  assert f"parameters_from: {run} is there" in said[-3]
  assert "holds a run and can be written by its rights" in said[-2]
  assert metrics.read(run, "train")
  assert listing(run) == before


def test_model_directories_of_earlier_stages_stay_as_they_are(
  tmp_path, visual_tokenizer_directory
):
  mesh = sharding.make_mesh({"fsdp": 8})
  earlier, plain = visual_tokenizer_directory, tmp_path / "plain"
  test_warm_start.plain_llama(plain)
  before = listing(earlier), listing(plain)
  frozen_parts.encoder(str(earlier), mesh, "float32", 1)
  tokenizing.load(str(earlier), mesh, "float32", 1)
  tokenizing.checksum(str(earlier))
  state, spread = test_warm_start.language_state(mesh)
  config = toy_run.language_config(warm_start=str(plain))
  jax.block_until_ready(warm_start.language(state, spread, config, toy_run.WORDS))
  assert (listing(earlier), listing(plain)) == before
