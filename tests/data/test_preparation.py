"""Folders in the making: parts by identity, repair, additions, shares, lost bytes."""

import gzip
import json
import os
import random

import numpy as np
import pytest
import web_data

from lavit_jax import prepare
from lavit_jax.data import choosing, conversion, preparation, records, shares
from lavit_jax.data.sources import fields


def plan(source, given, target, per_shard=100, choice=None, **names):
  given = [str(one) for one in given]
  naming = fields.Fields(**names)
  return preparation.plan(
    source, given, str(target), naming, per_shard, choice or choosing.Choice()
  )


def contents(folder):
  files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")
  return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def ids(folder):
  prepared = records.Records(folder)
  return [prepared[i]["id"] for i in range(len(prepared))]


def pictures(folder):
  prepared = records.Records(folder)
  return sorted(prepared[i]["image"] for i in range(len(prepared)))


def test_tars_are_added_to_a_finished_folder(tmp_path):
  web_data.tars(tmp_path / "in", 2, 3)
  prepare.run(plan("webdataset", [tmp_path / "in"], tmp_path / "out"))
  before = contents(tmp_path / "out")
  web_data.tar(tmp_path / "in" / "00000a.tar", web_data.pair(90))
  web_data.tar(tmp_path / "in" / "00002.tar", web_data.pair(91))
  manifest = prepare.run(plan("webdataset", [tmp_path / "in"], tmp_path / "out"))
  assert manifest["count"] == 8
  after = contents(tmp_path / "out")
  stays = [name for name in before if name.endswith((".array_record", ".npz"))]
  parts = [name for name in stays if name != "index.npz"]
  assert parts and all(after[name] == before[name] for name in parts)
  prepare.run(plan("webdataset", [tmp_path / "in"], tmp_path / "whole"))
  assert after == contents(tmp_path / "whole")


def test_new_inputs_alone_are_added_too(tmp_path):
  web_data.tars(tmp_path / "a", 1, 2)
  web_data.tars(tmp_path / "b", 1, 2, start=5)
  prepare.run(plan("webdataset", [tmp_path / "a"], tmp_path / "out"))
  prepare.run(plan("webdataset", [tmp_path / "b"], tmp_path / "out"))
  assert ids(tmp_path / "out") == [
    *("00000/00000", "00000/00001", "b/00000/00005", "b/00000/00006")
  ]
  rows = web_data.lines(tmp_path / "words.jsonl", [{"text": "a document"}])
  manifest = prepare.run(plan("jsonl", [rows], tmp_path / "out"))
  assert manifest["count"] == 5 and manifest["entries"]["text"] == 1


@pytest.mark.parametrize("harm", ["lost", "flipped", "cut", "index", "report"])
def test_a_harmed_shard_is_made_again(tmp_path, harm):
  web_data.tars(tmp_path / "in", 3, 2)
  asked = plan("webdataset", [tmp_path / "in"], tmp_path / "out")
  prepare.run(asked)
  expected = contents(tmp_path / "out")
  job = asked.jobs[1]
  place = {"index": job.index, "report": job.report}.get(harm, job.shard)
  data = bytearray(place.read_bytes())
  if harm == "lost":
    place.unlink()
  elif harm == "cut":
    place.write_bytes(bytes(data[: len(data) // 2]))
  else:
    data[len(data) // 2] ^= 1
    place.write_bytes(bytes(data))
  kept = asked.jobs[0].shard.stat().mtime
  prepare.run(asked)
  assert contents(tmp_path / "out") == expected
  assert asked.jobs[0].shard.stat().mtime == kept


def test_a_replaced_tar_is_made_again(tmp_path):
  web_data.tars(tmp_path / "in", 2, 2)
  path = tmp_path / "in" / "00001.tar"
  time = path.stat().st_mtime_ns
  prepare.run(plan("webdataset", [tmp_path / "in"], tmp_path / "out"))
  web_data.tar(path, [m for seed in (70, 71) for m in web_data.pair(seed)])
  os.utime(path, ns=(time, time))
  prepare.run(plan("webdataset", [tmp_path / "in"], tmp_path / "out"))
  seeds = (0, 1, 70, 71)
  assert pictures(tmp_path / "out") == sorted(web_data.jpeg(s) for s in seeds)


def test_a_replaced_picture_of_a_folder_is_there_once(tmp_path):
  folder = tmp_path / "photos"
  folder.mkdir()
  for seed, name in enumerate("bdfh"):
    (folder / f"{name}.jpg").write_bytes(web_data.jpeg(seed))
  prepare.run(plan("folder", [folder], tmp_path / "out", 2))
  (folder / "b.jpg").rename(folder / "z.jpg")  # every later position shifts
  (folder / "e.jpg").write_bytes(web_data.jpeg(9))
  prepare.run(plan("folder", [folder], tmp_path / "out", 2))
  seeds = (0, 1, 2, 3, 9)
  assert pictures(tmp_path / "out") == sorted(web_data.jpeg(s) for s in seeds)
  names = [name.split("/")[-1][0] for name in ids(tmp_path / "out")]
  assert sorted(names) == list("defhz")


def test_lines_that_are_added_or_taken_away(tmp_path):
  rows = [{"text": f"document {i:03d}"} for i in range(40)]
  path, words = (
    tmp_path / "set.jsonl",
    lambda: sorted(
      records.Records(tmp_path / "out")[i]["texts"][0]["turns"][0][1]
      for i in range(len(records.Records(tmp_path / "out")))
    ),
  )
  for number in (25, 40, 12):
    web_data.lines(path, rows[:number])
    asked = plan("jsonl", [path], tmp_path / "out", 10)
    prepare.run(asked)
    assert words() == [row["text"] for row in rows[:number]]
  files = {p.name for p in (tmp_path / "out").glob("*.array_record")}
  assert files == {job.file for job in asked.jobs}


def test_shares_make_one_folder_in_any_order_with_kills(tmp_path):
  web_data.tars(tmp_path / "in", 7, 2)
  prepare.run(plan("webdataset", [tmp_path / "in"], tmp_path / "expected"))
  target, chance = tmp_path / "out", random.Random(0)
  share = lambda i: shares.Share(i, 4)
  for _ in range(20):  # a share that dies between two parts, or inside one
    asked = plan("webdataset", [tmp_path / "in"], target)
    run = preparation.Run(asked, share(chance.randrange(4)))
    for job in run.own[: chance.randrange(3)]:
      conversion.ensure(job)
    dead = run.own[-1].shard
    if chance.random() < 0.5:
      dead.parent.joinpath(f"{dead.name}.host.7.tmp").write_bytes(b"half")
    run.close()
  results = []
  for i in (2, 0, 3, 1):
    asked = plan("webdataset", [tmp_path / "in"], target)
    results.append(prepare.run(asked, share=share(i)))
  assert results[-1]["count"] == 14
  assert contents(target) == contents(tmp_path / "expected")
  asked.jobs[3].shard.unlink()
  web_data.tars(tmp_path / "in", 9, 2)
  for i in range(4):
    asked = plan("webdataset", [tmp_path / "in"], target)
    prepare.run(asked, share=share(i))
  prepare.run(plan("webdataset", [tmp_path / "in"], tmp_path / "all"))
  assert contents(target) == contents(tmp_path / "all")


def test_shares_run_beside_each_other_but_not_twice(tmp_path):
  web_data.tars(tmp_path / "in", 2, 1)
  asked = plan("webdataset", [tmp_path / "in"], tmp_path / "out")
  one = preparation.Run(asked, shares.Share(0, 2))
  other = preparation.Run(asked, shares.Share(1, 2))
  for share in (shares.Share(1, 2), shares.ALL):
    with pytest.raises(ValueError, match="another prepare at work"):
      preparation.Run(asked, share)
  one.close()
  other.close()


@pytest.mark.parametrize(
  "text,environment,expected",
  [
    ("", {}, (0, 1)),
    ("3/16", {}, (3, 16)),
    ("auto", {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "8"}, (5, 8)),
    (
      "auto",
      {
        "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_ARRAY_TASK_MIN": "1",
        "SLURM_ARRAY_TASK_COUNT": "4",
      },
      (1, 4),
    ),
    ("auto", {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}, (3, 4)),
    ("auto/16", {"JOB_COMPLETION_INDEX": "7"}, (7, 16)),
  ],
)
def test_parts_by_flag_and_by_scheduler(text, environment, expected):
  found = shares.parse(text, environment)
  assert (found.index, found.of) == expected


@pytest.mark.parametrize("text", ["16/16", "x", "3", "auto", "1/0"])
def test_parts_that_are_none_are_refused(text):
  with pytest.raises(ValueError, match="expected (parts|--part)"):
    shares.parse(text, {})


def test_half_of_the_tars_cut_to_a_quarter_stop_the_run(tmp_path):
  web_data.tars(tmp_path / "in", 20, 12)
  for path in sorted((tmp_path / "in").glob("*.tar"))[::2]:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 4])
  asked = plan("webdataset", [tmp_path / "in"], tmp_path / "out")
  with pytest.raises(ValueError, match="of the bytes bad|bad records") as stopped:
    prepare.run(asked, max_bad=0.3)
  report = json.loads((tmp_path / "out" / "report.json").read_text())
  size = report["bytes"]
  share = (size["bad"] + size["lost"]) / (size["kept"] + size["bad"] + size["lost"])
  assert 0.35 < share < 0.4 and "bytes" in str(stopped.value)
  here = sum(p.stat().st_size for p in (tmp_path / "in").glob("*.tar"))
  assert size["kept"] + size["bad"] + size["left_out"] == here


def test_one_cut_file_among_many_is_named_and_passes(tmp_path):
  web_data.tars(tmp_path / "in", 30, 4)
  path = tmp_path / "in" / "00007.tar"
  path.write_bytes(path.read_bytes()[:3000])
  asked = plan("webdataset", [tmp_path / "in"], tmp_path / "out")
  with pytest.raises(ValueError, match="of the bytes bad"):
    prepare.run(asked, max_bad=0.02)
  assert prepare.run(asked, max_bad=0.04)["count"] > 116


@pytest.mark.parametrize("alone", [True, False])
def test_a_cut_gz_stops_the_run(tmp_path, alone):
  rng = np.random.default_rng(0)
  rows = [json.dumps({"text": str(rng.random())}).encode() for _ in range(500)]
  data = gzip.compress(b"\n".join(rows))
  for i in range(1 if alone else 3):
    (tmp_path / f"{i}.jsonl.gz").write_bytes(data if i else data[: len(data) // 2])
  asked = plan("jsonl", [tmp_path], tmp_path / "out")
  with pytest.raises(ValueError, match="of the bytes bad"):
    prepare.run(asked, max_bad=0.15)


def test_tars_without_end_marks_are_no_loss_among_their_like(tmp_path):
  web_data.tars(tmp_path / "in", 3, 2)
  for path in (tmp_path / "in").glob("*.tar"):
    data = path.read_bytes().rstrip(b"\0")
    path.write_bytes(data + bytes(-len(data) % 512))
  asked = plan("webdataset", [tmp_path / "in"], tmp_path / "out")
  manifest = prepare.run(asked, max_bad=0.0)
  assert manifest["count"] == 6
  report = json.loads((tmp_path / "out" / "report.json").read_text())
  assert report["reasons"]["a tar without end mark"]["count"] == 3


def test_a_folder_of_an_earlier_version_is_refused(tmp_path):
  web_data.tars(tmp_path / "in", 1, 1)
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "prepare.json").write_text('{"source": "webdataset"}')
  with pytest.raises(ValueError, match="an earlier one's.*another --target"):
    plan("webdataset", [tmp_path / "in"], tmp_path / "out")
