"""convert: round trips bit for bit, and complete complaints."""

import json
import pathlib

import golden_data
import numpy as np
import published
import pytest

from lavit_jax import convert
from lavit_jax.models import unet, vae
from lavit_jax.weights import files, model_directory, rules, tensors

SUFFIX = ".safetensors"
DTYPES = ("float32", "bfloat16")


@pytest.mark.parametrize("dtype", DTYPES)
def test_encoder_round_trip_is_bit_exact(tmp_path, dtype):
  state = published.rounded(golden_data.load("encoder.npz")[0], dtype)
  source, out = tmp_path / "eva.safetensors", tmp_path / "out.safetensors"
  published.write_file(source, state)
  convert.import_model("eva", source, tmp_path / "model", num_heads=2)
  convert.export_model("eva", tmp_path / "model", out)
  published.assert_same(files.open_file(out), state)


@pytest.mark.parametrize("dtype", DTYPES)
def test_llama_round_trip_is_bit_exact(tmp_path, dtype, monkeypatch):
  state = published.rounded(published.random_llama(100), dtype)
  config = published.llama_config(state, 4) | {"num_key_value_heads": 2}
  source, out = tmp_path / "llama", tmp_path / "out"
  published.write_llama(source, state, config, SUFFIX)
  published.write_words(source, 97)
  convert.import_model("llama", source, tmp_path / "model")
  part = model_directory.part_config(tmp_path / "model", "llama")
  assert (part["vocab_size"], part["padded_size"], part["text_size"]) == (100, 128, 97)
  monkeypatch.setattr(files, "SHARD_BYTES", 20_000)
  convert.export_model("llama", tmp_path / "model", out)
  assert len(list(out.glob("model-*-of-*.safetensors"))) > 2
  published.assert_same(files.open_folder(out), state)
  exported = json.loads((out / "config.json").read_text())
  assert {key: exported[key] for key in config} == config
  assert exported["torch_dtype"] == dtype
  assert (out / "tokenizer.json").is_file()


def test_export_in_another_dtype(tmp_path):
  state = published.random_llama(100)
  source = tmp_path / "llama"
  config = published.llama_config(state, 4) | {"num_key_value_heads": 2}
  published.write_llama(source, state, config, SUFFIX)
  convert.import_model("llama", source, tmp_path / "model")
  convert.export_model("llama", tmp_path / "model", tmp_path / "out", dtype="bfloat16")
  found = files.open_folder(tmp_path / "out")
  published.assert_same(found, published.rounded(state, "bfloat16"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_lavit_comes_back_bit_for_bit(tmp_path, dtype):
  published.write_whole_lavit(tmp_path / "lavit", SUFFIX, dtype)
  convert.import_model("lavit", tmp_path / "lavit", tmp_path / "model")
  convert.export_model("lavit", tmp_path / "model", tmp_path / "out", SUFFIX)
  before, after = (published.all_weights(tmp_path / n) for n in ("lavit", "out"))
  # The three shards of the language model fit one file now.
  merge = lambda found: {n.removesuffix("model-") or n: s for n, s in found.items()}
  before["language_model/model"] = before.pop("language_model/", None) or before.pop(
    "language_model/model"
  )
  assert merge(before).keys() == merge(after).keys()
  for name, state in before.items():
    published.assert_same(after[name], state)
  for name in ("pixel_decoding", "highres_pixel_decoding"):
    path = pathlib.Path(name) / "scheduler/scheduler_config.json"
    assert (tmp_path / "lavit" / path).read_bytes() == (
      tmp_path / "out" / path
    ).read_bytes()
    for part, read in (("unet", unet), ("vae", vae)):
      configs = [
        json.loads((tmp_path / side / name / part / "config.json").read_text())
        for side in ("lavit", "out")
      ]
      fields = [read.fields_from_config(config) for config in configs]
      assert fields[0] == fields[1]


def test_filler_rows_of_a_lavit_vocabulary_are_left_out(tmp_path):
  states = published.write_lavit(tmp_path / "lavit", SUFFIX)
  state = dict(states["language_model/model"])
  for key in ("model.embed_tokens.weight", "lm_head.weight"):
    state[key] = np.pad(state[key], ((0, 7), (0, 0)), constant_values=3)
  config = published.llama_config(state, 2)
  published.write_llama(tmp_path / "lavit/language_model", state, config, SUFFIX)
  convert.import_model("lavit", tmp_path / "lavit", tmp_path / "model")
  convert.export_model("llama", tmp_path / "model", tmp_path / "out")
  found = files.open_folder(tmp_path / "out")
  published.assert_same(found, states["language_model/model"])


def test_base_parts_are_taken_over(tmp_path):
  published.write_lavit(tmp_path / "lavit", SUFFIX)
  convert.import_model("lavit", tmp_path / "lavit", tmp_path / "model")
  state = published.random_llama(100)
  config = published.llama_config(state, 4) | {"num_key_value_heads": 2}
  published.write_llama(tmp_path / "llama", state, config, SUFFIX)
  new, base = tmp_path / "new", tmp_path / "model"
  convert.import_model("llama", tmp_path / "llama", new, base=base)
  assert model_directory.part_config(new, "llama")["vocab_size"] == 100
  assert model_directory.checksum(new, ["vit"]) == model_directory.checksum(
    base, ["vit"]
  )


def test_every_unused_key_and_unfilled_target_is_listed(tmp_path):
  state = dict(golden_data.load("encoder.npz")[0])
  state["blocks.1.gamma_1"] = np.ones(3, np.float32)
  state["extra"] = state.pop("norm.bias")
  published.write_file(tmp_path / "eva.safetensors", state)
  with pytest.raises(ValueError) as error:
    convert.import_model("eva", tmp_path / "eva.safetensors", tmp_path / "m", None, 2)
  message = str(error.value)
  assert "Unused keys: ['blocks.1.gamma_1', 'extra']" in message
  assert "Missing for the model: ['norm.bias']" in message
  assert not (tmp_path / "m").exists()


def test_old_rotary_buffers_are_optional(tmp_path):
  state = published.random_llama(100)
  config = published.llama_config(state, 4) | {"num_key_value_heads": 2}
  name = "model.layers.0.self_attn.rotary_emb.inv_freq"
  published.write_llama(
    tmp_path / "llama", state | {name: np.ones(4, np.float32)}, config, SUFFIX
  )
  convert.import_model("llama", tmp_path / "llama", tmp_path / "model")
  assert model_directory.damaged_files(tmp_path / "model") == []


def test_an_existing_target_is_left_alone(tmp_path):
  target = tmp_path / "mine"
  target.mkdir()
  (target / "thesis.txt").write_text("years")
  with pytest.raises(ValueError, match="expected a new target"):
    convert.import_model("eva", "nothing", target)
  assert (target / "thesis.txt").read_text() == "years"


def test_a_failed_conversion_leaves_nothing(tmp_path, monkeypatch):
  state = published.random_llama(100)
  config = published.llama_config(state, 4) | {"num_key_value_heads": 2}
  published.write_llama(tmp_path / "llama", state, config, SUFFIX)

  def full(*arguments):
    raise OSError(28, "No space left on device", "x")

  monkeypatch.setattr(tensors, "write_safetensors", full)
  with pytest.raises(OSError):
    convert.import_model("llama", tmp_path / "llama", tmp_path / "model")
  assert {path.name for path in tmp_path.iterdir()} == {"llama"}


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_transpose_of_large_matrices(dtype):
  matrix = np.arange(517 * 256).reshape(517, 256).astype(dtype)
  found = rules.transposed(matrix)
  np.testing.assert_array_equal(found, matrix.T)
  assert found.flags.c_contiguous
