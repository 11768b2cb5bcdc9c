"""Odd but valid folders are read; what is only half there is named (one sentence)."""

import json

import golden_data
import numpy as np
import published
import pytest

from lavit_jax.models import openai_clip as clip_model
from lavit_jax.models import unet, vae
from lavit_jax.weights import (
  exchange,
  files,
  model_directory,
  openai_clip,
  pixel_folders,
  rules,
  stable_diffusion,
)


def arrays(folder, part: str) -> dict:
  found = model_directory.part_tensors(folder, part)
  return {key: np.asarray(tensor) for key, tensor in found.items()}


def equal(a: dict, b: dict) -> None:
  assert a.keys() == b.keys()
  for key in a:
    np.testing.assert_array_equal(a[key], b[key])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
  root = tmp_path_factory.mktemp("odd")
  state = published.random_llama(100)
  config = published.llama_config(state, 4) | {"num_key_value_heads": 2}
  published.write_llama(root / "plain", state, config, ".safetensors")
  exchange.import_model("llama", root / "plain", root / "model")
  return state, config, arrays(root / "model", "llama")


def write_one(folder, state, config, name="model.safetensors") -> None:
  published.write_file(folder / name, state)
  files.write_json(folder / "config.json", config)


@pytest.mark.parametrize(
  "prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."]
)
def test_prefixes_of_wrappers_are_removed(llama, tmp_path, prefix):
  state, config, expected = llama
  write_one(tmp_path / "in", {prefix + k: v for k, v in state.items()}, config)
  exchange.import_model("llama", tmp_path / "in", tmp_path / "model")
  equal(arrays(tmp_path / "model", "llama"), expected)


def test_layers_that_were_compiled_alone_and_shards_with_prefixes(llama, tmp_path):
  state, config, expected = llama
  odd = {k.replace("layers.0.", "layers.0._orig_mod."): v for k, v in state.items()}
  published.write_llama(tmp_path / "in", odd, config, ".safetensors")
  exchange.import_model("llama", tmp_path / "in", tmp_path / "model")
  equal(arrays(tmp_path / "model", "llama"), expected)


def test_a_key_with_and_without_the_prefix_is_refused(llama, tmp_path):
  state, config, _ = llama
  twice = state | {"_orig_mod.model.norm.weight": state["model.norm.weight"]}
  write_one(tmp_path / "in", twice, config)
  with pytest.raises(ValueError, match="every key of .* once, got .*model.norm.weight"):
    exchange.import_model("llama", tmp_path / "in", tmp_path / "model")


@pytest.mark.parametrize("kind", ["fp16", "bf16", "fp32"])
def test_weights_of_one_precision_alone_are_read(llama, tmp_path, kind):
  state, config, expected = llama
  write_one(tmp_path / "in", state, config, f"model.{kind}.safetensors")
  exchange.import_model("llama", tmp_path / "in", tmp_path / "model")
  equal(arrays(tmp_path / "model", "llama"), expected)


def test_shards_of_one_precision_are_read_and_two_are_refused(llama, tmp_path):
  state, config, expected = llama
  folder = tmp_path / "in"
  published.write_llama(folder, state, config, ".safetensors")
  index = folder / "model.safetensors.index.json"
  index.rename(folder / "model.safetensors.index.fp16.json")
  exchange.import_model("llama", folder, tmp_path / "model")
  equal(arrays(tmp_path / "model", "llama"), expected)
  published.write_file(folder / "model.bf16.safetensors", state)
  with pytest.raises(ValueError, match="of one precision in"):
    exchange.import_model("llama", folder, tmp_path / "other")


def test_an_index_may_name_buffers_that_no_shard_holds(llama, tmp_path):
  state, config, expected = llama
  published.write_llama(tmp_path / "in", state, config, ".safetensors")
  index = tmp_path / "in/model.safetensors.index.json"
  places = json.loads(index.read_text())["weight_map"]
  file = next(iter(places.values()))
  buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
  index.write_text(json.dumps({"weight_map": places | {buffer: file}}))
  exchange.import_model("llama", tmp_path / "in", tmp_path / "model")
  equal(arrays(tmp_path / "model", "llama"), expected)
  index.write_text(json.dumps({"weight_map": places | {"model.lost.weight": file}}))
  with pytest.raises(ValueError, match=r"\['model.lost.weight'\] not in"):
    exchange.import_model("llama", tmp_path / "in", tmp_path / "other")


def test_a_number_may_be_stored_as_a_vector_of_one():
  tree = {"scale": np.zeros((), np.float32)}
  table = [rules.Rule("logit_scale", "scale")]
  source = {"logit_scale": np.array([2.5], np.float32)}
  found = rules.import_weights(table, source, tree)["scale"]
  assert found.shape == () and found == np.float32(2.5)
  with pytest.raises(ValueError, match="must fill the model exactly"):
    rules.import_weights(table, {"logit_scale": np.ones(2, np.float32)}, tree)


@pytest.mark.parametrize(
  "content, said",
  [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS"),
    (b"\n <!DOCTYPE html><html>", "web page"),
    (b"<HTML><body>Not found", "web page"),
    (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "error message"),
  ],
)
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_what_stands_in_for_weights_is_named(tmp_path, content, said, suffix):
  path = tmp_path / f"eva{suffix}"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=f"expected weights in .*{said}"):
    exchange.import_model("eva", path, tmp_path / "model")


UNET = published.UNET | {"cross_attention_dim": 24, "transformer_layers_per_block": 1}


def test_numbers_of_each_layer_are_read_where_they_agree():
  plain = unet.fields_from_config(UNET | {"transformer_layers_per_block": [2, 3]})
  nested = {"transformer_layers_per_block": [[2], [3, 3]]}
  upward = {"reverse_transformer_layers_per_block": [[3, 3, 3], 2]}
  assert unet.fields_from_config(UNET | nested | upward) == plain
  for wrong in ([[3, 1], 2], [2, 3], "x"):
    upward["reverse_transformer_layers_per_block"] = wrong
    with pytest.raises(ValueError, match="expected"):
      unet.fields_from_config(UNET | nested | upward)


@pytest.mark.parametrize(
  "change",
  [
    {"norm_num_groups": None},
    {"norm_num_groups": 7},
    {"transformer_layers_per_block": [[1, 2], [1]]},
    {"transformer_layers_per_block": [[], 1]},
    {"transformer_layers_per_block": None},
    {"layers_per_block": [[1], [2]]},
    {"layers_per_block": None},
    {"attention_head_dim": None},
    {"cross_attention_dim": None},
    {"block_out_channels": None},
    {"addition_embed_type": "text_time", "addition_time_embed_dim": None},
  ],
)
def test_a_unet_config_that_says_nothing_usable_is_one_sentence(change):
  with pytest.raises(ValueError, match="expected") as error:
    unet.fields_from_config(UNET | change)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "change",
  [{"norm_num_groups": None}, {"layers_per_block": None}, {"scaling_factor": None}],
)
def test_a_vae_config_that_says_nothing_usable_is_one_sentence(change):
  with pytest.raises(ValueError, match="expected"):
    vae.fields_from_config(published.VAE | change)


SAID = {
  "unet": {"sample_size": 8, "upcast_attention": True, "_diffusers_version": "0.6.0"},
  "vae": {"sample_size": 16, "force_upcast": True, "act_fn": "silu"},
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
  """A diffusers folder whose files say more than our modules read, out and back."""
  root = tmp_path_factory.mktemp("diffusion")
  published.write_pixels(root / "in", 24, 0, ".safetensors")
  for name, more in SAID.items():
    path = root / "in" / name / "config.json"
    files.write_json(path, files.read_json(path) | more | {"_name_or_path": "/home/me"})
  exchange.import_model("diffusion", root / "in", root / "model")
  exchange.export_model("diffusion", root / "model", root / "out")
  return root


def test_every_field_of_a_diffusers_folder_is_carried_through(pipeline):
  for name in ("unet", "vae"):
    before, after = (
      files.read_json(pipeline / side / name / "config.json") for side in ("in", "out")
    )
    del before["_name_or_path"]  # a place on another machine
    assert after == before
  index = files.read_json(pipeline / "out/model_index.json")
  assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
  assert (pipeline / "out/uncond_embeddings.safetensors").is_file()


def test_fields_of_another_size_do_not_come_from_the_published_file():
  before = UNET | {"sample_size": 64}
  part = unet.fields_from_config(UNET) | {"published": before}
  assert stable_diffusion.config_json("unet", part)["sample_size"] == 64
  part |= {"num_layers": 3}
  assert stable_diffusion.config_json("unet", part)["layers_per_block"] == 3
  assert "sample_size" not in stable_diffusion.config_json("unet", part)


@pytest.mark.parametrize("name", ["scheduler", "vae", "unet", "uncond_embeddings"])
def test_a_lavit_directory_names_what_its_pixel_decoder_lacks(tmp_path, name):
  published.write_lavit(tmp_path, ".safetensors")
  width = golden_data.load("decoder_lowres.npz")[0]["unet_proj.weight"].shape[0]
  pixels = tmp_path / "pixel_decoding"
  published.write_pixels(pixels, width, 0, ".safetensors")
  gone = pixels / name
  gone = gone if gone.is_dir() else gone.with_suffix(".safetensors")
  gone.rename(tmp_path / "elsewhere")
  with pytest.raises(ValueError, match=f"a folder without {name}"):
    model_directory.read_manifest(tmp_path)
  assert pixel_folders.is_folder(pixels)


def clip_config(**text) -> dict:
  vision = {"hidden_act": "quick_gelu", "num_attention_heads": 4}
  return {"model_type": "clip", "vision_config": vision, "text_config": text}


def test_the_older_text_config_goes_first(tmp_path):
  heads = lambda config: openai_clip._heads(config, tmp_path)["text_tower"]
  assert heads(clip_config(num_attention_heads=4)) == 4
  older = {"text_config_dict": {"num_attention_heads": 3}}
  assert heads(clip_config() | older) == 3
  assert heads(clip_config(num_attention_heads=4) | older) == 3
  assert heads(clip_config(num_attention_heads=4) | {"text_config_dict": {}}) == 8
  with pytest.raises(ValueError, match="gelu"):
    heads(clip_config() | {"text_config_dict": {"hidden_act": "gelu"}})


@pytest.mark.parametrize(
  "name, config",
  [
    ("config.json", clip_config(hidden_act="gelu")),
    ("open_clip_config.json", {"model_cfg": {"embed_dim": 16}}),
  ],
)
def test_a_clip_file_beside_a_config_that_asks_for_gelu_is_refused(
  tmp_path, name, config
):
  sizes = clip_model.VARIANTS["tiny"]
  target = openai_clip.abstract_params(
    clip_model.OpenaiClip(**sizes),
    *(openai_clip.shape(1, *[sizes["vision"]["image_size"]] * 2, 3),),
    *(np.zeros((1, sizes["text"]["max_length"]), np.int32), np.ones(1, np.int32)),
  )
  shapes = rules.source_shapes(openai_clip.OPENAI, target)
  state = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
  path = tmp_path / "clip.safetensors"
  published.write_file(path, state)
  assert exchange.read_published("openai_clip", path)
  files.write_json(tmp_path / name, config)
  with pytest.raises(ValueError, match="(?i)gelu"):
    exchange.read_published("openai_clip", path)
