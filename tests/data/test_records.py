import concurrent.futures
import pickle

import numpy as np
import pytest
import toy_shards

from lavit_jax.data import numerics, records


def test_bytes_round_trip_and_bit_order():
  keep = np.array([1, 0, 0, 0, 0, 0, 0, 1, 1, 0], bool)
  assert records.pack_keep(keep) == bytes([0b10000001, 0b10000000])
  np.testing.assert_array_equal(records.unpack_keep(records.pack_keep(keep), 10), keep)
  assert records.pack_codes([1, 258]) == b"\x01\x00\x02\x01"
  np.testing.assert_array_equal(records.unpack_codes(b"\x01\x00\x02\x01"), [1, 258])
  np.testing.assert_array_equal(records.unpack_ids(records.pack_ids([7, 9])), [7, 9])
  np.testing.assert_array_equal(records.unpack_keep(b"", 4), [False] * 4)


def test_records_by_position(tmp_path):
  prepared, sidecar = toy_shards.write(tmp_path)
  assert len(prepared) == len(sidecar) == 16
  assert [s["count"] for s in prepared.manifest["shards"]] == [6, 6, 4]
  assert prepared.manifest["shards"][0]["file"] == "toy-00000-of-00003.array_record"
  assert [prepared[i]["id"] for i in (0, 6, 15)] == ["r0", "r6", "r15"]
  assert prepared.manifest["entries"] == {"caption": 12, "answer": 12, "text": 4}
  np.testing.assert_array_equal(prepared.image[:5], [1, 1, 1, 0, 1])
  item = sidecar[1]
  np.testing.assert_array_equal(item["codes"], [0, 1])
  np.testing.assert_array_equal(item["keep"], [True, True, False, False])
  np.testing.assert_array_equal(item["texts"][1]["turns"][1][0], [22, 23])
  assert not list(tmp_path.glob("*/*.tmp"))


def test_pickle_and_threads(tmp_path):
  prepared, _ = toy_shards.write(tmp_path)
  copy = pickle.loads(pickle.dumps(prepared))
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    names = [r["id"] for r in pool.map(copy.__getitem__, list(range(16)) * 4)]
  assert names == [f"r{i}" for i in range(16)] * 4


def test_lengths_by_hand(tmp_path):
  _, sidecar = toy_shards.write(tmp_path, count=4)
  lengths = sidecar.lengths
  np.testing.assert_array_equal(lengths.count, [1, 2, 3, 0])
  np.testing.assert_array_equal(lengths.offsets, [0, 2, 4, 6, 7])
  np.testing.assert_array_equal(lengths.task, [0, 1, 0, 1, 0, 1, 2])
  np.testing.assert_array_equal(lengths.turns, [1, 2, 1, 2, 1, 2, 1])
  np.testing.assert_array_equal(lengths.text, [3, 5, 3, 5, 3, 5, 8])


def test_unfinished_or_wrong_folders_say_so(tmp_path):
  with pytest.raises(ValueError, match="no such folder"):
    records.Records(tmp_path / "none")
  (tmp_path / "half").mkdir()
  with pytest.raises(ValueError, match="unfinished.*prepare"):
    records.Records(tmp_path / "half")
  records.write_shards([], tmp_path / "empty", "x", 4)
  with pytest.raises(ValueError, match="empty set"):
    records.Records(tmp_path / "empty")
  prepared, _ = toy_shards.write(tmp_path)
  with pytest.raises(ValueError, match="schema"):
    records.Sidecar(tmp_path / "records")
  with pytest.raises(ValueError, match="finished set"):
    records.write_shards([], tmp_path / "records", "x", 4)
  (tmp_path / "records" / prepared.manifest["shards"][1]["file"]).unlink()
  with pytest.raises(ValueError, match="00001-of-00003"):
    records.Records(tmp_path / "records")


def test_record_schema_is_checked():
  text = [{"task": "text", "turns": [["", "x"]]}]
  records.check_record({"id": "a", "image": b"", "texts": text})
  with pytest.raises(ValueError, match="'a'"):
    records.check_record({"id": "a", "image": b"x", "texts": text})
  with pytest.raises(ValueError, match="'id'"):
    records.check_record({"id": 3, "image": b"x", "texts": []})


def test_sidecar_restarts_and_refuses_another_tokenizer(tmp_path):
  prepared, _ = toy_shards.write(tmp_path)
  folder = tmp_path / "again"
  writer = records.SidecarWriter(prepared, folder, toy_shards.FACTS)
  writer.write(1, [toy_shards.sidecar(i) for i in range(6, 12)])
  writer = records.SidecarWriter(prepared, folder, toy_shards.FACTS)
  assert writer.missing() == [0, 2]
  with pytest.raises(ValueError, match="every shard"):
    writer.finish()
  with pytest.raises(ValueError, match="6 sidecar records"):
    writer.write(0, [])
  with pytest.raises(ValueError, match="unfinished.*tokenize"):
    records.Sidecar(folder)
  with pytest.raises(ValueError, match="continue"):
    records.SidecarWriter(
      prepared, folder, {**toy_shards.FACTS, "visual_tokenizer": "x"}
    )


def test_checksum_mismatch_names_both(tmp_path):
  _, sidecar = toy_shards.write(tmp_path)
  records.check_sidecar(sidecar.manifest, "abc")
  with pytest.raises(ValueError, match="xyz.*abc.*tokenize"):
    records.check_sidecar(sidecar.manifest, "xyz")
  for fact in ({}, {"numerics": numerics.VERSION + 1}):
    other = {k: v for k, v in sidecar.manifest.items() if k != "numerics"} | fact
    with pytest.raises(ValueError, match="numerics version 2, got .* empty the codes"):
      records.check_sidecar(other, "abc")


def test_codes_and_keep_mask_must_agree():
  with pytest.raises(ValueError, match="one code per kept patch"):
    records.pack_sidecar("a", [1, 2], np.array([True, False]), [])
