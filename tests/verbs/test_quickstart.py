import json
import os
import pathlib
import subprocess
import sys

import pytest
import test_report

from lavit_jax.toy import quickstart_run
from lavit_jax.toy.quickstart_run import low_figures

ROOT = pathlib.Path(__file__).parents[2]


def quickstart(workdir, *flags):
  """Runs the command as a user does: elsewhere, on one device.

  Only its programs are compiled in a hurry: they run a few steps each.
  """
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
  return subprocess.run(
    [sys.executable, "-m", "lavit_jax.quickstart", f"--workdir={workdir}", *flags],
    cwd=workdir.parent,
    env=environment | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
  )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  folder = tmp_path_factory.mktemp("quickstart") / "run"
  done = quickstart(folder, "--smoke")
  assert done.returncode == 0, done.stderr[-3000:]
  return folder, done


def test_smoke_run_goes_through_everything(finished):
  folder, done = finished
  facts = test_report.check_report(folder)
  names = ("contrastive", "visual_tokenizer", "tokenize", "pixel_decoder")
  names += ("pretrain", "evaluate")
  assert [line.split()[0] for line in done.stdout.splitlines()] == [
    "prepare", *names, "report:",
  ]  # fmt: skip
  assert all(facts["seconds"][name] > 0 for name in names)
  assert 0 < facts["kept_share"]["value"] <= 1
  assert facts["novel_caption_color_shape"]["chance"] == 1 / 48
  assert "random_mask" in facts["object_patch_cosine"]
  assert "other_picture" in facts["answer_accuracy"]
  stages = facts["stages"]
  assert stages["pretrain"]["config"]["num_steps"] == stages["pretrain"]["steps"]


def test_a_seed_reaches_weights_and_order_of_every_stage(tmp_path):
  made = [quickstart_run.configs(tmp_path, quickstart_run.FULL, s) for s in (0, 1)]
  for seeds in zip(*(configs.values() for configs in made)):
    assert [config.seed for config in seeds] == [0, 1]
  orders = [c.data.shuffle_seed for configs in made for c in configs.values()]
  assert len(set(orders)) == len(orders)


def test_a_stage_that_went_wrong_is_named():
  good = {"retrieval_at_1": 0.93, "word_accuracy_color": 1.0}
  assert not low_figures("contrastive", good | {"word_accuracy_shape": 0.97})
  lines = low_figures("contrastive", good | {"word_accuracy_shape": 0.41})
  assert (
    len(lines) == 1 and "word_accuracy_shape of 0.92 or more, got 0.410" in lines[0]
  )
  assert low_figures("visual_tokenizer", {"cosine": float("nan")})


def test_finished_parts_are_skipped_and_another_split_is_measured(finished):
  folder, _ = finished
  facts = json.loads((folder / "report.json").read_text())
  before = facts["seconds"]
  assert facts["split"] == "validation"
  done = quickstart(folder, "--smoke", "--split=test")
  assert done.returncode == 0, done.stderr[-3000:]
  facts = json.loads((folder / "report.json").read_text())
  after = facts["seconds"]
  assert facts["split"] == "test"
  for name in before.keys() - {"evaluate", "total"}:
    assert after[name] == before[name]
  assert done.stdout.count("done earlier") == 6


def test_another_size_is_refused(finished):
  folder, _ = finished
  refused = quickstart(folder)
  assert refused.returncode == 1 and "--smoke" in refused.stderr
  refused = quickstart(folder, "--smoke", "--seed=1")
  assert refused.returncode == 1 and "'seed': 1" in refused.stderr
  assert "Traceback" not in refused.stderr
