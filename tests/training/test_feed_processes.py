"""The same stream on 1, 2 and 4 real processes, on other meshes and after a resume."""

import itertools
import json
import os
import pathlib
import socket
import subprocess
import sys

import feed_process
import pytest
import toy_shards

HERE = pathlib.Path(__file__).parents[1]
MANY = {"fsdp": -1}
WIDE = {"fsdp": 1, "tensor": 8}  # every device, so every process, holds every row
BAD = 4  # this record's picture is cut short


def free_port() -> str:
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    return str(listener.getsockname()[1])


def task(folder, mesh, position=0, batch_size=8, batches=6, threads=2) -> dict:
  fields = dict(mesh=mesh, position=position, batch_size=batch_size, batches=batches)
  return {"folder": str(folder), "threads": threads, **fields}


def run(targets, processes, tasks) -> list[list[dict]]:
  """Runs tasks on real processes: results by task and process."""
  targets = [targets / f"{index}.json" for index in range(processes)]
  paths = os.pathsep.join([str(HERE.parent), *filter(None, sys.path)])
  command = [sys.executable, str(HERE / "feed_process.py"), free_port(), str(processes)]
  started = [
    subprocess.Popen(
      [*command, str(index), json.dumps(tasks), str(target)],
      env=os.environ | {"PYTHONPATH": paths},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index, target in enumerate(targets)
  ]
  for process in started:
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 0, error[-3000:]
  found = [json.loads(target.read_text()) for target in targets]
  return list(zip(*found, strict=True))


def stream(results) -> list[str]:
  """Row digests in order; every process must have seen the same."""
  assert all(one["digests"] == results[0]["digests"] for one in results)
  return list(itertools.chain(*results[0]["digests"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("feed")
  toy_shards.write(folder, count=24, bad=(BAD,))
  return folder


@pytest.fixture(scope="module")
def whole(folder):
  """The stream on this one process, which has all eight devices."""
  return feed_process.run(task(folder, MANY))


@pytest.fixture(scope="module")
def two(folder, tmp_path_factory):
  """On two processes: all, all with shared rows, the first 16 rows, rows 32 to 47."""
  mixed = task(folder, {"data": 2, "tensor": 4}, 32, 4, batches=4, threads=1)
  first = task(folder, MANY, batches=2, threads=3)
  tasks = [task(folder, MANY), task(folder, WIDE), first, mixed]
  return run(tmp_path_factory.mktemp("two"), 2, tasks)


@pytest.fixture(scope="module")
def four(folder, tmp_path_factory):
  """On four processes: all, and rows 16 to 31 as one batch."""
  middle = task(folder, MANY, 16, 16, batches=1, threads=5)
  return run(tmp_path_factory.mktemp("four"), 4, [task(folder, MANY), middle])


def test_every_global_batch_is_the_same_on_any_processes(whole, two, four):
  assert whole["digests"] == two[0][0]["digests"] == four[0][0]["digests"]
  for results in (two[0], four[0]):
    stream(results)
    loaded = [one["loaded"] for one in results]
    assert sorted(itertools.chain(*loaded)) == list(range(8))  # no row twice
    assert {one["position"] for one in results} == {48}
    # A bad record is replaced alike and counted once over all processes.
    assert {one["replaced"] for one in results} == {whole["replaced"]}
  assert whole["replaced"] > 0
  rows = stream([whole])
  assert sorted(rows[:21]) == sorted(rows[21:42]) and rows[:21] != rows[21:42]


def test_processes_that_share_rows_load_the_same(whole, two):
  assert stream(two[1]) == stream([whole])
  assert [one["loaded"] for one in two[1]] == [list(range(8))] * 2
  assert [one["own"] for one in two[1]] == [list(range(8)), []]
  assert {one["replaced"] for one in two[1]} == {whole["replaced"]}


def test_resume_on_other_processes_threads_and_batch_size(whole, two, four):
  parts = two[2], four[1], two[3]
  assert [part[0]["position"] for part in parts] == [16, 32, 48]
  assert list(itertools.chain(*map(stream, parts))) == stream([whole])
