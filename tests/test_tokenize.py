"""`tokenize`: what stands in the sidecar, whatever the batch, and restarts."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_run

from lavit_jax import sharding, tokenize
from lavit_jax.data import images, items, records, text
from lavit_jax.models import codebook, selector, whitening
from lavit_jax.stages import base, frozen_parts, tokenizing


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
  log_probs = coder.model.apply(variables, inputs, method="select")
  noise = base.gumbel(jax.random.key(0), noise_id, toy_run.PATCHES)
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
    manifest = tokenize.run(str(visual_tokenizer_directory), str(folder), size)
    sidecar = records.Sidecar(folder / "codes")
    assert manifest["count"] == len(sidecar) == 10
    found.append([sidecar.read(i) for i in range(10)])
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
    tokenize.run(str(visual_tokenizer_directory), str(data), 8)
  with pytest.raises(ValueError, match="an unfinished folder"):
    records.Sidecar(data / "codes")
  first = next((data / "codes").glob("*-00000-*.array_record"))
  stamp = first.stat().st_mtime_ns

  def note(self, number, sidecars):
    written.append(number)
    write(self, number, sidecars)

  monkeypatch.setattr(records.SidecarWriter, "write", note)
  tokenize.run(str(visual_tokenizer_directory), str(data), 8)
  assert written == [0, 1, 2] and first.stat().st_mtime_ns == stamp
  assert len(records.Sidecar(data / "codes")) == 10


def test_another_tokenizer_does_not_continue_a_sidecar(
  data, visual_tokenizer_directory, encoder_directory, toy_data, tmp_path
):
  tokenize.run(str(visual_tokenizer_directory), str(data), 8)
  words = toy_data / "text_tokenizer"
  toy_run.write_visual_tokenizer(tmp_path / "model", encoder_directory, words, seed=4)
  with pytest.raises(ValueError, match="expected to continue a sidecar of"):
    tokenize.run(str(tmp_path / "model"), str(data), 8)


def test_batch_that_the_devices_do_not_divide(data, visual_tokenizer_directory):
  with pytest.raises(ValueError, match="data = 8 do not divide batch_size = 12"):
    tokenize.run(str(visual_tokenizer_directory), str(data), 12)


def test_reconstruction_reads_only_the_codes_of_a_picture(visual_tokenizer_directory):
  coder = coder_of(visual_tokenizer_directory)
  codes = np.random.default_rng(0).integers(0, 24, (2, toy_run.PATCHES))
  lengths = np.array([3, 7])
  padded = np.where(np.arange(toy_run.PATCHES) < lengths[:, None], codes, 5)
  whole = tokenizing.decode_codes(coder, jnp.asarray(codes), jnp.asarray(lengths))
  again = tokenizing.decode_codes(coder, jnp.asarray(padded), jnp.asarray(lengths))
  np.testing.assert_allclose(again, whole, atol=1e-6)
  assert whole.shape == (2, toy_run.PATCHES, toy_run.WIDTH)
