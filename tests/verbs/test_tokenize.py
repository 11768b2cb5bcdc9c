"""`tokenize`: what stands in the sidecar, whatever the batch, and restarts."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenize_process
import toy_run
import toy_shards
import web_data

from lavit_jax import prepare
from lavit_jax.core import sharding
from lavit_jax.data import (
  images,
  items,
  preparation,
  records,
  shares,
  text,
  token_figures,
)
from lavit_jax.data.sources import fields
from lavit_jax.inference import frozen_parts, meshes, sidecars, tokenizing
from lavit_jax.models import codebook, selector, whitening


@pytest.fixture
def data(toy_data, tmp_path):
  """A few records in three shards, without codes."""
  source = records.Records(toy_data / "train")
  chosen = (source[i] for i in range(10))
  records.write_shards(chosen, tmp_path / "data", "toy", 4)
  return tmp_path / "data"


def coder_of(folder):
  return tokenizing.load(str(folder), sharding.make_mesh({"data": -1}), "float32")


def independent_codes(coder, picture):
  """Codes and keep mask of one picture, straight from the modules."""
  frozen, noise_id = coder.frozen, np.array([items.noise_id(picture)])
  features = frozen_parts.patch_features(coder.tower, frozen, picture[None])
  inputs = whitening.whiten(frozen["whitening"], features)
  variables = {"params": frozen["visual_tokenizer"]}
  log_probs = coder.model.apply(variables, features, inputs, method="select")
  noise = selector.gumbel(jax.random.key(0), noise_id, toy_run.PATCHES)
  keep = selector.sample(log_probs, noise)
  z = coder.model.apply(variables, inputs, keep, method="encode")[0]
  kept = np.asarray(keep[0]) > 0.5
  rows = np.asarray(frozen["codebook"]["embedding"])
  nearest = codebook.lookup(jnp.asarray(rows), z)
  return np.asarray(nearest)[kept], kept


def test_codes_are_those_of_an_independent_call(
  tokenized_data, visual_tokenizer_directory
):
  prepared = records.Records(tokenized_data / "train")
  sidecar = records.Sidecar(tokenized_data / "train" / "codes")
  words = text.load_text_tokenizer(tokenized_data / "text_tokenizer")
  coder = coder_of(visual_tokenizer_directory)
  pictures = [i for i in range(len(prepared)) if prepared.image[i]][:5]
  for i in pictures:
    record, side = prepared[i], sidecar[i]
    picture = images.decode(record["image"], toy_run.SIZE)
    codes, keep = independent_codes(coder, picture)
    np.testing.assert_array_equal(side["keep"], keep)
    np.testing.assert_array_equal(side["codes"], codes)
    assert side["id"] == record["id"] and side["count"] == keep.sum() > 0
    for entry, own in zip(record["texts"], side["texts"], strict=True):
      for turn, ids in zip(entry["turns"], own["turns"], strict=True):
        assert [words.encode(part) if part else [] for part in turn] == [
          part.tolist() for part in ids
        ]


def test_texts_without_a_picture_have_no_codes(tokenized_data):
  prepared = records.Records(tokenized_data / "train")
  sidecar = records.Sidecar(tokenized_data / "train" / "codes")
  alone = np.flatnonzero(~prepared.image)
  assert len(alone) and not any(sidecar[i]["count"] for i in alone)
  assert all(sidecar[i]["count"] for i in np.flatnonzero(prepared.image))


def test_the_batch_changes_no_code(data, visual_tokenizer_directory, tmp_path):
  found = []
  for size in (8, 16):
    folder = tmp_path / f"batch{size}"
    shutil.copytree(data, folder)
    manifest = sidecars.run(str(visual_tokenizer_directory), str(folder), size)
    sidecar = records.Sidecar(folder / "codes")
    assert manifest["count"] == len(sidecar) == 10
    found.append(sidecar_bytes(folder))
  assert found[0] == found[1]


def test_an_interrupted_run_continues_with_the_missing_shards(
  data, visual_tokenizer_directory, monkeypatch
):
  written = []
  write = records.SidecarWriter.write

  def stop_after_one(self, number, sidecars):
    if len(written) == 1:
      raise KeyboardInterrupt
    written.append(number)
    write(self, number, sidecars)

  monkeypatch.setattr(records.SidecarWriter, "write", stop_after_one)
  with pytest.raises(KeyboardInterrupt):
    sidecars.run(str(visual_tokenizer_directory), str(data), 8)
  with pytest.raises(ValueError, match="an unfinished folder"):
    records.Sidecar(data / "codes")
  first = next((data / "codes").glob("*-00000-*.array_record"))
  stamp = first.stat().st_mtime_ns

  def note(self, number, sidecars):
    written.append(number)
    write(self, number, sidecars)

  monkeypatch.setattr(records.SidecarWriter, "write", note)
  sidecars.run(str(visual_tokenizer_directory), str(data), 8)
  assert written == [0, 1, 2] and first.stat().st_mtime_ns == stamp
  assert len(records.Sidecar(data / "codes")) == 10


def sidecar_bytes(folder):
  """The shards' bytes and the report of a finished sidecar."""
  names = sorted((folder / "codes").glob("*.array_record"))
  names += [folder / "codes" / "manifest.json", folder / "codes" / "report.json"]
  return {path.name: path.read_bytes() for path in names}


@pytest.fixture(scope="module")
def tokenized_tars(tmp_path_factory, visual_tokenizer_directory):
  """Four shards of tars, one of them empty, tokenized on all devices."""
  folder = tmp_path_factory.mktemp("tars")
  pattern = web_data.tars(folder / "in", 3, 5)
  web_data.tar(folder / "in" / "00003.tar", [("readme.md", b"nothing")])
  prepare.run(
    preparation.plan("webdataset", [pattern], str(folder / "out"), fields.Fields(), 1)
  )
  shutil.copytree(folder / "out", folder / "bare")
  sidecars.run(str(visual_tokenizer_directory), str(folder / "out"), 8)
  return folder


def test_the_mesh_changes_no_byte(tokenized_tars, visual_tokenizer_directory, tmp_path):
  shutil.copytree(tokenized_tars / "bare", tmp_path / "data")
  sizes = meshes.parse(["fsdp=2", "tensor=2"])
  model = str(visual_tokenizer_directory)
  sidecars.run(model, str(tmp_path / "data"), 8, mesh_sizes=sizes, threads=3)
  assert sidecar_bytes(tmp_path / "data") == sidecar_bytes(tokenized_tars / "out")


def test_two_processes_and_a_killed_one_write_the_same(
  tokenized_tars, visual_tokenizer_directory, tmp_path
):
  folder = tmp_path / "data"
  shutil.copytree(tokenized_tars / "bare", folder)
  tokenize_process.kill(visual_tokenizer_directory, folder, shards=1)
  assert not (folder / "codes" / "manifest.json").exists()
  tokenize_process.run(visual_tokenizer_directory, folder, processes=2)
  assert sidecar_bytes(folder) == sidecar_bytes(tokenized_tars / "out")
  assert not list(folder.glob("codes/*.tmp"))


def test_parts_of_machines_that_do_not_wait_and_codes_in_a_folder_of_their_own(
  tokenized_tars, visual_tokenizer_directory, tmp_path
):
  model, data = str(visual_tokenizer_directory), str(tokenized_tars / "bare")
  target = str(tmp_path / "codes_of_bare")
  told = [
    sidecars.run(model, data, 8, target=target, part=shares.Share(index, 3))
    for index in (2, 0, 1)
  ]
  assert [("count" in one) for one in told] == [False, False, True]
  assert sidecar_bytes(tmp_path / "codes_of_bare") == sidecar_bytes(
    tokenized_tars / "out"
  )
  assert not (tokenized_tars / "bare" / "codes").exists()
  # The folder with the codes stands for the records.
  assert len(records.Records(target)) == len(records.Sidecar(f"{target}/codes")) == 15
  with pytest.raises(ValueError, match="got prepared records in .*--target"):
    sidecars.run(model, data, 8, target=data)


def test_report_counts_tokens_codes_and_records(tokenized_tars):
  sidecar = records.Sidecar(tokenized_tars / "out" / "codes")
  found = json.loads((tokenized_tars / "out" / "codes" / "report.json").read_text())
  items = [sidecar[i] for i in range(len(sidecar))]
  assert found["pictures"] == len(items) == 15 and sum(found["kept_histogram"]) == 15
  assert found["visual_tokens"] == sum(item["count"] for item in items)
  used = np.concatenate([item["codes"] for item in items])
  assert found["codes_used"] == len(np.unique(used))
  share = np.bincount(used) / len(used)
  entropy = -sum(p * np.log(p) for p in share if p)
  np.testing.assert_allclose(found["codes_perplexity"], np.exp(entropy), rtol=1e-6)
  for count in (item["count"] for item in items):
    assert found["kept_histogram"][count] > 0
  assert "15 pictures" in token_figures.summary(found)
  assert sidecar.manifest["dtype"] == "float32"


def test_a_picture_that_does_not_decode_keeps_its_place(
  visual_tokenizer_directory, tmp_path
):
  made = [toy_shards.record(i, bad=(2,)) for i in range(6)]
  records.write_shards(made, tmp_path / "data", "toy", 4)
  model, data = str(visual_tokenizer_directory), str(tmp_path / "data")
  with pytest.raises(ValueError, match="(?s)at most 1.00% bad.*1 of 6.*r2"):
    sidecars.run(model, data, 8)
  sidecars.run(model, data, 8, max_bad=0.2)
  sidecar = records.Sidecar(tmp_path / "data" / "codes")
  assert [sidecar[i]["id"] for i in range(6)] == [f"r{i}" for i in range(6)]
  assert sidecar[2]["count"] == 0 and sidecar[2]["texts"] == []
  assert sidecar[1]["count"] > 0 and len(sidecar.lengths.count) == 6


def test_mesh_axes_are_read_from_words():
  assert meshes.parse(["tensor=2"]) == {"data": -1, "tensor": 2}
  assert meshes.parse(["data=1", "fsdp=-1"]) == {"data": 1, "fsdp": -1}
  with pytest.raises(ValueError, match="expected a mesh such as"):
    meshes.parse(["tensor"])


def test_another_tokenizer_does_not_continue_a_sidecar(
  data, visual_tokenizer_directory, encoder_directory, toy_data, tmp_path
):
  sidecars.run(str(visual_tokenizer_directory), str(data), 8)
  words = toy_data / "text_tokenizer"
  toy_run.write_visual_tokenizer(tmp_path / "model", encoder_directory, words, seed=4)
  with pytest.raises(ValueError, match="expected to continue a sidecar of"):
    sidecars.run(str(tmp_path / "model"), str(data), 8)


def test_batch_that_the_devices_do_not_divide(data, visual_tokenizer_directory):
  with pytest.raises(ValueError, match=r"data\*fsdp = 8 do not divide batch_size = 12"):
    sidecars.run(str(visual_tokenizer_directory), str(data), 12)


def test_reconstruction_reads_only_the_codes_of_a_picture(visual_tokenizer_directory):
  coder = coder_of(visual_tokenizer_directory)
  codes = np.random.default_rng(0).integers(0, 24, (2, toy_run.PATCHES))
  lengths = np.array([3, 7])
  padded = np.where(np.arange(toy_run.PATCHES) < lengths[:, None], codes, 5)
  whole = tokenizing.decode_codes(coder, jnp.asarray(codes), jnp.asarray(lengths))
  again = tokenizing.decode_codes(coder, jnp.asarray(padded), jnp.asarray(lengths))
  np.testing.assert_allclose(again, whole, atol=1e-6)
  assert whole.shape == (2, toy_run.PATCHES, toy_run.WIDTH)
