"""OpenAI's CLIP: sizes, tables of both layouts, and round trips bit for bit."""

import math

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from lavit_jax.models import openai_clip
from lavit_jax.weights import exchange, files, model_directory, part, rules
from lavit_jax.weights import openai_clip as weights

TINY = openai_clip.VARIANTS["tiny"]


def abstract(sizes):
  side, length = sizes["vision"]["image_size"], sizes["text"]["max_length"]
  ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
  lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
  model = openai_clip.OpenaiClip(**sizes, dtype="float32")
  return part.abstract_params(model, part.shape(1, side, side, 3), ids, lengths)


def random_params(seed=0):
  rng = np.random.default_rng(seed)
  make = lambda leaf: rng.normal(size=leaf.shape, scale=0.2).astype(np.float32)
  return jax.tree.map(make, abstract(TINY))


def state_of(table, dtype="float32"):
  state = dict(rules.export_weights(table, random_params()))
  return published.rounded(state, dtype)


def write_folder(folder, state):
  """As transformers saves it: query, key and value apart."""
  lazy = {key: files.tensors.of_array(array) for key, array in state.items()}
  apart = {key: np.asarray(tensor) for key, tensor in weights.split(lazy).items()}
  published.write_file(folder / "model.safetensors", apart)
  files.write_json(folder / "config.json", weights.config_of(TINY, "float32"))
  return apart


def test_full_size_has_the_published_number_of_parameters():
  tree = abstract(openai_clip.VARIANTS["L14"])
  assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) == 427_616_513
  openai = rules.source_shapes(weights.OPENAI, tree)
  assert openai["visual.transformer.resblocks.23.attn.in_proj_weight"] == (3072, 1024)
  assert openai["visual.conv1.weight"] == (1024, 3, 14, 14)
  assert openai["text_projection"] == (768, 768) and openai["logit_scale"] == ()
  assert openai["token_embedding.weight"] == (49408, 768) and len(openai) == 446


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_file_of_openai_comes_back_bit_for_bit(tmp_path, dtype):
  state = state_of(weights.OPENAI, dtype)
  facts = dict.fromkeys(("input_resolution", "context_length"), np.int64(32))
  source, out = tmp_path / "clip.safetensors", tmp_path / "out.safetensors"
  published.write_file(source, state | facts)
  exchange.import_model("openai_clip", source, tmp_path / "model")
  assert model_directory.part_config(tmp_path / "model", "openai_clip") == TINY
  exchange.export_model("openai_clip", tmp_path / "model", out)
  published.assert_same(files.open_file(out), state)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_of_transformers_comes_back_bit_for_bit(tmp_path, dtype):
  apart = write_folder(tmp_path / "hf", state_of(weights.HUGGING_FACE, dtype))
  (tmp_path / "hf/vocab.json").write_text("{}")
  exchange.import_model("openai_clip", tmp_path / "hf", tmp_path / "model")
  exchange.export_model("openai_clip", tmp_path / "model", tmp_path / "out")
  published.assert_same(files.open_folder(tmp_path / "out"), apart)
  config = files.read_json(tmp_path / "out/config.json")
  assert config == weights.config_of(TINY, dtype)
  assert (tmp_path / "out/vocab.json").is_file()
  assert "MIT license of OpenAI" in (tmp_path / "out/README.md").read_text()


def test_both_layouts_give_one_model(tmp_path):
  write_folder(tmp_path / "hf", state_of(weights.HUGGING_FACE))
  published.write_file(tmp_path / "clip.safetensors", state_of(weights.OPENAI))
  sums = []
  for number, name in enumerate(("hf", "clip.safetensors")):
    target = tmp_path / str(number)
    exchange.import_model("openai_clip", tmp_path / name, target)
    sums.append(model_directory.checksum(target, ["openai_clip"]))
  assert sums[0] == sums[1]


def test_what_is_missing_or_too_much_is_listed(tmp_path):
  apart = write_folder(tmp_path / "hf", state_of(weights.HUGGING_FACE))
  layer = "text_model.encoder.layers.1.self_attn"
  del apart[f"{layer}.k_proj.bias"]
  apart["extra"] = np.ones(2, np.float32)
  published.write_file(tmp_path / "hf/model.safetensors", apart)
  with pytest.raises(ValueError) as error:
    exchange.import_model("openai_clip", tmp_path / "hf", tmp_path / "model")
  unused = f"Unused keys: ['extra', '{layer}.q_proj.bias', '{layer}.v_proj.bias']"
  assert unused in str(error.value)
  assert f"Missing for the model: ['{layer}.qkv_proj.bias']" in str(error.value)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"model_type": "siglip"}, "expected the config.json of a CLIPModel .* 'siglip'"),
    ({"text_config": None}, "expected the config.json of a CLIPModel"),
    ({"vision_config": {"hidden_act": "gelu"}}, "got {'hidden_act': 'gelu'}"),
    ({"text_config": {"num_attention_heads": 0}}, "heads in text_config .* got 0"),
  ],
)
def test_other_models_are_refused(tmp_path, change, message):
  write_folder(tmp_path / "hf", state_of(weights.HUGGING_FACE))
  config = weights.config_of(TINY, "float32") | change
  files.write_json(tmp_path / "hf/config.json", config)
  with pytest.raises(ValueError, match=message):
    exchange.import_model("openai_clip", tmp_path / "hf", tmp_path / "model")


def test_a_language_model_keeps_its_text_tokenizer(tmp_path):
  with pytest.raises(ValueError, match="expected no --base for openai_clip"):
    exchange.import_model("openai_clip", "x", tmp_path / "model", base="other")


def test_a_text_is_read_at_its_end():
  params = random_params()
  model = openai_clip.OpenaiClip(**TINY, dtype="float32")
  images = jnp.zeros((2, 32, 32, 3))
  ids = np.array([[97, 5, 6, 98, 0, 0], [97, 5, 6, 98, 98, 98]], np.int32)
  run = lambda lengths: golden_data.run(model, params, images, ids, lengths)[1]
  ended = run(np.array([4, 4]))
  np.testing.assert_allclose(ended[0], ended[1], atol=1e-6)  # whatever follows
  assert np.abs(ended - run(np.array([3, 3]))).max() > 1e-3
