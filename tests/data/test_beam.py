"""`prepare` on Apache Beam writes the same bytes as local workers."""

import pytest
import web_data

from lavit_jax import prepare
from lavit_jax.data import conversion, preparation
from lavit_jax.data.sources import fields

beam = pytest.importorskip("apache_beam", reason="needs launch/requirements-beam.txt")


def test_direct_runner_writes_the_same_bytes(tmp_path):
  pattern = web_data.tars(tmp_path / "in", 3, 4)
  web_data.tar(tmp_path / "in" / "bad.tar", [("a.jpg", b"x"), ("a.txt", b"x")])
  for name, options in (("local", ""), ("beam", "--runner=DirectRunner")):
    target = str(tmp_path / name)
    plan = preparation.plan("webdataset", [pattern], target, fields.Fields(), 10)
    prepare.run(plan, max_bad=0.1, beam=options)
  local, other = (
    {
      str(path.relative_to(tmp_path / name)): path.read_bytes()
      for path in (tmp_path / name).rglob("*")
      if path.is_file()
    }
    for name in ("local", "beam")
  )
  assert local == other and len(local) == 4 * 3 + 5


def test_a_started_run_continues_on_beam(tmp_path):
  pattern = web_data.tars(tmp_path / "in", 2, 2)
  given = [pattern], str(tmp_path / "out"), fields.Fields(), 10
  plan = preparation.plan("webdataset", *given)
  jobs = plan.jobs
  preparation.Run(plan).close()
  conversion.convert(jobs[0])
  stamp = jobs[0].shard.stat().mtime
  prepare.run(plan, beam="--runner=DirectRunner")
  assert jobs[0].shard.stat().mtime == stamp and jobs[1].report.exists()
