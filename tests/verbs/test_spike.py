"""A poisoned part of the data: the run that meets it, and the one that is steered."""

import dataclasses
import json

import numpy as np
import pytest
import test_loop

from lavit_jax.data import pipeline
from lavit_jax.stages import resuming, stage_run
from lavit_jax.training import feed, metrics

BATCH, STEPS, POISONED = 8, 90, range(70, 72)  # batches whose rows are poisoned


class Numbers:
  """Records of one number near 2; those of two batches of the stream are large."""

  def __init__(self):
    order = pipeline.order(self, 0)
    rows = range(POISONED.start * BATCH, POISONED.stop * BATCH)
    self.bad = {int(order[row]) for row in rows}

  def __len__(self):
    return 1024

  def ids(self, index):
    return [f"r{index}"]

  def __getitem__(self, index):
    value = 1e3 if index in self.bad else 2 + 0.1 * np.sin(index)
    return {"x": np.float32(value)}


@pytest.fixture(autouse=True)
def toy(monkeypatch):
  """A stage of three numbers on the feed that all stages have."""
  source = Numbers()

  def build(config, mesh):
    return dataclasses.replace(
      test_loop.make_stage(),
      batches=lambda position: feed.device_batches(source, config, mesh, position),
      records=lambda position: feed.record_ids(source, config, position),
      mesh=mesh,
    )

  monkeypatch.setitem(stage_run.STAGES, "toy", build)
  monkeypatch.setattr(stage_run.widths, "of_run", lambda config: [])
  monkeypatch.setattr(stage_run.data_names, "of", lambda config: {"data.train": "n"})
  return source


def run(folder, skip="", step=None):
  config = test_loop.config(num_steps=STEPS, batch_size=BATCH, log_every=1)
  config.update(dict(checkpoint_every=10, eval_every=0, accumulate=1))
  config.mesh.update(dict(data=1, fsdp=8))
  config.keep.last = 9
  config.data = dict(train="n", eval="n", shuffle_seed=0, skip=skip)
  stage_run.run(config, str(folder), asked=resuming.Asked(step))


def test_a_run_goes_on_before_a_spike_without_the_rows_that_made_it(tmp_path, toy):
  run(tmp_path)
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
  spike = next(line for line in lines if line["kind"] == "spike")
  assert spike["step"] == POISONED.start + 1
  assert spike["position"] == POISONED.start * BATCH
  assert {int(name[1:]) for name in spike["records"]} <= toy.bad
  before = metrics.read(tmp_path, "train")
  assert max(record["loss"] for record in before[70:]) > 1e5

  skip = f"{spike['position']}:{spike['position'] + len(POISONED) * BATCH}"
  run(tmp_path, skip, step=70)
  after = metrics.read(tmp_path, "train")
  assert len(after) == STEPS
  assert max(record["loss"] for record in after[60:]) < 0.1
  (change,) = resuming.read_changes(tmp_path)
  assert change["step"] == 70 and change["changed"] == {"data.skip": ["", skip]}
  run(tmp_path, skip, step=70)  # the same command: nothing is trained again
  assert metrics.read(tmp_path, "train") == after
