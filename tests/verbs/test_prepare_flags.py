"""Flags of `prepare`: none is without effect, and every way in goes by the command."""

import io
import json
import os
import pathlib
import subprocess
import sys

import pytest
import web_data

from lavit_jax import prepare
from lavit_jax.data import preparation, progress, records
from lavit_jax.data.sources import fields

ROOT = pathlib.Path(__file__).parents[2]


def command(*flags, **environment):
  return subprocess.run(
    [sys.executable, "-m", "lavit_jax.prepare", *map(str, flags)],
    env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    capture_output=True,
    text=True,
  )


def test_an_input_without_its_kind_is_refused(tmp_path):
  for more in ((), ("--dry_run",)):
    done = command(f"--input={tmp_path}", f"--target={tmp_path}/out", *more)
    assert done.returncode == 1 and "--input" in done.stderr
    assert done.stderr.startswith("error: expected flags with an effect")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  "given,source,useless",
  [
    ({"input"}, "toy", "--input"),
    ({"input", "train"}, "webdataset", "--train"),
    ({"input", "records_per_shard"}, "webdataset", "--records_per_shard"),
    ({"input", "image_root"}, "tfds", "--image_root"),
    ({"input", "text_field"}, "vqa", "--text_field"),
    ({"dry_run"}, "toy", "--dry_run"),
    ({"dry_run", "max_bad"}, "jsonl", "--max_bad"),
    ({"inspect", "input"}, "jsonl", "--input"),
    ({"beam", "processes"}, "jsonl", "--processes"),
    ({"beam", "part"}, "jsonl", "--part"),
  ],
)
def test_flags_without_effect_are_refused(given, source, useless):
  with pytest.raises(ValueError, match=f"got {useless} without"):
    prepare.check_flags(given, source)


def test_flags_with_effect_pass():
  prepare.check_flags({"source", "input", "image_field", "part"}, "jsonl")
  prepare.check_flags({"train", "test"}, "toy")
  prepare.check_flags({"inspect"}, "toy")
  prepare.check_flags({"source", "input", "dry_run", "holdout"}, "webdataset")


def texts(folder):
  prepared = records.Records(folder)
  found = [prepared[i]["texts"] for i in range(len(prepared))]
  return [entries[0]["turns"][0][1] for entries in found if entries]


@pytest.mark.parametrize("source", ["webdataset", "folder", "jsonl", "parquet"])
def test_fields_choose_the_text_and_the_picture_of_every_source(tmp_path, source):
  mine, other = web_data.jpeg(1), web_data.jpeg(2)
  members = [
    ("0.image.jpg", other),
    ("0.crop.jpg", mine),
    ("0.txt", b"the old caption"),
    ("0.recaption.txt", b"the new caption"),
  ]
  row = {"image": "0.image.jpg", "crop": "0.crop.jpg", "caption": "the old caption"}
  row["recaption"] = "the new caption"
  given, target = tmp_path / "in", tmp_path / "out"
  if source == "webdataset":
    web_data.tar(given / "0.tar", members)
  elif source == "parquet":
    columns = {k: [v] for k, v in row.items() | {"image": other, "crop": mine}.items()}
    columns |= {"image": [other], "crop": [mine]}
    web_data.parquet(given / "0.parquet", columns, 1)
  else:
    given.mkdir()
    for name, data in members:
      (given / name).write_bytes(data)
  if source == "jsonl":
    web_data.lines(given / "0.jsonl", [row])
  naming = fields.Fields("crop", "recaption")
  plan = preparation.plan(source, [str(given)], str(target), naming, 10)
  prepare.run(plan)
  assert texts(target) == ["the new caption"]
  assert records.Records(target)[0]["image"] == mine


def test_a_text_field_may_be_one_of_the_json_of_a_tar(tmp_path):
  facts = json.dumps({"caption": "old", "recaption": "new"}).encode()
  members = [("0.jpg", web_data.jpeg(0)), ("0.txt", b"old"), ("0.json", facts)]
  web_data.tar(tmp_path / "0.tar", members)
  naming, given = fields.Fields("", "recaption"), [str(tmp_path / "0.tar")]
  prepare.run(preparation.plan("webdataset", given, f"{tmp_path}/out", naming, 1))
  assert texts(tmp_path / "out") == ["new"]
  naming = fields.Fields("", "misspelt")
  with pytest.raises(ValueError, match="a row without text"):
    prepare.run(preparation.plan("webdataset", given, f"{tmp_path}/o", naming, 1))


def test_the_command_with_braces_filters_and_a_holdout(tmp_path):
  web_data.tars(tmp_path / "in", 3, 8)
  done = command(
    *("--source=webdataset", f"--input={tmp_path}/in/{{00000,00001}}.tar"),
    *(f"--input={tmp_path}/in/00002.tar", f"--target={tmp_path}/out"),
    *("--filter=size>=20,status=success", "--holdout=0.3", "--processes=1"),
  )
  assert done.returncode == 0, done.stderr
  sides = [records.Records(tmp_path / "out" / n) for n in ("train", "validation")]
  assert sum(map(len, sides)) == 24 and all(len(side) > 2 for side in sides)


def test_the_command_in_parts_by_a_scheduler(tmp_path):
  web_data.tars(tmp_path / "in", 3, 1)
  given = ("--source=webdataset", f"--input={tmp_path}/in", f"--target={tmp_path}/out")
  told = []
  for i in range(2):
    done = command(
      *given, "--part=auto/2", "--processes=1", JOB_COMPLETION_INDEX=f"{i}"
    )
    assert done.returncode == 0, done.stderr
    told.append(done.stdout)
  assert "part 0/2 of" in told[0] and "others are still missing" in told[0]
  assert "3 records, 3 with a picture, in 3 shards" in told[1]
  done = command(*given, "--part=2/2")
  assert done.returncode == 1 and "expected parts 0/2 to 1/2" in done.stderr


def test_a_log_gets_a_line_a_minute(monkeypatch):
  clock, log = iter([0.0, 30.0, 70.0, 90.0, 131.0]), io.StringIO()
  monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
  told = progress.Progress("parts", 10, log)
  for i in range(4):
    told.step(f"{i} bad")
  told.close()
  assert log.getvalue().splitlines() == [
    "2 of 10 parts, 1.71 a minute, 5 min left, 1 bad",
    "4 of 10 parts, 1.83 a minute, 3 min left, 3 bad",
  ]
