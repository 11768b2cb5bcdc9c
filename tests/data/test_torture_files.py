"""The torture set of JSON files and tars: what is kept, what is named, every byte."""

import contextlib

import pytest
import torture_files
import web_data

from lavit_jax.data import conversion, preparation, records
from lavit_jax.data.sources import fields

JSON = {**torture_files.rows(), **torture_files.json_files()}
TARS = torture_files.tars()
# What webdataset hands on without a look, but whose user then fails: on decoding.
DECODED = {
  *("a text that is not UTF-8", "no known picture format", "a broken line"),
  *("a picture of zero bytes",),
}


def prepared(source, case, folder):
  """Prepares one file; returns its records and the tally."""
  path = folder / case.name
  path.write_bytes(case.data)
  target = folder / "out"
  plan = preparation.plan(source, [str(path)], str(target), fields.Fields(), 10)
  with contextlib.closing(preparation.Run(plan)) as run:
    for job in run.own:
      conversion.ensure(job)
    tally = run.tally()
    if tally.good:
      run.finish(1.0)
  found = []
  if tally.good:
    entries = records.Records(target)
    found = [entries[i] for i in range(len(entries))]
  size = tally.as_dict()["bytes"]
  assert size["kept"] + size["bad"] + size["left_out"] == len(case.data)
  return found, tally


def check(source, case, folder):
  found, tally = prepared(source, case, folder)
  counts = {reason: entry["count"] for reason, entry in tally.reasons.items()}
  counts = {reason.replace("UTF-8", "UTF 8"): n for reason, n in counts.items()}
  wanted = {reason.replace("UTF-8", "UTF 8"): n for reason, n in case.others.items()}
  assert (len(found), counts) == (case.kept, wanted)
  assert len({record["id"] for record in found}) == len(found)
  if case.texts is not None:
    assert len(found[0]["texts"]) == case.texts
  return tally


def test_there_are_many():
  assert len(JSON) >= 60 and len(TARS) >= 38


@pytest.mark.parametrize("name", list(JSON))
def test_a_json_file_becomes_what_it_should(name, tmp_path):
  (tmp_path / torture_files.PICTURE).write_bytes(web_data.jpeg(0))
  check("jsonl", JSON[name], tmp_path)


@pytest.mark.parametrize("name", list(TARS))
def test_a_tar_becomes_what_it_should(name, tmp_path):
  check("webdataset", TARS[name], tmp_path)


@pytest.mark.parametrize("name", [n for n, c in TARS.items() if c.name == "0.tar"])
def test_a_tar_is_bad_only_where_webdataset_fails_too(name, tmp_path):
  pytest.importorskip("webdataset")
  _, tally = prepared("webdataset", TARS[name], tmp_path)
  wrong = {
    reason
    for reason, entry in tally.reasons.items()
    if not entry.get("left_out") and reason not in DECODED
  }
  if wrong:
    assert "Error" in torture_files.webdataset(tmp_path / "0.tar"), wrong
