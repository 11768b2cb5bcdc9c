import json
import shutil
import types

import jax
import ml_collections
import numpy as np
import pytest
import toy_shards

from lavit_jax.core import sharding
from lavit_jax.data import pack_plan, pipeline, planned_rows, records
from lavit_jax.stages import data_names
from lavit_jax.training import feed

MIXTURE = {"caption": 0.5, "text_image": 0.3, "text": 0.2}


@pytest.fixture
def folder(tmp_path):
  toy_shards.write(tmp_path, count=24, bad=(4,))
  (tmp_path / "sidecar").rename(tmp_path / "records" / "codes")
  return tmp_path / "records"


def config(**data):
  fields = dict(mixture=MIXTURE, row_length=48, images_per_row=0, plan_epochs=1.0)
  fields |= dict(long_pairs="refuse", shuffle_seed=1, skip="") | data
  return ml_collections.ConfigDict(
    dict(seed=0, batch_size=8, data_threads=2, eval_batches=3, data=fields)
  )


def packed(folder, some, rows=40):
  tokenizer = types.SimpleNamespace(checksum="def")
  size, words = toy_shards.SIZE, toy_shards.VOCABULARY
  return feed.packed_rows(str(folder), some, words, tokenizer, size, "abc", rows, 0.1)


def test_a_plan_is_made_once_and_read_by_every_later_start(folder, monkeypatch):
  first = packed(folder, config()).plan
  assert len(list((folder / "codes").glob("plan-*"))) == 1
  with monkeypatch.context() as patch:
    patch.setattr(pack_plan, "plan_windows", None)  # planning again would fail
    again = packed(folder, config()).plan
  np.testing.assert_array_equal(first.documents, again.documents)
  for changed in (config(row_length=64), config(mixture={"caption": 1.0})):
    packed(folder, changed)
  packed(folder, config(), rows=0)
  assert len(list((folder / "codes").glob("plan-*"))) == 4


def test_plan_of_a_data_set_that_cannot_be_written(folder, monkeypatch, tmp_path):
  monkeypatch.setattr(planned_rows.os, "access", lambda path, mode: False)
  monkeypatch.setattr(planned_rows.tempfile, "gettempdir", lambda: str(tmp_path))
  packed(folder, config())
  assert not list((folder / "codes").glob("plan-*"))
  assert len(list((tmp_path / "lavit_jax_plans").glob("plan-*"))) == 1


def test_device_feed_counts_replacements_and_waits(folder):
  source, mesh = packed(folder, config()), sharding.make_mesh({"fsdp": -1})
  host = pipeline.RowFeed(source, 8, seed=1)
  expected = [next(host) for _ in range(5)]
  host.close()
  batches = feed.device_batches(source, config(), mesh, 0)
  for (arrays, position), (batch, after) in zip(expected, batches):
    assert after == position
    for name, value in arrays.items():
      assert isinstance(batch[name], jax.Array)
      np.testing.assert_array_equal(batch[name], value)
  figures = batches.figures()
  assert figures["data_wait"] > 0 and figures["replaced"] == host.bad.total() > 0
  assert batches.figures()["data_wait"] == 0  # the mean is of the time since
  batches.close()
  again = feed.device_batches(source, config(), mesh, expected[2][1])
  batch, _ = next(again)
  np.testing.assert_array_equal(batch["tokens"], expected[3][0]["tokens"])
  again.close()


def test_rows_left_out_never_arrive_and_positions_count_them():
  """What follows the rows left out takes their place in the batch."""

  class Numbers:
    def __len__(self):
      return 32

    def __getitem__(self, index):
      return {"x": np.array([index])}

    def ids(self, index):
      return [str(index)]

  mesh = sharding.make_mesh({"fsdp": 8})

  def taken(some, position, count=3):
    batches = feed.device_batches(Numbers(), some, mesh, position)
    found = []
    for _ in range(count):
      batch, after = next(batches)
      found.append((np.asarray(batch["x"])[:, 0].tolist(), after))
    batches.close()
    return found

  whole = [x for rows, _ in taken(config(), 0, 5) for x in rows]
  some = config(skip="4:12,20:24")
  found = taken(some, 0)
  left = [x for at, x in enumerate(whole) if not (4 <= at < 12 or 20 <= at < 24)]
  assert [x for rows, _ in found for x in rows] == left[:24]
  assert [after for _, after in found] == [16, 28, 36]
  assert taken(some, 16, 2) == found[1:]  # as a resumed run goes on
  named = list(feed.record_ids(Numbers(), some, 16))
  assert named == [str(x) for x in found[1][0]]
  own = feed.record_ids(Numbers(), config(), 3, range(100, 200))
  assert list(own) == [str(x) for x in range(103, 111)]


def test_moved_data_have_the_same_name_and_changed_ones_another(folder, tmp_path):
  some = ml_collections.ConfigDict(dict(stage="pretrain", data=dict(train=str(folder))))
  name = data_names.of(some)["data.train"]
  some.data.eval = str(shutil.copytree(folder, tmp_path / "moved"))
  assert data_names.of(some) == {"data.train": name, "data.eval": name}
  sidecar = json.loads((folder / "codes/manifest.json").read_text())
  (folder / "codes/manifest.json").write_text(json.dumps(sidecar | {"dtype": "other"}))
  assert data_names.of(some)["data.train"] != name
  some.stage = "visual_tokenizer"  # it reads no codes
  same = data_names.of(some)
  assert same["data.train"] == same["data.eval"]
  records_manifest = json.loads((folder / "manifest.json").read_text())
  changed = json.dumps(records_manifest | {"fingerprint": "of other records"})
  (folder / "manifest.json").write_text(changed)
  assert data_names.of(some)["data.train"] != same["data.train"]


def test_bad_held_out_pictures_are_replaced(folder):
  prepared = records.Records(folder)
  source = pipeline.RecordImages(prepared, toy_shards.SIZE)
  mesh = sharding.make_mesh({"fsdp": -1})
  batches = list(feed.fixed_batches(source, config(), mesh))
  shown = np.concatenate([batch["image"] for batch in batches])[:, 0, 0, 0]
  assert shown.tolist() == [0, 1, 2, 5, 5, 6, 8, 9, 10, 12, 13, 14, 16, 17, 18, 20]


def test_errors_reach_the_training_thread(folder):
  class Broken:
    def __len__(self):
      return 8

    def __getitem__(self, index):
      raise OSError("the disk is gone")

  batches = feed.device_batches(Broken(), config(), sharding.make_mesh({"fsdp": -1}), 0)
  with pytest.raises(OSError, match="disk is gone"):
    next(batches)
  batches.close()
