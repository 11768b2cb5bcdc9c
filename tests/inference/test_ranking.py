"""Best of n by the contrastive model of a tiny model directory."""

import json

import golden_data
import jax.numpy as jnp
import numpy as np
import pytest
import test_api
import test_drawing
from tokenizers import pre_tokenizers

from lavit_jax.data import clip_text
from lavit_jax.inference import api, pictures, ranking
from lavit_jax.models import clip, openai_clip, vit
from lavit_jax.weights import exchange, model_directory
from lavit_jax.weights import openai_clip as openai_weights

pytestmark = pytest.mark.usefixtures("compile_fast")

folders = test_api.folders
TEXT = dict(
  embed_dim=16, num_layers=1, num_heads=2, head_dim=8, mlp_dim=16, max_length=12
)


@pytest.fixture(scope="module")
def model(folders):
  size = dict(vocab_size=api.LaVIT.load(folders / "whole").language.tokenizer.text_size)
  words = clip.TextTower(**TEXT, **size, output_dim=8, dtype="float32")
  tree = golden_data.abstract_params(words, jnp.zeros((1, 2), int), jnp.ones(1, int))
  manifest = model_directory.read_manifest(folders / "whole")["parts"]["clip"]
  config = manifest["config"] | {"text": TEXT | size}
  part = model_directory.Part({"text": test_api.random_tree(tree, 4)}, config)
  parts = test_drawing.toy_pixels.parts(width=16) | {"clip": part}
  model_directory.save(folders / "ranked", parts, base=folders / "whole")
  return api.LaVIT.load(folders / "ranked", batch_size=2)


def test_scores_are_those_of_the_contrastive_model(model):
  images, texts = test_api.pictures(3), ["a red circle", "two stars", "a"]
  found = ranking.scorer_of(model)(list(images), texts)
  ranker = ranking.reranking.load(model.folder, model.mesh, "float32")
  ids, lengths = ranking.reranking.tokens(ranker, texts)
  whole = clip.Clip(ranker.tower, ranker.words, {}, "float32")
  norm = {"word_norm": {"scale": np.ones(16), "bias": np.zeros(16)}}
  towers = {"vit": ranker.params["vision"], "text": ranker.params["text"]}
  params = towers | norm | {"scale": np.float32(1)}
  row = (vit.normalize(jnp.asarray(images)), ids, lengths)
  out = golden_data.run(whole, params, *row)
  np.testing.assert_allclose(found, (out.image * out.text).sum(-1), atol=1e-5)
  assert np.ptp(found) > 1e-3


def test_the_best_of_several_drawings_is_kept(model):
  prompts, score = ["a red circle", "two stars"], ranking.scorer_of(model)
  made = model.draw(prompts, n=3, sampling=test_drawing.QUICK)
  scores = score(made, np.repeat(prompts, 3).tolist()).reshape(2, 3)
  found = ranking.keep_best(made, prompts, score)
  for row, (picture, value) in enumerate(found):
    assert value == scores[row].max()
    kept = pictures.stack(made[3 * row + scores[row].argmax()], 64)
    np.testing.assert_array_equal(pictures.stack(picture, 64), kept)
  with pytest.raises(ValueError, match="equally many drawings of each of 2 prompts"):
    ranking.keep_best(made[:5], prompts, score)


def words_of_clip(folder):
  """A text tokenizer of CLIP's kind: bytes, one merged word, two marks; 516 ids."""
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  merges = [("r", "e"), ("re", "d</w>")]
  pieces = [*alphabet, *(f"{a}</w>" for a in alphabet), *map("".join, merges)]
  pieces += ["<|startoftext|>", "<|endoftext|>"]
  vocab = {piece: i for i, piece in enumerate(pieces)}
  (folder / "vocab.json").write_text(json.dumps(vocab))
  lines = ["#version: 0.2", *map(" ".join, merges), ""]
  (folder / "merges.txt").write_text("\n".join(lines))
  return len(pieces)


def test_an_imported_clip_ranks(model, tmp_path):
  size = words_of_clip(tmp_path)
  tiny = openai_clip.VARIANTS["tiny"]
  sizes = tiny | {"text": tiny["text"] | {"vocab_size": size}}
  clip_model = openai_clip.OpenaiClip(**sizes, dtype="float32")
  inputs = (jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 2), int), jnp.ones(1, int))
  params = test_api.random_tree(golden_data.abstract_params(clip_model, *inputs), 5)
  params["scale"] = np.float32(2.7)
  part = model_directory.Part(params, sizes)
  openai_weights.write_file(part, tmp_path / "openai.safetensors", None)
  folder = tmp_path / "clip"
  exchange.import_model("openai_clip", tmp_path / "openai.safetensors", folder)
  images, texts = test_api.pictures(3), ["A RED", "red " * 40, ""]
  ids, lengths = ranking.reranking.tokens(
    ranking.reranking.load(str(folder), model.mesh, "float32"), texts
  )
  end = size - 1
  assert ids[0, :4].tolist() == [size - 2, ids[0, 1], size - 3, end]
  assert lengths.tolist() == [4, 13, 2] and ids[1, -1] == end and ids[0, 1] > 255
  seen = vit.normalize(jnp.asarray(pictures.stack(list(images), 32)))
  image, text = golden_data.run(clip_model, params, seen, ids, lengths)
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  found = ranking.scorer_of(model, str(folder))(list(images), texts)
  np.testing.assert_allclose(found, (unit(image) * unit(text)).sum(-1), atol=1e-5)


def test_rankers_that_are_none_are_named(model, folders, tmp_path):
  with pytest.raises(ValueError, match="expected a text tower .* imported CLIP"):
    ranking.scorer_of(model, str(folders / "stage1"))
  with pytest.raises(ValueError, match="expected tokenizer.json, or vocab.json and"):
    clip_text.load(tmp_path, 516, 13)
  words_of_clip(tmp_path)
  with pytest.raises(ValueError, match="expected the ids 97, 98 .* got .514, 515."):
    clip_text.load(tmp_path, 99, 13)
