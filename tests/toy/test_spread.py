"""Runs of one recipe: means, deviations, and runs that do not belong together."""

import json
import subprocess
import sys

import numpy as np
import pytest

from lavit_jax.evaluate.figures import figure
from lavit_jax.toy.report import spread


def report(value, seed=0, split="test", steps=10):
  config = {"seed": seed, "num_steps": steps, "data": {"shuffle_seed": 4 * seed}}
  kinds = {"count": {"value": value / 2, "chance": 0.1, "n": 5}}
  return {
    "split": split,
    "stages": {"pretrain": {"config": config}},
    "seconds": {"total": 100.0 + seed},
    "answers": figure(value, 0.1, 100, "cases", "chance", kinds=kinds),
  }


def write(folder, **fields):
  folder.mkdir()
  (folder / "report.json").write_text(json.dumps(report(**fields)))
  return str(folder)


def test_mean_and_deviation_of_every_number():
  found = spread.aggregate([report(0.4), report(0.6, 1), report(0.8, 2)])
  assert set(found) == {"answers", "answers.kinds.count.value"}
  own = found["answers"]
  np.testing.assert_allclose(
    [own["mean"], own["deviation"], own["lowest"], own["highest"]], [0.6, 0.2, 0.4, 0.8]
  )
  np.testing.assert_allclose(own["sampling_deviation"], np.sqrt(0.6 * 0.4 / 100))
  assert own["runs"] == 3 and own["n"] == 100
  assert found["answers.kinds.count.value"]["sampling_deviation"] is None


def test_figures_without_a_value_in_some_run_count_where_they_are():
  found = spread.aggregate([report(0.4), report(0.6), {"answers": {"value": None}}])
  assert found["answers"]["runs"] == 2


@pytest.mark.parametrize(
  "other, message",
  [
    (dict(split="validation"), "runs of one split"),
    (dict(steps=20), "runs of one recipe"),
  ],
)
def test_runs_that_do_not_belong_together_are_refused(tmp_path, other, message):
  first = write(tmp_path / "a", value=0.5)
  second = write(tmp_path / "b", value=0.5, seed=1, **other)
  with pytest.raises(ValueError, match=message):
    spread.read([first, second])


def test_the_command_prints_a_table_and_writes_json(tmp_path):
  runs = [write(tmp_path / str(seed), value=0.5, seed=seed) for seed in range(2)]
  target = tmp_path / "spread.json"
  command = [sys.executable, "-m", "lavit_jax.toy.report.spread", *runs]
  done = subprocess.run(
    [*command, f"--target={target}"], capture_output=True, text=True, check=True
  )
  assert "| answers | 0.500 | 0.000 |" in done.stdout
  assert json.loads(target.read_text())["figures"]["answers"]["mean"] == 0.5
  alone = subprocess.run([*command[:3], runs[0]], capture_output=True, text=True)
  assert alone.returncode == 1 and "expected two runs or more" in alone.stderr
  assert "Traceback" not in alone.stderr
