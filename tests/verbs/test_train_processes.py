"""Runs on several real processes: the same training, and nothing lost when one dies."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from test_feed_processes import free_port

HERE = pathlib.Path(__file__).parents[1]
QUICK = dict(eval_every=0, checkpoint_every=0)


class Run:
  """Processes of one run: the same command for the same folder resumes it."""

  def __init__(
    self, workdir: pathlib.Path, stage: str, prepared, base, heartbeat=300, **changes
  ):
    self.workdir = workdir
    self.task = dict(
      stage=stage,
      data=str(prepared),
      model=str(base),
      workdir=str(workdir),
      heartbeat=heartbeat,
      changes=changes,
    )

  def start(self, processes: int) -> list[subprocess.Popen]:
    paths = os.pathsep.join([str(HERE.parent), *filter(None, sys.path)])
    command = [sys.executable, str(HERE / "train_process.py"), free_port()]
    environment = os.environ | {"PYTHONPATH": paths}
    del environment["JAX_COMPILATION_CACHE_DIR"]  # each run has its own
    return [
      subprocess.Popen(
        [*command, str(processes), str(index), json.dumps(self.task)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
      for index in range(processes)
    ]

  def finish(self, processes: int) -> list[str]:
    """Runs to the end; returns what each process said."""
    said = []
    for process in self.start(processes):
      said.append(process.communicate(timeout=600)[0])
      assert process.returncode == 0, said[-1][-3000:]
    return said

  def steps(self) -> int:
    records = self.records() if (self.workdir / "metrics.jsonl").exists() else []
    return max((record["step"] for record in records), default=0)

  def records(self, kind: str = "train") -> list[dict]:
    lines = (self.workdir / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    by_step = {one["step"]: one for one in found if one["kind"] == kind}
    return [by_step[step] for step in sorted(by_step)]

  def losses(self) -> list[float]:
    return [record["loss"] for record in self.records()]

  def tensors(self) -> dict[str, bytes]:
    files = (self.workdir / "model").glob("*.safetensors")
    return {path.name: path.read_bytes() for path in files}

  def programs(self) -> set[str]:
    """Compiled programs that the run keeps."""
    return {path.name for path in (self.workdir / "compiled").glob("*-cache")}

  def wait_for(self, processes, step: int) -> None:
    """Until a step is recorded, or a process has ended."""
    while self.steps() < step and all(p.poll() is None for p in processes):
      time.sleep(0.02)


@pytest.fixture(scope="module")
def language(tmp_path_factory, tokenized_data, visual_tokenizer_directory):
  """Makes runs of stage 2: (name, changes) -> Run."""
  folder = tmp_path_factory.mktemp("runs")
  parts = ("pretrain", tokenized_data, visual_tokenizer_directory)
  return lambda name, **changes: Run(folder / name, *parts, **changes)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, toy_data, encoder_directory):
  """Makes runs of stage 1."""
  folder = tmp_path_factory.mktemp("runs")
  parts = ("visual_tokenizer", toy_data, encoder_directory)
  return lambda name, **changes: Run(folder / name, *parts, **changes)


@pytest.mark.slow
def test_two_processes_train_as_one(language):
  one, two = language("one", **QUICK), language("two", **QUICK)
  one.finish(1)
  said = two.finish(2)
  np.testing.assert_allclose(two.losses(), one.losses(), atol=1e-5)
  assert len(one.losses()) == 6
  assert "host 0 of 2: 4 of 8 devices" in said[0]
  assert "host 1 of 2: 4 of 8 devices" in said[1]
  assert "mesh: data 2" in said[0] and "mesh: data 2" not in said[1]
  assert two.tensors().keys() == one.tensors().keys()


@pytest.mark.slow
def test_sigterm_to_one_of_two_saves_and_exits_0_and_resuming_recompiles_nothing(
  language,
):
  changes = dict(num_steps=60, eval_every=0, checkpoint_every=40)
  whole, stopped = language("whole", **changes), language("stopped", **changes)
  whole.finish(2)
  processes = stopped.start(2)
  stopped.wait_for(processes, 3)
  processes[1].send_signal(signal.SIGTERM)
  said = [process.communicate(timeout=300)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0], said
  assert "told to stop: saved step" in said[0]
  assert not (stopped.workdir / "model").exists()
  kept = stopped.programs()
  said = stopped.finish(2)
  assert stopped.tensors() == whole.tensors()
  assert stopped.losses() == whole.losses()
  # What is compiled now is what had not run before: the last evaluation, the writing.
  new = stopped.programs() - kept
  assert any(name.startswith("jit_step-") for name in kept)
  assert not any(name.startswith("jit_step-") for name in new)
  # Host 0 alone: the topology of CPUs, part of every key, names its own host, so that
  # host 1 never finds what host 0 wrote. That of TPUs is the same on all hosts.
  assert int(re.search(r"COMPILED (\d+) of", said[0])[1]) == len(new)


@pytest.mark.slow
def test_killed_at_random_moments_ends_where_the_whole_run_does(language):
  """Ten kills of either or both; LAVIT_KILLS sets another number."""
  changes = dict(num_steps=60, eval_every=0, checkpoint_every=4, heartbeat=10)
  whole, killed = language("uncut", **changes), language("killed", **changes)
  whole.finish(2)
  rng = np.random.default_rng(0)
  for _ in range(int(os.environ.get("LAVIT_KILLS", "10"))):
    processes = killed.start(2)
    killed.wait_for(processes, killed.steps() + 1)
    time.sleep(rng.uniform(0, 2))
    chosen = [[0], [1], [0, 1]][rng.integers(3)]
    for index in chosen:
      processes[index].kill()
    for process in processes:
      process.communicate(timeout=120)  # the other one ends by itself
  killed.finish(2)
  assert killed.tensors() == whole.tensors()


LAYOUTS = (
  dict(data=8, fsdp=1, sequence=1, tensor=1),
  dict(data=1, fsdp=2, sequence=2, tensor=2),
  dict(data=2, fsdp=4, sequence=1, tensor=1),
)


@pytest.mark.slow
def test_two_then_one_then_four_processes_on_three_meshes(language):
  """Float32 over 50 steps: as the run that stays on one mesh."""
  changes = dict(num_steps=50, batch_size=8, eval_every=0, checkpoint_every=10)
  changes |= dict(data=dict(eval_rows=8))
  single = language("single", mesh=LAYOUTS[0], **changes)
  single.finish(1)
  for processes, mesh, step in zip((2, 1, 4), LAYOUTS, (17, 34, 50), strict=True):
    part = language("parts", mesh=mesh, **changes)
    started = part.start(processes)
    if step < 50:
      part.wait_for(started, step)
      started[0].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=300)[0] for process in started]
    assert all(process.returncode == 0 for process in started), said
  largest = np.abs(np.subtract(part.losses(), single.losses())).max()
  print(f"largest difference of {len(single.losses())} losses: {largest:.2e}")
  assert largest <= 1e-5


@pytest.mark.slow
def test_stage_1_takes_the_same_first_step_on_two_processes(pictures):
  changes = QUICK | dict(num_steps=2, phase_a_steps=1)
  one, two = pictures("one", **changes), pictures("two", **changes)
  one.finish(1)
  two.finish(2)
  a, b = one.records()[0], two.records()[0]
  assert b["kept_share"] == a["kept_share"]
  np.testing.assert_allclose(b["loss"], a["loss"], atol=1e-5)
