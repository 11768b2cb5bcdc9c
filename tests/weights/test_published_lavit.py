"""A published LaVIT directory: loaded as it is, imported, verified; exact keys."""

import json
import re

import golden_data
import jax
import numpy as np
import published
import pytest

from lavit_jax import LaVIT
from lavit_jax.core import sharding
from lavit_jax.weights import exchange, files, model_directory


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """A published directory and the model directory imported from it."""
  root = tmp_path_factory.mktemp("lavit")
  published.write_whole_lavit(root / "published", ".safetensors")
  exchange.import_model("lavit", root / "published", root / "model")
  return root / "published", root / "model"


def picture() -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (56, 56, 3)).astype(np.uint8)


def test_published_directory_loads_as_it_is_on_any_mesh(folders):
  source, imported = folders
  mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
  models = [
    LaVIT.load(imported, batch_size=4),
    LaVIT.load(source, mesh=mesh, batch_size=4),
  ]
  codes = [model.tokenize(picture())[0] for model in models]
  assert len(codes[0]["codes"])
  for name in ("codes", "keep"):
    np.testing.assert_array_equal(codes[0][name], codes[1][name])
  own, other = (model.language for model in models)
  assert own.vocabulary == other.vocabulary
  jax.tree.map(np.testing.assert_array_equal, own.params, jax.device_get(other.params))
  leaves = jax.tree.leaves(other.params["llama"])
  largest = max(leaves, key=lambda leaf: leaf.size)
  assert largest.addressable_shards[0].data.size < largest.size
  assert own.tokenizer.checksum == other.tokenizer.checksum


def test_exported_keys_have_the_published_patterns(folders, tmp_path):
  full = json.loads((golden_data.folder() / "lavit_fullsize_keys.json").read_text())
  exchange.export_model("lavit", folders[1], tmp_path / "out", ".safetensors")
  pattern = lambda keys: {re.sub(r"\.\d+\.", ".{i}.", key, count=1) for key in keys}
  visual = tmp_path / "out/visual_tokenizer"
  found = {
    "encoder": files.open_either(visual, "eva_vitg_psz14"),
    "lowres": files.open_either(visual, "tokenizer_decoder"),
    "highres": files.open_either(visual, "highres_tokenizer_decoder"),
    "tokenizer": files.open_either(visual, "tokenizer_encoder")
    | files.open_either(tmp_path / "out/language_model", "visual_weight"),
  }
  for name, keys in found.items():
    assert pattern(keys) == pattern(full[name]), name
  assert_flips_are_refused(tmp_path / "out")


def assert_flips_are_refused(folder):
  """Every weight file of an export is compared with its sum by some part."""
  parts = model_directory.read_manifest(folder)["parts"]
  weights = sorted(path for path in folder.rglob("*") if files.is_file_name(path))
  assert len(weights) >= 8
  for path in weights:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 16]))
    refused = []
    for name in parts:
      try:
        model_directory.begin_check(folder, name)()
      except ValueError as error:
        assert f"{path.parent.name}/{path.name}" in str(error)
        refused.append(name)
    assert refused, path
    path.write_bytes(content)


def test_both_feature_decoders_and_sampling_are_kept(folders):
  parts = model_directory.read_manifest(folders[1])["parts"]
  assert parts["condition"]["config"]["scheduler"] == published.SCHEDULER
  assert parts["highres_condition"]["config"]["ratios"]["16:9"] == [768, 1344]
  assert {"unet", "vae", "null_condition", "highres_unet", "highres_vae"} <= set(parts)
  low = model_directory.part_tensors(folders[1], "visual_tokenizer")
  high = model_directory.part_tensors(folders[1], "highres_feature_decoder")
  assert not np.array_equal(
    np.asarray(low["feature_decoder.pos_embed"]), np.asarray(high["pos_embed"])
  )


def test_decoding_and_sampling_come_back_from_an_export(folders, tmp_path):
  reference = {"steps": 25, "guidance": 7.0, "solver": "ddim"}
  config = lambda folder: model_directory.part_config(folder, "condition")
  for folder in folders:  # what the authors wrote says nothing of it
    assert model_directory.decoding_of(folder) == {}
    assert LaVIT.load(folder).how("answer").count == 5
    assert config(folder)["sampling"] == reference
  own = {"answer": {"min_new": 1, "beams": 1}}
  part = model_directory.read_part(folders[1], "condition")
  facts = {"sampling": {"steps": 4, "guidance": 2.0, "solver": "dpm"}}
  parts = {"condition": model_directory.Part(part.params, part.config | facts)}
  trained, out, back = (tmp_path / name for name in ("trained", "out", "back"))
  model_directory.save(trained, parts, base=folders[1], decoding=own)
  exchange.export_model("lavit", trained, out, ".safetensors")
  exchange.import_model("lavit", out, back)
  for folder in (out, back):
    assert model_directory.decoding_of(folder) == own
    assert config(folder)["sampling"] == facts["sampling"]
    assert config(folder)["ratios"] == part.config["ratios"]


def test_verify_finds_a_changed_tensor_and_a_damaged_file(folders, tmp_path):
  source = tmp_path / "eva.safetensors"
  state = dict(golden_data.load("encoder.npz")[0])
  published.write_file(source, state)
  exchange.import_model("eva", source, tmp_path / "model", num_heads=2)
  certificate = exchange.verify("eva", source, tmp_path / "model", num_heads=2)
  assert certificate["modules"][0]["passed"]
  assert json.loads((tmp_path / "model/parity.json").read_text()) == certificate
  state["norm.bias"] = state["norm.bias"] + 1
  published.write_file(source, state)
  with pytest.raises(ValueError, match=r"these differ: \['vit/norm/bias'\]"):
    exchange.verify("eva", source, tmp_path / "model", num_heads=2)
  file = tmp_path / "model/vit-00000.safetensors"
  data = bytearray(file.read_bytes())
  data[-1] ^= 1
  file.write_bytes(data)
  with pytest.raises(ValueError, match="vit-00000.safetensors"):
    exchange.verify("eva", source, tmp_path / "model", num_heads=2)


def test_a_missing_file_is_named(tmp_path):
  published.write_lavit(tmp_path / "lavit", ".safetensors")
  (tmp_path / "lavit/visual_tokenizer/eva_vitg_psz14.safetensors").unlink()
  with pytest.raises(ValueError, match="expected eva_vitg_psz14.bin or"):
    exchange.import_model("lavit", tmp_path / "lavit", tmp_path / "model")


def test_a_misfit_names_its_file(tmp_path):
  states = published.write_lavit(tmp_path / "lavit", ".safetensors")
  name = "visual_tokenizer/tokenizer_encoder"
  state = states[name] | {"token_predictor.out_conv.6.bias": np.ones(2, np.float32)}
  published.write_file(tmp_path / f"lavit/{name}.safetensors", state)
  with pytest.raises(
    ValueError, match=r"^tokenizer_encoder: .*Unused keys: \['token_p"
  ):
    exchange.import_model("lavit", tmp_path / "lavit", tmp_path / "model")
