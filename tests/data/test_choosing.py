"""Filters, the held-out side, and the size at which pictures are stored."""

import io
import json

import numpy as np
import pytest
import web_data
from PIL import Image
from test_preparation import ids, pictures, plan

from lavit_jax import prepare
from lavit_jax.data import bad, choosing, coded, images, records


@pytest.mark.parametrize(
  "rule,row,taken",
  [
    ("similarity>=0.28", {"similarity": 0.28}, True),
    ("similarity>0.28", {"similarity": "0.28"}, False),
    ("similarity<0.3", {"SIMILARITY": np.float32(0.2)}, True),
    ("language=en|de", {"LANGUAGE": "de"}, True),
    ("language!=en", {"language": "en"}, False),
    ("watermark<0.5", {"watermark": None}, False),
    ("meta.score>=3", {"meta": {"score": 3}}, True),
    ("nsfw=false", {"nsfw": False}, True),
    ("size>=30", {}, True),
    ("size>=31", {}, False),
    ("aspect<=1.34", {}, True),
    ("width=40", {"width": 7}, True),
    ("height<30", {}, False),
  ],
)
def test_rules(rule, row, taken):
  choice = choosing.Choice((rule,))
  try:
    choosing.check_filters((40, 30), row, choice)
    assert taken
  except bad.LeftOut as error:
    assert not taken and rule in error.reason


def test_rules_that_are_none_are_refused():
  for rule in ("similarity", ">3", "a>"):
    with pytest.raises(ValueError, match="expected a filter"):
      choosing.Choice((rule,))


def members(seed, facts):
  key = f"{seed:05d}"
  return [
    (f"{key}.jpg", web_data.jpeg(seed)),
    (f"{key}.txt", b"a caption"),
    (f"{key}.json", json.dumps(facts).encode()),
  ]


def test_filters_work_for_tars_lines_and_parquet(tmp_path):
  facts = [
    {"similarity": 0.1 * i, "LANGUAGE": "en" if i % 2 else "de"} for i in range(6)
  ]
  tar = web_data.tar(
    tmp_path / "a.tar", [m for i, f in enumerate(facts) for m in members(i, f)]
  )
  for i in range(6):
    (tmp_path / f"{i}.jpg").write_bytes(web_data.jpeg(i))
  rows = [{"image": f"{i}.jpg", "text": "x", **f} for i, f in enumerate(facts)]
  lines = web_data.lines(tmp_path / "a.jsonl", rows)
  columns = {
    "image": [web_data.jpeg(i) for i in range(6)],
    "caption": ["x"] * 6,
    "similarity": [f["similarity"] for f in facts],
    "LANGUAGE": [f["LANGUAGE"] for f in facts],
  }
  table = web_data.parquet(tmp_path / "a.parquet", columns, 6)
  choice = choosing.Choice(("similarity>=0.25", "language=en"))
  for source, path in (("webdataset", tar), ("jsonl", lines), ("parquet", table)):
    prepare.run(plan(source, [path], tmp_path / source, choice=choice))
    expected = sorted(web_data.jpeg(i) for i in (3, 5))
    assert pictures(tmp_path / source) == expected
    report = json.loads((tmp_path / source / "report.json").read_text())
    assert (report["bad"], report["left_out"]) == (0, 4)


def test_a_filter_that_takes_nothing_ends_the_run(tmp_path):
  web_data.tars(tmp_path / "in", 1, 2)
  choice = choosing.Choice(("similarty>=0.25",))
  with pytest.raises(ValueError, match="expected records, got none(?s:.)*similarty"):
    prepare.run(plan("webdataset", [tmp_path / "in"], tmp_path / "o", choice=choice))


def test_the_two_sides_of_a_holdout_share_no_picture(tmp_path):
  folder = tmp_path / "photos"
  folder.mkdir()
  for i in range(60):  # every picture twice, under two names
    (folder / f"{i}.png").write_bytes(web_data.jpeg(i // 2, form="PNG"))
  sides = []
  for held in (False, True):
    target = tmp_path / str(held)
    choice = choosing.Choice((), 0, 0.3, held)
    prepare.run(plan("folder", [folder], target, choice=choice))
    sides.append(pictures(target))
  assert not set(sides[0]) & set(sides[1])
  assert len(sides[0]) + len(sides[1]) == 60 and 6 <= len(sides[1]) <= 36


def turned(width, height, form="JPEG"):
  exif, buffer = Image.Exif(), io.BytesIO()
  exif[0x0112] = 6
  picture = Image.open(io.BytesIO(web_data.jpeg(1, width, height)))
  picture.save(buffer, form, exif=exif)
  return buffer.getvalue()


def test_large_pictures_are_stored_smaller_and_upright(tmp_path):
  folder = tmp_path / "photos"
  folder.mkdir()
  data = {
    "a.jpg": turned(120, 40),
    "b.png": web_data.jpeg(2, 200, 100, "PNG"),
    "c.jpg": web_data.jpeg(3, 40, 30),
  }
  for name, content in data.items():
    (folder / name).write_bytes(content)
  choice = choosing.Choice(max_image_size=60)
  prepare.run(plan("folder", [folder], tmp_path / "out", choice=choice))
  prepared = records.Records(tmp_path / "out")
  np.testing.assert_array_equal(prepared.size, [[60, 20], [30, 60], [30, 40]])
  assert prepared[2]["image"] == data["c.jpg"]
  for i, name in enumerate(data):
    whole = images.decode_full(data[name]).astype(int)
    stored = images.decode_full(prepared[i]["image"])
    assert stored.shape[:2] == tuple(prepared.size[i])
    height, width = stored.shape[:2]
    fitted = coded.fit(whole.astype(np.uint8), height, width).astype(int)
    assert abs(fitted - stored).mean() < 3


def test_sizes_of_buckets_come_from_the_index(tmp_path, monkeypatch):
  folder = tmp_path / "photos"
  folder.mkdir()
  (folder / "a.jpg").write_bytes(turned(60, 30))
  (folder / "b.jpg").write_bytes(web_data.jpeg(3, 60, 30))
  prepare.run(plan("folder", [folder], tmp_path / "out"))
  prepared = records.Records(tmp_path / "out")
  monkeypatch.setattr(records.Records, "__getitem__", None)  # no record is touched
  np.testing.assert_array_equal(coded.read_sizes(prepared), [[60, 30], [30, 60]])


def test_sizes_of_an_earlier_folder_are_upright_too(tmp_path):
  folder = tmp_path / "photos"
  folder.mkdir()
  (folder / "a.jpg").write_bytes(turned(60, 30))
  prepare.run(plan("folder", [folder], tmp_path / "out"))
  prepared = records.Records(tmp_path / "out")
  prepared.size = None  # as in a folder of an earlier version
  np.testing.assert_array_equal(coded.read_sizes(prepared), [[60, 30]])
  assert ids(tmp_path / "out") == ["photos/a.jpg"]
