"""Damaged files and tars: no crash, and nothing that vanishes without a word."""

import json
import re

import numpy as np
import pytest
import web_data

from lavit_jax.data import bad, conversion, images, preparation
from lavit_jax.data.sources import fields, tar

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")


def damage(data: bytes, rng: np.random.Generator, keep: int = 0) -> bytes:
  """Flips, blanks, drops or cuts bytes, anywhere but in the last `keep`."""
  data, end = bytearray(data), len(data) - keep
  start = int(rng.integers(end))
  stop = min(end, start + int(rng.integers(1, 4000)))
  way = rng.integers(5)
  if way == 0:  # a few flipped bytes
    for at in rng.integers(0, end, 3):
      data[at] ^= int(rng.integers(1, 256))
  elif way == 1:
    data[start:stop] = rng.integers(0, 256, stop - start, np.uint8).tobytes()
  elif way == 2:
    data[start:stop] = bytes(stop - start)
  elif way == 3:
    del data[start:stop]
  else:
    del data[start:]
  return bytes(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_picture_decodes_or_is_a_bad_record(form, monkeypatch):
  monkeypatch.setattr(images, "MAX_PIXELS", 1_000_000)
  rng, found = np.random.default_rng(0), []
  for i in range(60):
    data = damage(web_data.jpeg(i, 60, 50, form), rng)
    try:
      images.check(data, 1)
      found.append("good")
    except bad.BadRecord as error:
      found.append(error.reason)
    try:
      assert images.decode(data, 8).shape == (8, 8, 3)
      assert found[-1] == "good"
    except bad.BadRecord:
      assert found[-1] != "good", "checked, yet training would have to replace it"
  assert len(set(found)) > 1


def fuzzed_tar(folder, rng, records=12):
  """Writes a damaged tar; returns its path and where each key's headers stood."""
  members = [m for seed in range(records) for m in web_data.pair(seed)]
  path = web_data.tar(folder / "set.tar", members)
  with path.open("rb") as file:
    found = list(tar.members(file, path.stat().st_size))
  places = {item.key: item.found for item in found}
  headers = {
    name: (start - 512, start + size) for name, (start, size) in places.items()
  }
  path.write_bytes(damage(path.read_bytes(), rng, keep=12_000))
  return path, headers


@pytest.mark.parametrize("seed", range(60))
def test_every_member_of_a_damaged_tar_is_read_or_named(seed, tmp_path):
  rng = np.random.default_rng(seed)
  path, headers = fuzzed_tar(tmp_path, rng)
  good, wrong, holes = [], [], []
  plan = preparation.plan("webdataset", [str(path)], "out", fields.Fields(), 10)
  for item in conversion.read(plan.jobs[0]):
    name, found = item.name, item.found
    if not isinstance(found, bad.BadRecord):
      good.append(name)
    else:
      wrong.append(name)
      if between := re.fullmatch(r"bytes (\d+) to (\d+) hold .*", found.detail):
        holes.append(tuple(map(int, between.groups())))
  assert len(set(good)) == len(good) and all(n.startswith("set/") for n in good)
  size = path.stat().st_size
  for member, (start, stop) in headers.items():
    key = "set/" + member.split(".")[0]
    said = key in good or any(name.startswith(key) for name in wrong)
    lost = start >= size - 512 or any(a < stop and start < b for a, b in holes)
    assert said or lost, member


@pytest.mark.parametrize("seed", range(10))
def test_damaged_lines_and_parquet_files_never_crash(seed, tmp_path):
  rng = np.random.default_rng(seed)
  rows = [{"text": f"{i} " * int(rng.integers(1, 80))} for i in range(60)]
  lines = web_data.lines(tmp_path / "set.jsonl", rows)
  words, pictures = [r["text"] for r in rows], [web_data.jpeg(i) for i in range(60)]
  table = web_data.parquet(
    tmp_path / "set.parquet", {"jpg": pictures, "txt": words}, 20
  )
  for source, path in (("jsonl", lines), ("parquet", table)):
    path.write_bytes(damage(path.read_bytes(), rng))
    target = tmp_path / source
    plan = preparation.plan(source, [str(path)], str(target), fields.Fields(), 25)
    preparation.Run(plan).close()
    for job in plan.jobs:
      conversion.convert(job)
      report = json.loads(job.report.read_text())
      assert report["good"] + report["bad"] > 0 or source == "jsonl"


def test_random_bytes_are_no_data_of_any_kind(tmp_path):
  rng = np.random.default_rng(0)
  data = rng.integers(0, 256, 20_000, np.uint8).tobytes()
  for name in ("a.tar", "a.jsonl", "a.parquet", "a.jsonl.gz"):
    (tmp_path / name).write_bytes(data)
  for source, name in (
    *(("webdataset", "a.tar"), ("jsonl", "a.jsonl")),
    *(("parquet", "a.parquet"), ("jsonl", "a.jsonl.gz")),
  ):
    given = [str(tmp_path / name)]
    plan = preparation.plan(source, given, "out", fields.Fields(), 10**9)
    found = [item.found for item in conversion.read(plan.jobs[0])]
    assert found and all(isinstance(error, bad.BadRecord) for error in found), name
