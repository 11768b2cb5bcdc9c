"""The paste of a bug report."""

import os
import pathlib
import subprocess
import sys

import toy_shards

from configs import pretrain
from lavit_jax import doctor

ROOT = pathlib.Path(__file__).parent.parent


def test_versions_and_machines():
  said = "\n".join([*doctor.versions(), *doctor.machines()])
  for part in ("lavit_jax 0", "jax 0.", "orbax-checkpoint 0.", "host 0 of 1: 8 of 8"):
    assert part in said


def test_paths_that_can_and_cannot_be_reached(tmp_path):
  config = pretrain.get_config("tiny")
  config.init_from = str(tmp_path / "none")
  config.data.train = str(tmp_path)
  (tmp_path / "file").write_text("")
  said = list(doctor.paths(config, str(tmp_path / "file")))
  assert "init_from" in said[0] and "IS NOT THERE" in said[0]
  assert "data.train" in said[1] and "is there" in said[1]
  assert "workdir" in said[2] and "CANNOT BE REACHED" in said[2]
  assert "can be written" in said[3]
  assert not list(tmp_path.glob(".doctor*"))


def test_data_and_how_full_its_rows_are(tmp_path):
  toy_shards.write(tmp_path, count=24)
  (tmp_path / "sidecar").rename(tmp_path / "records/codes")
  config = pretrain.get_config("tiny")
  config.data.train, config.data.eval = str(tmp_path / "records"), str(tmp_path / "no")
  config.data.update(dict(row_length=48, plan_rows=8))
  said = list(doctor.data(config))
  assert said[0] == "train: 24 records, 18 pictures"
  assert "%" in said[1]
  assert said[2].startswith("eval: expected a finished folder")


def test_the_command(tmp_path):
  command = [sys.executable, "-m", "lavit_jax.doctor", f"--workdir={tmp_path}"]
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
  assert done.returncode == 0, done.stderr
  assert f"workdir: {tmp_path} can be written" in done.stdout
