"""Weights from anywhere: one clear sentence each, and no target appears."""

import json
import struct

import golden_data
import numpy as np
import published
import pytest

from lavit_jax.weights import exchange, files, tensors


def refused(kind: str, source, tmp_path, expected: str) -> str:
  """Imports, and checks the sentence and that nothing is left."""
  before = sorted(path.name for path in tmp_path.iterdir())
  with pytest.raises(ValueError, match=expected) as error:
    exchange.import_model(kind, source, tmp_path / "model", num_heads=2)
  assert sorted(path.name for path in tmp_path.iterdir()) == before
  message = str(error.value)
  assert "\n" not in message
  return message


@pytest.fixture
def encoder(tmp_path):
  path = tmp_path / "eva.safetensors"
  published.write_file(path, golden_data.load("encoder.npz")[0])
  return path


@pytest.fixture
def llama(tmp_path):
  state = published.random_llama(100)
  config = published.llama_config(state, 4) | {"num_key_value_heads": 2}
  published.write_llama(tmp_path / "llama", state, config, ".safetensors")
  return tmp_path / "llama"


@pytest.mark.parametrize("keep", [0, 5, 200, -1000, -1])
def test_truncated_safetensors(encoder, tmp_path, keep):
  encoder.write_bytes(encoder.read_bytes()[:keep])
  refused("eva", encoder, tmp_path, "expected a whole safetensors file .*download")


def test_too_long_safetensors(encoder, tmp_path):
  encoder.write_bytes(encoder.read_bytes() + b"\0")
  refused("eva", encoder, tmp_path, "expected a whole safetensors file")


def write_header(path, header: bytes, body: bytes) -> None:
  path.write_bytes(struct.pack("<Q", len(header)) + header + body)


def entry(first: int, last: int, shape=(2,), dtype="F32") -> dict:
  return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


@pytest.mark.parametrize(
  "header",
  [
    {"a": entry(0, 8), "b": entry(4, 12)},  # overlapping
    {"a": entry(0, 8), "b": entry(12, 20)},  # a hole
    {"a": entry(0, 8, (3,))},
    {"a": entry(0, 8, (-2,))},
    {"a": entry(0, 8, (2.5,))},
    {"a": entry(-8, 0)},
    {"a": entry(0, 8, dtype="F4")},
    {"a": {"dtype": "F32"}},
    {"a": 3},
    [1],
    "x",
  ],
)
def test_contradicting_headers(tmp_path, header):
  path = tmp_path / "eva.safetensors"
  write_header(path, json.dumps(header).encode(), bytes(20))
  refused("eva", path, tmp_path, "expected a whole safetensors file")


def test_duplicate_keys_in_a_header(tmp_path):
  part = json.dumps(entry(0, 8))
  path = tmp_path / "eva.safetensors"
  write_header(path, f'{{"a": {part}, "a": {part}}}'.encode(), bytes(8))
  refused("eva", path, tmp_path, "the key a twice")


@pytest.mark.parametrize("size", [2**63, 10**9])
def test_header_longer_than_the_file(tmp_path, size):
  path = tmp_path / "eva.safetensors"
  path.write_bytes(struct.pack("<Q", size) + b"{}")
  refused("eva", path, tmp_path, "ends inside its header")


def test_deeply_nested_header(tmp_path):
  path = tmp_path / "eva.safetensors"
  write_header(path, b"[" * 100_000 + b"]" * 100_000, b"")
  refused("eva", path, tmp_path, "expected a whole safetensors file")


def test_wrong_shapes_and_dtypes(tmp_path):
  state = dict(golden_data.load("encoder.npz")[0])
  state["norm.bias"] = np.ones(7, np.float32)
  path = tmp_path / "eva.safetensors"
  published.write_file(path, state)
  message = refused("eva", path, tmp_path, "must fill the model exactly")
  assert "norm.bias: expected [32], got [7]" in message
  state["norm.bias"] = np.ones(32, np.int8)
  published.write_file(path, state)
  refused("eva", path, tmp_path, "norm.bias: int8.*not quantized")


def test_missing_shard(llama, tmp_path):
  (llama / "model-00002-of-00003.safetensors").unlink()
  expected = r"\['model-00002-of-00003.safetensors'\] are missing"
  refused("llama", llama, tmp_path, expected)


def test_key_in_two_shards(llama, tmp_path):
  first, second = (llama / f"model-0000{i}-of-00003.safetensors" for i in (1, 2))
  arrays = {k: np.asarray(t) for k, t in files.open_file(second).items()}
  key, tensor = next(iter(files.open_file(first).items()))
  published.write_file(second, arrays | {key: np.asarray(tensor)})
  refused("llama", llama, tmp_path, "expected every key once")


@pytest.mark.parametrize(
  "name", ["/etc/passwd", "../secret.safetensors", "..", "a/b.safetensors", "a\\b", ""]
)
def test_index_that_leaves_its_folder(llama, tmp_path, name):
  index = llama / "model.safetensors.index.json"
  places = json.loads(index.read_text())["weight_map"]
  places[next(iter(places))] = name
  index.write_text(json.dumps({"weight_map": places}))
  refused("llama", llama, tmp_path, "an index must stay inside its folder")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": []}', "{}"])
def test_broken_index(llama, tmp_path, text):
  (llama / "model.safetensors.index.json").write_text(text)
  refused("llama", llama, tmp_path, "expected (JSON|a JSON object|a weight_map)")


@pytest.mark.parametrize(
  "change",
  [
    {"hidden_size": "many"},
    {"hidden_size": None},
    {"num_attention_heads": 0},
    {"model_type": "gpt2"},
    {"hidden_act": "gelu"},
    {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    {"num_hidden_layers": 3},
    {"num_key_value_heads": 4},
  ],
)
def test_config_that_does_not_fit(llama, tmp_path, change):
  config = json.loads((llama / "config.json").read_text())
  (llama / "config.json").write_text(json.dumps(config | change))
  refused("llama", llama, tmp_path, "expected|must fill")


def test_folder_without_weights(tmp_path):
  (tmp_path / "empty").mkdir()
  (tmp_path / "empty/config.json").write_text("{}")
  refused("llama", tmp_path / "empty", tmp_path, "expected the sizes of a LLaMA")
  refused("llama", tmp_path / "none", tmp_path, "expected a folder for llama")
  refused("diffusion", tmp_path / "empty", tmp_path, "expected folders unet or vae")


def test_file_that_shrinks_while_it_is_read(encoder):
  found = tensors.open_safetensors(encoder)
  encoder.write_bytes(encoder.read_bytes()[:-100])
  with pytest.raises(ValueError, match="expected a whole safetensors file"):
    [tensor.read() for tensor in found.values()]
