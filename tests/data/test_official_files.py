"""COCO's caption files, VQAv2's question files, LLaVA's list and foreign paths."""

import json
import shutil
import subprocess
import sys

import pytest
import web_data
from test_preparation import ids, plan

from lavit_jax import prepare
from lavit_jax.data import conversion, preparation, records
from lavit_jax.data.sources import coco as coco_source
from lavit_jax.data.sources import folder, jsonl, vqa


def write(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))
  return path


def turns(folder):
  prepared = records.Records(folder)
  found = [prepared[i]["texts"] for i in range(len(prepared))]
  return [[turn for entry in texts for turn in entry["turns"]] for texts in found]


def coco(folder):
  """An annotation file beside its pictures, as COCO unpacks; the third is missing."""
  for i in (1, 2):
    path = folder / "train2017" / f"{i:012d}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(web_data.jpeg(i))
  rows = [{"id": i, "file_name": f"{i:012d}.jpg", "license": i} for i in (1, 2, 3)]
  said = [(1, "one"), (2, "two"), (1, "first"), (3, "three"), (2, "")]
  captions = [{"image_id": i, "id": n, "caption": c} for n, (i, c) in enumerate(said)]
  value = {"info": {}, "images": rows, "annotations": captions}
  return write(folder / "annotations" / "captions_train2017.json", value)


def test_coco_captions_are_one_record_a_picture(tmp_path):
  path = coco(tmp_path)
  manifest = prepare.run(plan("coco", [path], tmp_path / "out"), max_bad=0.5)
  assert manifest["count"] == 2
  assert ids(tmp_path / "out") == ["captions_train2017/1", "captions_train2017/2"]
  assert turns(tmp_path / "out") == [[["", "one"], ["", "first"]], [["", "two"]]]
  report = json.loads((tmp_path / "out" / "report.json").read_text())
  assert report["reasons"]["a missing file"]["count"] == 1
  assert sum(report["bytes"][n] for n in ("kept", "bad")) == path.stat().st_size


def test_other_json_is_no_coco(tmp_path):
  path = write(tmp_path / "a.json", {"images": []})
  with pytest.raises(ValueError, match="expected COCO's captions"):
    plan("coco", [path], tmp_path / "out")
  with pytest.raises(ValueError, match="lists of records are --source=jsonl"):
    plan("coco", [write(tmp_path / "b.json", [])], tmp_path / "out")


def test_vqa_files_are_one_record_a_picture(tmp_path):
  for i in (1, 2):
    path = tmp_path / "train2014" / f"COCO_train2014_{i:012d}.jpg"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(web_data.jpeg(i))
  asked = [(1, 10, "what?"), (2, 20, "how many?"), (1, 11, "where?")]
  questions = [{"image_id": i, "question_id": q, "question": t} for i, q, t in asked]
  answers = [
    {"question_id": 10, "image_id": 1, "multiple_choice_answer": "a cat"},
    {"question_id": 11, "image_id": 1, "answers": [{"answer": a} for a in "xyy"]},
    {"question_id": 20, "image_id": 2, "multiple_choice_answer": "2"},
  ]
  subtype = {"data_subtype": "train2014"}
  given = [
    write(tmp_path / "questions.json", subtype | {"questions": questions}),
    write(tmp_path / "annotations.json", subtype | {"annotations": answers}),
  ]
  prepare.run(plan("vqa", given, tmp_path / "out", image_root=str(tmp_path)))
  assert ids(tmp_path / "out") == ["vqa-train2014/1", "vqa-train2014/2"]
  form = "Question: {} Answer:".format
  assert turns(tmp_path / "out") == [
    [[form("what?"), "a cat"], [form("where?"), "y"]],
    [[form("how many?"), "2"]],
  ]
  with pytest.raises(ValueError, match="questions of .*train2014.* annotations of"):
    plan("vqa", given[:1], tmp_path / "o")
  # The pictures are found beside the files, too.
  prepare.run(plan("vqa", given, tmp_path / "beside"))
  assert ids(tmp_path / "beside") == ids(tmp_path / "out")
  # A changed answer is another input.
  answers[0]["multiple_choice_answer"] = "a dog"
  write(given[1], subtype | {"annotations": answers})
  coco_source.load_json.cache_clear()
  vqa._pictures.cache_clear()
  prepare.run(plan("vqa", given, tmp_path / "beside"))
  assert turns(tmp_path / "beside")[0][0] == [form("what?"), "a dog"]
  # What was made of an input that is gone stays.
  (job,) = plan("vqa", given, tmp_path / "beside").jobs
  assert conversion.stands(job)
  write(given[1], {"annotations": []})
  assert not conversion.stands(job)
  given[1].unlink()
  assert conversion.stands(job)


def test_a_folder_that_is_gone_keeps_its_shard(tmp_path):
  (tmp_path / "in").mkdir()
  (tmp_path / "in/1.jpg").write_bytes(web_data.jpeg(1))
  (tmp_path / "in/1.txt").write_text("one")
  (job,) = plan("folder", [tmp_path / "in"], tmp_path / "out").jobs
  prepare.run(plan("folder", [tmp_path / "in"], tmp_path / "out"))
  shutil.rmtree(tmp_path / "in")
  folder.listing.cache_clear()
  assert conversion.stands(job)


def test_vqa_files_that_do_not_pair_are_named(tmp_path):
  subtype = {"data_subtype": "train2014"}
  asked = [{"image_id": 1, "question_id": 10, "question": "what?"}]
  given = [
    write(tmp_path / "a.json", subtype | {"questions": asked}),
    write(tmp_path / "b.json", subtype | {"annotations": [{"question_id": 10}]}),
  ]
  paths = [str(path) for path in given]
  other = write(tmp_path / "other.json", {"info": 1})
  unused = vqa.parts([*paths, str(other)], 10).unused
  assert [item.key for item in unused] == [str(other)]
  second = write(tmp_path / "c.json", subtype | {"questions": asked})
  with pytest.raises(ValueError, match="one file of questions for .*a.json and .*c.js"):
    vqa.parts([*paths, str(second)], 10)
  wrong = write(tmp_path / "w.json", subtype | {"annotations": [{"answers": []}]})
  with pytest.raises(ValueError, match="VQAv2's questions .*: 'question_id'.; get"):
    vqa.parts([paths[0], str(wrong)], 10)


def test_llava_s_list_is_cut_and_grows(tmp_path):
  (tmp_path / "a.jpg").write_bytes(web_data.jpeg(0))
  talk = [{"from": "human", "value": "q [{\n"}, {"from": "gpt", "value": "a"}]
  row = {"id": "0", "image": "a.jpg", "conversations": talk}
  path = tmp_path / "llava.json"
  for number, parts in ((25, 3), (41, 5)):
    path.write_text(json.dumps([row] * number, indent=1))
    asked = plan("jsonl", [path], tmp_path / "out", 10)
    assert len(asked.jobs) == parts
    assert prepare.run(asked)["count"] == number
    assert len(set(ids(tmp_path / "out"))) == number
  assert not list(jsonl.rows(asked.jobs[-1].part))[0].cut


@pytest.mark.parametrize(
  "name",
  [
    *("/home/someone/data/coco/train2017/1.jpg", "coco/train2017/1.jpg", "1.jpg"),
    *("D:\\pictures\\train2017\\1.jpg", "./train2017/1.jpg", "file:///x/1.jpg"),
  ],
)
def test_paths_of_another_machine_are_found_below_the_image_root(tmp_path, name):
  root = tmp_path / "pictures" / "train2017"
  root.mkdir(parents=True)
  (root / "1.jpg").write_bytes(web_data.jpeg(0))
  base = root if name in ("1.jpg", "file:///x/1.jpg") else root.parent
  path = web_data.lines(tmp_path / "a" / "a.jsonl", [{"image": name, "text": "x"}])
  prepare.run(plan("jsonl", [path], tmp_path / "out", image_root=str(base)))
  assert turns(tmp_path / "out") == [[["", "x"]]]


def test_an_absolute_path_inside_the_folder_needs_no_flag(tmp_path):
  (tmp_path / "1.jpg").write_bytes(web_data.jpeg(0))
  rows = [{"image": str(tmp_path / "1.jpg"), "text": "x"}]
  rows.append({"image": "/etc/passwd", "text": "y"})
  path = web_data.lines(tmp_path / "a.jsonl", rows)
  asked = plan("jsonl", [path], tmp_path / "out")
  with pytest.raises(ValueError, match="a path outside its folder(?s:.)*--image_root"):
    prepare.run(asked)
  assert prepare.run(asked, max_bad=0.9)["count"] == 1


def test_pictures_alone_are_kept_and_told(tmp_path):
  for i in range(3):
    (tmp_path / "photos" / f"class{i}").mkdir(parents=True)
    (tmp_path / "photos" / f"class{i}" / "n.jpg").write_bytes(web_data.jpeg(i))
  flags = ("--source=folder", f"--input={tmp_path}/photos", f"--target={tmp_path}/out")
  command = [sys.executable, "-m", "lavit_jax.prepare", *flags, "--processes=1"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert "3 pictures have no text: only stages 1 and 1b use them" in done.stdout
  prepared = records.Records(tmp_path / "out")
  assert prepared.image.all() and not prepared.entries.any()


def test_a_downloaded_set_with_failures_and_metadata(tmp_path):
  """What img2dataset leaves: tars, their tables of addresses, and statistics."""
  web_data.tars(tmp_path / "cc", 2, 3)
  columns = {
    "url": ["u"] * 4,
    "caption": ["x"] * 4,
    "status": ["success"] * 3 + ["failed_to_download"],
    "width": [40, 40, 40, None],
  }
  web_data.parquet(tmp_path / "cc" / "00000.parquet", columns, 4)
  (tmp_path / "cc" / "00000_stats.json").write_text("{}")
  prepare.run(plan("webdataset", [tmp_path / "cc"], tmp_path / "out"))
  told = preparation.summary(tmp_path / "out")
  assert "6 good records, 0 bad, 2 left out" in told and "00000" in told
  with pytest.raises(ValueError, match="a row about a picture that is not there"):
    prepare.run(plan("parquet", [tmp_path / "cc"], tmp_path / "texts"))


def test_null_columns_of_failed_downloads_do_not_stop_a_run(tmp_path):
  columns = {
    "jpg": [web_data.jpeg(i) if i % 2 else None for i in range(10)],
    "txt": ["x" if i % 4 else None for i in range(10)],
  }
  path = web_data.parquet(tmp_path / "a.parquet", columns, 4)
  manifest = prepare.run(plan("parquet", [path], tmp_path / "out"))
  assert manifest["count"] == 5
  report = json.loads((tmp_path / "out" / "report.json").read_text())
  assert report["reasons"]["a row without picture"]["left_out"]
  assert sum(report["bytes"].values()) == path.stat().st_size
