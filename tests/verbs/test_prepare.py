"""`prepare`: the same bytes however it runs, restarts, and the limit of bad records."""

import hashlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
import web_data

from lavit_jax import prepare
from lavit_jax.data import conversion, dry_run, preparation, records
from lavit_jax.data.sources import fields
from lavit_jax.toy import prepared

ROOT = pathlib.Path(__file__).parents[2]


def jobs_of(pattern, target, per_shard=100):
  given = [str(pattern)]
  return preparation.plan("webdataset", given, str(target), fields.Fields(), per_shard)


def contents(folder):
  """Checksums of all files of a finished folder but the lock."""
  files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")
  return {
    str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
    for p in files
  }


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tars")
  return web_data.tars(folder, 4, 6)


@pytest.fixture(scope="module")
def expected(tars, tmp_path_factory):
  target = tmp_path_factory.mktemp("expected") / "out"
  prepare.run(jobs_of(tars, target))
  return contents(target)


def test_worker_processes_change_no_byte(tars, expected, tmp_path):
  prepare.run(jobs_of(tars, tmp_path / "out"), processes=2)
  assert contents(tmp_path / "out") == expected
  assert len(expected) == 4 * 3 + 4  # no temporary file is left


def test_finished_shards_are_not_done_again(tars, expected, tmp_path, monkeypatch):
  jobs = jobs_of(tars, tmp_path / "out")
  preparation.Run(jobs).close()
  conversion.convert(jobs.jobs[2])
  (tmp_path / "out" / "webdataset-00000.array_record.7.tmp").touch()
  done, convert = [], conversion.convert
  monkeypatch.setattr(
    conversion, "convert", lambda job: (done.append(job.part.name), convert(job))
  )
  with pytest.raises(ValueError, match="unfinished"):
    records.Records(tmp_path / "out")
  prepare.run(jobs)
  assert done == ["00000", "00001", "00003"]
  prepare.run(jobs)
  assert len(done) == 3 and contents(tmp_path / "out") == expected


def test_other_settings_do_not_continue_a_run(tars, tmp_path):
  prepare.run(jobs_of(tars, tmp_path / "out"))
  other = fields.Fields(text="recaption")
  plan = preparation.plan("webdataset", [tars], str(tmp_path / "out"), other, 100)
  with pytest.raises(ValueError, match="continue the run.*text differ"):
    prepare.run(plan)
  records.write_shards(prepared.toy_records("novel", 2), tmp_path / "toy", "toy", 2)
  with pytest.raises(ValueError, match="new folder, got other records"):
    prepare.run(jobs_of(tars, tmp_path / "toy"))


def test_two_runs_do_not_share_a_folder(tars, tmp_path):
  first = preparation.Run(jobs_of(tars, tmp_path / "out"))
  with pytest.raises(ValueError, match="another prepare at work"):
    preparation.Run(jobs_of(tars, tmp_path / "out"))
  first.close()
  preparation.Run(jobs_of(tars, tmp_path / "out")).close()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stopped_run_lets_go_of_its_folder(tmp_path, monkeypatch, processes):
  monkeypatch.setattr(prepare, "ENOUGH", 2)
  web_data.tar(tmp_path / "in" / "0.tar", [("a.jpg", b"x"), ("b.jpg", b"x")])
  web_data.tar(tmp_path / "in" / "1.tar", web_data.pair(1))
  jobs = jobs_of(tmp_path / "in", tmp_path / "out")
  with pytest.raises(ValueError, match="got 2 of") as stopped:
    prepare.run(jobs, processes=processes)
  # An error that is kept, as a notebook does, keeps all that its frames hold.
  assert stopped.tb is not None
  assert prepare.run(jobs, max_bad=1.0, processes=processes)["count"] == 1


def test_a_refused_run_lets_go_of_the_folder(tars, tmp_path):
  jobs = jobs_of(tars, tmp_path / "out")
  prepare.run(jobs)
  other = fields.Fields(text="recaption")
  plan = preparation.plan("webdataset", [tars], str(tmp_path / "out"), other, 100)
  with pytest.raises(ValueError, match="continue the run") as refused:
    prepare.run(plan)
  assert refused.tb is not None
  assert prepare.run(jobs)["count"] == 24


def test_too_many_bad_records_stop_the_run_and_a_higher_limit_goes_on(tmp_path):
  good = [m for i in range(49) for m in web_data.pair(i)]
  bad = [("bad.jpg", b"nonsense"), ("bad.txt", b"x")]
  web_data.tar(tmp_path / "in" / "0.tar", good + bad)
  jobs = jobs_of(tmp_path / "in", tmp_path / "out")
  with pytest.raises(ValueError, match="(?s)at most 1.00% .*got 1 of 50.*--max_bad"):
    prepare.run(jobs)
  report = (tmp_path / "out" / "report.json").read_text()
  assert "no known picture format" in report and "0/bad" in report
  with pytest.raises(ValueError, match="unfinished"):
    records.Records(tmp_path / "out")
  assert prepare.run(jobs, max_bad=0.02)["count"] == 49


def test_many_bad_records_stop_a_run_before_its_end(tars, tmp_path, monkeypatch):
  monkeypatch.setattr(prepare, "ENOUGH", 2)
  web_data.tar(tmp_path / "in" / "0.tar", [("a.jpg", b"x"), ("b.jpg", b"x")])
  web_data.tar(tmp_path / "in" / "1.tar", web_data.pair(1))
  jobs = jobs_of(tmp_path / "in", tmp_path / "out")
  with pytest.raises(ValueError, match="got 2 of 2"):
    prepare.run(jobs)
  assert not jobs.jobs[1].report.exists()


def test_dry_run_shows_records_and_writes_nothing(tars, tmp_path):
  told = dry_run.describe(jobs_of(tars, tmp_path / "out"))
  assert "4 parts of 4 inputs" in told and "24 good records, 0 bad" in told
  assert "00000/00000  40x30, " in told and web_data.caption(0) in told
  assert not (tmp_path / "out").exists()


def command(tars, target, *more):
  return [
    *(sys.executable, "-m", "lavit_jax.prepare", "--source=webdataset"),
    *(f"--input={tars}", f"--target={target}", "--processes=2", *more),
  ]


def test_kill_9_at_random_moments_loses_and_doubles_nothing(tars, expected, tmp_path):
  chance, environment = random.Random(0), dict(os.environ, PYTHONPATH=str(ROOT))
  for _ in range(2):
    run = subprocess.Popen(
      command(tars, tmp_path / "out"), env=environment, stderr=subprocess.PIPE
    )
    target = tmp_path / "out" / "prepare.json"
    while run.poll() is None and not target.exists():
      time.sleep(0.01)
    time.sleep(chance.random())
    run.send_signal(signal.SIGKILL)
    run.wait()
  done = subprocess.run(
    command(tars, tmp_path / "out"), env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert "24 records, 24 with a picture, in 4 shards" in done.stdout
  assert contents(tmp_path / "out") == expected


def test_mistakes_end_in_one_line(tmp_path):
  done = subprocess.run(
    command(tmp_path / "*.tar", tmp_path / "out"),
    env=dict(os.environ, PYTHONPATH=str(ROOT)),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1 and done.stderr.startswith("error: expected files")
  assert "Traceback" not in done.stderr
