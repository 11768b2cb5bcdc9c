"""Every source: what becomes a record, and what is counted instead."""

import base64
import contextlib
import gzip
import json

import numpy as np
import pytest
import web_data

from lavit_jax.data import bad, conversion, preparation, records
from lavit_jax.data.sources import fields, files, jsonl, parts, tar, webdataset

FIELDS = fields.Fields()


def convert(source, inputs, target, naming=FIELDS, per_shard=100, **more):
  """Converts all parts; returns the records and the counts by reason."""
  plan = preparation.plan(
    source, [str(i) for i in inputs], str(target), naming, per_shard, **more
  )
  with contextlib.closing(preparation.Run(plan)) as run:
    for job in run.own:
      conversion.ensure(job)
    tally = run.tally()
    counted = tally.as_dict()["bytes"]
    size = sum(j.part.size for j in run.jobs) + sum(item[3] for item in run.unused)
    assert counted["kept"] + counted["bad"] + counted["left_out"] == size
    if not tally.good:
      with pytest.raises(ValueError, match="expected records, got none"):
        run.finish(1.0)
      return [], tally
    run.finish(1.0)
  prepared = records.Records(target)
  return [prepared[i] for i in range(len(prepared))], tally


def counts(tally):
  return {reason: entry["count"] for reason, entry in tally.reasons.items()}


def texts(record):
  return [turn for entry in record["texts"] for turn in entry["turns"]]


def test_tars_become_shards_in_order(tmp_path):
  pattern = web_data.tars(tmp_path / "in", 2, 3)
  found, tally = convert("webdataset", [pattern], tmp_path / "out")
  assert [r["id"] for r in found] == [f"{i // 3:05d}/{i:05d}" for i in range(6)]
  assert found[4]["image"] == web_data.jpeg(4)
  assert texts(found[4]) == [["", web_data.caption(4)]]
  assert (tally.good, tally.bad) == (6, 0)


def test_every_member_of_a_bad_tar_is_accounted_for(tmp_path):
  jpeg = web_data.jpeg(0)
  members = [
    ("split.jpg", jpeg),
    *web_data.pair(1, "good"),
    ("split.txt", b"its text stands further on"),
    ("alone.jpg", jpeg),
    ("words.txt", b"without picture"),
    ("from_json.png", web_data.jpeg(2, form="PNG")),
    ("from_json.json", b'{"caption": "of the json"}'),
    ("empty.jpg", jpeg),
    ("empty.txt", b" \n"),
    ("latin.jpg", jpeg),
    ("latin.txt", "ü".encode("latin-1")),
    ("long.jpg", jpeg),
    ("long.txt", b"x" * 10_001),
    ("cut.jpg", jpeg[:300]),
    ("cut.txt", b"x"),
    ("zero.jpg", b""),
    ("zero.txt", b"x"),
    ("speck.png", web_data.jpeg(0, 1, 1, "PNG")),
    ("speck.txt", b"x"),
    ("../escape.jpg", jpeg),
    ("/etc/escape.txt", b"x"),
    ("good.jpg", jpeg),
    ("two.jpg", jpeg),
    ("two.png", jpeg),
    ("two.txt", b"x"),
    ("array.npy", b"x"),
  ]
  path = web_data.tar(tmp_path / "set.tar", members)
  found, tally = convert("webdataset", [path], tmp_path / "out")
  assert [r["id"] for r in found] == [
    *("set/split", "set/good", "set/alone", "set/from_json", "set/empty"),
    *("set/../escape", "set/two"),
  ]
  assert texts(found[3]) == [["", "of the json"]]
  assert [len(texts(r)) for r in found] == [1, 1, 0, 1, 0, 0, 1]
  assert counts(tally) == {
    "a text without picture": 2,
    "a text that is not UTF-8": 1,
    "a text too long": 1,
    "a damaged picture": 1,
    "a picture of zero bytes": 1,
    "a picture too small": 1,
    "a duplicate key": 1,
    "a second picture of its key": 1,
    bad.OTHER_KIND: 1,
  }
  assert tally.bad == 4  # what other tools read is left out, but not bad
  assert tally.reasons["a text too long"]["examples"] == [
    "set/long: 10001 characters, 10000 allowed"
  ]


def test_a_damaged_header_costs_its_own_members_only(tmp_path):
  path = web_data.tar(
    tmp_path / "set.tar", [m for i in range(4) for m in web_data.pair(i)]
  )
  data = bytearray(path.read_bytes())
  with path.open("rb") as file:
    places = {item.key: item.found for item in tar.members(file, len(data))}
  start = places["00001.jpg"][0] - 512
  data[start : start + 400] = b"\x07" * 400
  path.write_bytes(data)
  found, tally = convert("webdataset", [path], tmp_path / "out")
  assert [r["id"][-1] for r in found] == ["0", "2", "3"]
  assert counts(tally) == {"a hole in a tar": 1, "a text without picture": 1}


def test_a_tar_cut_short_keeps_what_is_whole(tmp_path):
  members = [m for i in range(6) for m in web_data.pair(i)]
  path = web_data.tar(tmp_path / "set.tar", members)
  with path.open("rb") as file:
    found = tar.members(file, path.stat().st_size)
    places = {item.key: item.found for item in found}
  end = places["00003.txt"][0] + 2
  path.write_bytes(path.read_bytes()[:end])
  found, tally = convert("webdataset", [path], tmp_path / "out")
  assert [len(texts(r)) for r in found] == [1, 1, 1, 0]
  assert counts(tally)["a tar cut short"] == 1
  (tmp_path / "none.tar").write_bytes(b"")
  assert counts(convert("webdataset", [tmp_path / "none.tar"], tmp_path / "o2")[1])


def test_folder_of_pictures_with_texts(tmp_path):
  folder = tmp_path / "photos"
  (folder / "sub").mkdir(parents=True)
  for i, name in enumerate(("a", "sub/b", "c")):
    (folder / f"{name}.JPG").write_bytes(web_data.jpeg(i))
    (folder / f"{name}.txt").write_text(web_data.caption(i))
  (folder / "d.png").write_bytes(web_data.jpeg(4, form="PNG"))
  (folder / "e.txt").write_text("no picture")
  (folder / "f.md").write_text("nothing")
  found, tally = convert("folder", [folder], tmp_path / "out", per_shard=4)
  assert [r["id"] for r in found] == [
    *("photos/a.JPG", "photos/c.JPG", "photos/d.png", "photos+00001/sub/b.JPG")
  ]
  assert [len(texts(r)) for r in found] == [1, 1, 0, 1]
  assert counts(tally) == {"a text without picture": 1, bad.OTHER_KIND: 1}


def test_folder_with_a_captions_file(tmp_path):
  folder = tmp_path / "photos"
  folder.mkdir()
  (folder / "a.jpg").write_bytes(web_data.jpeg(1))
  web_data.lines(
    folder / "metadata.jsonl",
    [
      {"file_name": "a.jpg", "text": "one"},
      {"file_name": "b.jpg", "text": "gone"},
      {"file_name": "../photos/a.jpg", "text": "escaped"},
      {"file_name": "a\0.jpg", "text": "no name"},
    ],
  )
  found, tally = convert("folder", [folder], tmp_path / "out")
  assert [texts(r) for r in found] == [[["", "one"]]]
  assert counts(tally) == {"a missing file": 2, "a path outside its folder": 1}


def test_json_lines_of_every_kind(tmp_path):
  (tmp_path / "a.jpg").write_bytes(web_data.jpeg(1))
  chat = [
    {"from": "human", "value": "<image>\nwhat is it?"},
    {"from": "gpt", "value": "a cat"},
    {"from": "human", "value": "where?"},
    {"from": "gpt", "value": "here"},
  ]
  path = web_data.lines(
    tmp_path / "set.jsonl",
    [
      {"id": "x", "image": "a.jpg", "captions": ["one", "two"]},
      {"image": "a.jpg", "question": "how many?", "answer": "two"},
      {"image": "a.jpg", "conversations": chat},
      {"text": "a document", "meta": {"source": "c4"}},
      b"",
      {"id": "x", "image": "a.jpg", "caption": "again"},
      {"image": "a.jpg", "conversations": chat[:3]},
      {"image": "a.jpg", "conversations": chat[:1]},
      {"image": None, "caption": "no picture"},
      {"caption": "no picture"},
      {"image": "a.jpg"},
      b'{"text": "\\ud800"}',
      b'{"text": "\xff"}',
      b'{"text": "cut',
      b"[1]",
      b"[" * 100_000,
    ],
  )
  found, tally = convert("jsonl", [path], tmp_path / "out")
  assert [r["id"] for r in found][0] == "set/x"
  assert [texts(r) for r in found] == [
    [["", "one"], ["", "two"]],
    [["Question: how many? Answer:", "two"]],
    [["Question: what is it? Answer:", "a cat"], ["Question: where? Answer:", "here"]],
    [["", "a document"]],
    [["", "again"]],
    [["Question: what is it? Answer:", "a cat"]],
    [],
  ]
  assert [r["texts"][0]["task"] for r in found[:6]] == [
    *("caption", "answer", "answer", "text", "caption", "answer")
  ]
  assert found[4]["id"] == "set/x#2"
  assert counts(tally) == {
    "a broken conversation": 1,
    "a row without picture": 2,
    "a text that is not UTF-8": 2,
    "a broken line": 3,
  }


def test_pieces_of_a_file_hold_each_line_once(tmp_path):
  rng = np.random.default_rng(0)
  rows = [{"text": "x" * int(rng.integers(1, 60)) + str(i)} for i in range(40)]
  path = web_data.lines(tmp_path / "set.jsonl", rows)
  for size in (40, 50, 10**6):
    bounds = parts.bounds(path.stat().st_size, size)
    whole = parts.pieces("set", path, bounds, [0] * len(bounds), str(tmp_path))
    found = [item.found for p in whole for item in jsonl.read(p, FIELDS)]
    assert [texts(r)[0][1] for r in found] == [row["text"] for row in rows]
  assert len(jsonl.parts([str(path)], 10).parts) in (4, 5)


def test_gzipped_lines(tmp_path):
  rows = b"".join(json.dumps({"text": f"t{i}"}).encode() + b"\n" for i in range(500))
  data = gzip.compress(rows)
  (tmp_path / "a.jsonl.gz").write_bytes(data)
  (tmp_path / "b.jsonl.gz").write_bytes(data[: len(data) // 2])
  found, tally = convert("jsonl", [tmp_path / "a.jsonl.gz"], tmp_path / "out")
  assert len(found) == 500 and not tally.bad
  found, tally = convert("jsonl", [tmp_path / "b.jsonl.gz"], tmp_path / "out2")
  assert len(found) < 500 and "a damaged compressed file" in tally.reasons


def test_parquet_with_bytes(tmp_path):
  pictures = [web_data.jpeg(i) for i in range(5)] + [None]
  words = [web_data.caption(i) for i in range(6)]
  plain = web_data.parquet(tmp_path / "a.parquet", {"jpg": pictures, "txt": words}, 2)
  found, tally = convert("parquet", [plain], tmp_path / "out", per_shard=2)
  assert [r["image"] for r in found] == pictures[:5]
  assert found[3]["id"] == "a+00001/1.1"
  assert counts(tally) == {"a row without picture": 1}
  struct = [{"bytes": p, "path": "x"} for p in pictures[:2]]
  columns = {"image": struct, "captions": [["one", "two"], ["three"]], "id": [7, 8]}
  nested = web_data.parquet(tmp_path / "b.parquet", columns, 2)
  found, _ = convert("parquet", [nested], tmp_path / "out2")
  assert [len(r["texts"]) for r in found] == [2, 1] and found[1]["id"] == "b/8"


def test_parquet_without_the_column_or_broken(tmp_path):
  columns = {"url": ["u", "v"], "caption": ["x", "y"]}
  path = web_data.parquet(tmp_path / "a.parquet", columns, 2)
  _, tally = convert("parquet", [path], tmp_path / "out")
  assert counts(tally) == {"a row without picture": 2}
  assert "got url, caption" in tally.reasons["a row without picture"]["examples"][0]
  _, tally = convert("parquet", [path], tmp_path / "out2", fields.Fields("photo"))
  assert "expected 'photo'" in tally.reasons["a row without picture"]["examples"][0]
  path.write_bytes(path.read_bytes()[:-9])
  _, tally = convert("parquet", [path], tmp_path / "out3")
  assert counts(tally) == {"a damaged parquet file": 1}


def test_tfds_without_tensorflow(tmp_path):
  import sys

  import tensorflow_datasets as tfds

  features = tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
      "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
    }
  )

  class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = tmp_path

    def _info(self):
      return self.dataset_info_from_configs(features=features)

    def _split_generators(self, manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      import io

      for i in range(3):
        yield (
          i,
          {
            "image": io.BytesIO(web_data.jpeg(i)),
            "captions": [{"text": web_data.caption(i)}, {"text": "second"}],
          },
        )

  builder = Tiny(data_dir=tmp_path / "tfds", file_format="array_record")
  builder.download_and_prepare()
  found, tally = convert("tfds", [f"{builder.data_path}:train"], tmp_path / "out")
  assert sorted(texts(r)[0][1] for r in found) == [
    web_data.caption(i) for i in range(3)
  ]
  assert {r["image"] for r in found} == {web_data.jpeg(i) for i in range(3)}
  assert all(texts(r)[1] == ["", "second"] for r in found) and not tally.bad
  assert "tensorflow" not in sys.modules
  with pytest.raises(ValueError, match="expected a TFDS folder"):
    preparation.plan("tfds", [str(tmp_path)], "x", FIELDS, 10)


def test_inputs_that_are_not_there_say_so(tmp_path):
  with pytest.raises(ValueError, match="expected files for the input"):
    preparation.plan("jsonl", [str(tmp_path / "*.jsonl")], "x", FIELDS, 10)
  with pytest.raises(ValueError, match="expected a folder of pictures"):
    preparation.plan("folder", [str(tmp_path / "no")], "x", FIELDS, 10)
  (tmp_path / "a.zip").write_bytes(b"")
  with pytest.raises(ValueError, match="ending in .tar, "):
    preparation.plan("webdataset", [str(tmp_path / "a.zip")], "x", FIELDS, 10)


def test_names_stay_apart(tmp_path):
  for name in ("a/0.tar", "b/0.tar"):
    web_data.tar(tmp_path / name, web_data.pair(0))
  found = webdataset.parts([str(tmp_path), str(tmp_path / "a" / "0.tar")], 1)
  assert [part.name for part in found.parts] == ["a/0", "b/0"]


@pytest.mark.parametrize("name", ["/a", "../a", "a/../../b", "~/a", "C:\\a", "\\a"])
def test_paths_that_leave_their_folder(name):
  assert files.escapes(name)
  assert not files.escapes("a/b..c.jpg")


def test_base64_is_no_path():
  value = base64.b64encode(web_data.jpeg(0)).decode()
  with pytest.raises(bad.BadRecord, match="a missing file"):
    files.read_below("/tmp", value.strip("/"))
