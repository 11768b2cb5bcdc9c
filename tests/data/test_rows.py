import numpy as np
import pytest
import toy_shards

from lavit_jax.data import documents as planned
from lavit_jax.data import pack_plan, rows

V = toy_shards.VOCABULARY  # [IMG] 40, [/IMG] 41, code k at 42 + k


def document(kind, turns, codes=(), keep=None, image=None, start=0, length=0):
  return rows.Document(
    kind, turns, np.array(codes, np.int32), keep, image, start, length
  )


def test_row_by_hand():
  keep = np.array([False, True, False, True])
  picture = np.full((8, 8, 3), 7, np.uint8)
  turns = [([20], [21]), ([22, 23], [24])]
  row = rows.interleave(
    [
      document(planned.IMAGE_TEXT, turns, [3, 0], keep, picture, length=11),
      document(planned.TEXT_IMAGE, [([], [10, 11])], [5], keep, length=5),
      document(planned.UNCONDITIONAL, [([], [10])], [6], keep, length=3),
      document(planned.TEXT, [([], [12, 13, 14])], start=0, length=3),
    ],
    row_length=24,
    images_per_row=2,
    image_size=8,
    patches=4,
    vocabulary=V,
  )
  expected = {
    "tokens": [40, 45, 42, 41, 20, 21, 2, 22, 23, 24, 2]
    + [10, 11, 40, 47, 41, 40, 48, 41, 1, 12, 13, 0, 0],
    "segment_ids": [1] * 11 + [2] * 5 + [3] * 3 + [4] * 3 + [0] * 2,
    "positions": [*range(11), *range(5), *range(3), *range(3), 0, 0],
    "target_kind": [3, 3, 3, 0, 4, 4, 0, 0, 4, 4, 0]
    + [1, 1, 2, 2, 0, 2, 2, 0, 1, 1, 0, 0, 0],
    "feature_index": [-1, 1, 3] + [-1] * 21,
  }
  for name, values in expected.items():
    np.testing.assert_array_equal(row[name], values, err_msg=name)
  np.testing.assert_array_equal(row["loss_mask"], np.array(expected["target_kind"]) > 0)
  np.testing.assert_array_equal(row["keep"], [keep, [False] * 4])
  assert (row["images"][0] == 7).all() and not row["images"][1].any()
  assert {name: str(array.dtype) for name, array in row.items()} == {
    "tokens": "int32",
    "segment_ids": "int32",
    "positions": "int32",
    "loss_mask": "bool",
    "target_kind": "uint8",
    "images": "uint8",
    "keep": "bool",
    "feature_index": "int32",
  }


def test_second_picture_points_into_its_slot():
  keep = np.array([True, False, False, True])
  picture = np.zeros((8, 8, 3), np.uint8)
  caption = [([], [10])]
  one = document(planned.IMAGE_TEXT, caption, [1, 2], keep, picture, length=6)
  row = rows.interleave([one, one], 12, 2, 8, 4, V)
  found = row["feature_index"][row["feature_index"] >= 0]
  np.testing.assert_array_equal(found, [0, 3, 4, 7])


def test_cut_text_continues():
  turns = [([], [10, 11, 12])]
  pieces = [
    document(planned.TEXT, turns, start=start, length=length)
    for start, length in ((0, 2), (2, 3))
  ]
  row = rows.interleave(pieces, 6, 1, 8, 4, V)
  np.testing.assert_array_equal(row["tokens"], [1, 10, 11, 12, 2, 0])
  np.testing.assert_array_equal(row["target_kind"], [1, 0, 1, 1, 0, 0])
  np.testing.assert_array_equal(row["positions"], [0, 1, 0, 1, 2, 0])


def test_rows_of_a_plan_fit_their_lengths(tmp_path):
  prepared, sidecar = toy_shards.write(tmp_path)
  weights = {"caption": 0.3, "answer": 0.3, "text_image": 0.3, "text": 0.1}
  plan = pack_plan.plan_rows(sidecar.lengths, weights, 0, 20, 48)
  source = rows.Rows(plan, prepared, sidecar, 48, plan.images_per_row, 8, V)
  for r in range(len(source)):
    row = source[r]
    assert (row["segment_ids"] > 0).sum() == plan.row(r)["length"].sum()
    pictures = plan.row(r)[plan.row(r)["kind"] == planned.IMAGE_TEXT]["record"]
    np.testing.assert_array_equal(row["images"][: len(pictures), 0, 0, 0], pictures)
    slots = row["feature_index"][row["feature_index"] >= 0]
    np.testing.assert_array_equal(slots, np.flatnonzero(row["keep"]))
    assert (row["tokens"][row["feature_index"] >= 0] >= V.code_start).all()


def test_mismatched_parts_are_refused(tmp_path):
  prepared, sidecar = toy_shards.write(tmp_path)
  plan = pack_plan.plan_rows(sidecar.lengths, {"caption": 1.0}, 0, 4, 48)
  with pytest.raises(ValueError, match="image size 8"):
    rows.Rows(plan, prepared, sidecar, 48, plan.images_per_row, 16, V)
  with pytest.raises(ValueError, match="row length 48"):
    rows.Rows(plan, prepared, sidecar, 64, plan.images_per_row, 8, V)


def test_bad_picture_is_replaced_by_one_alike(tmp_path):
  good, bad = (
    toy_shards.write(tmp_path / name, bad=which)
    for name, which in (("good", ()), ("bad", (5,)))
  )
  plan = pack_plan.plan_rows(bad[1].lengths, {"caption": 1.0}, 0, 6, 48)
  whole, broken = (
    rows.Rows(plan, *parts, 48, plan.images_per_row, 8, V) for parts in (good, bad)
  )
  met = 0
  for r in range(len(plan)):
    row, reasons = broken.read(r)
    slots = np.flatnonzero(plan.row(r)["record"] == 5)
    assert len(reasons) == len(slots) and all("record r5" in why for why in reasons)
    expected = whole[r]
    for name in ("segment_ids", "positions", "target_kind"):
      np.testing.assert_array_equal(row[name], expected[name])
    others = np.delete(np.arange(plan.images_per_row), slots)
    np.testing.assert_array_equal(row["images"][others], expected["images"][others])
    assert not (row["images"][slots, 0, 0, 0] == 5).any()
    again, _ = broken.read(r)
    np.testing.assert_array_equal(row["images"], again["images"])
    met += len(slots)
  assert met > 0


def test_alike_prefers_the_same_length_and_goes_round():
  documents = np.zeros(5, planned.DOCUMENT)
  documents["record"], documents["length"] = range(5), [9, 7, 9, 8, 9]
  documents["kind"] = [1, 1, 1, 1, 2]
  assert list(rows.alike(documents, 2)) == [2, 0, 3, 1]
  assert list(rows.alike(documents, 1)) == [1]
