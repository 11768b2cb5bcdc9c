"""What a file of results rests on, and lines that are done once more; no model runs."""

import json
import types

import pytest
from PIL import Image

from lavit_jax.inference import jobs


@pytest.fixture
def job(tmp_path, monkeypatch):
  """Runs a job whose model says how often it was asked about each picture."""
  model = types.SimpleNamespace(folder="one", seed=0, dtype="float32", batch_size=2)
  asked = []

  def serve(model, given):
    asked.extend(own["image"] for own in given)
    missing = [not (tmp_path / own["image"]).is_file() for own in given]
    return [{"error": "no picture"} if m else {"text": "a"} for m in missing]

  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(jobs.requests, "serve", serve)
  monkeypatch.setattr(jobs.model_directory, "identity", lambda folder: folder)
  names = [f"{i}.png" for i in range(5)]
  for i, name in enumerate(names):
    if i not in (1, 3):
      Image.new("RGB", (4, 4), (i, 0, 0)).save(name)
  lines = [json.dumps({"task": "caption", "image": name}) for name in names]
  (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")

  def run(**options):
    asked.clear()
    return jobs.run(model, "in.jsonl", "out.jsonl", **options), list(asked)

  return types.SimpleNamespace(run=run, model=model, folder=tmp_path)


def test_another_model_or_seed_is_refused(job):
  assert job.run() == ({"done": 5, "failed": 2}, [f"{i}.png" for i in range(5)])
  assert job.run() == ({"done": 5, "failed": 2}, [])
  for name, value in (("folder", "two"), ("seed", 1), ("dtype", "bfloat16")):
    before = getattr(job.model, name)
    setattr(job.model, name, value)
    with pytest.raises(ValueError, match="line 1 is of another model or seed"):
      job.run()
    setattr(job.model, name, before)


def test_another_picture_of_the_same_name_is_refused(job):
  job.run()
  Image.new("RGB", (4, 4), (99, 0, 0)).save(job.folder / "2.png")
  with pytest.raises(ValueError, match="line 3 is of another picture"):
    job.run()


def test_failed_lines_are_done_once_more_in_their_places(job):
  job.run()
  Image.new("RGB", (4, 4)).save(job.folder / "3.png")
  assert job.run() == ({"done": 5, "failed": 2}, [])  # only where it is asked for
  assert job.run(retry_failed=True) == ({"done": 5, "failed": 1}, ["1.png", "3.png"])
  lines = (job.folder / "out.jsonl").read_text().splitlines()
  assert [i for i, line in enumerate(lines) if "error" in json.loads(line)] == [1]
  assert job.run(retry_failed=True) == ({"done": 5, "failed": 1}, ["1.png"])


def test_without_a_terminal_a_line_a_minute_is_written(job, monkeypatch, capsys):
  monkeypatch.setattr(jobs.progress, "EVERY", 0.0)
  job.run()
  said = capsys.readouterr().err.splitlines()
  assert len(said) == 5 and said[-1].startswith("5 of 5 requests, ")
  assert said[-1].endswith("2 failed")
