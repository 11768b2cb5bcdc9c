"""Best of n by the contrastive model of a tiny model directory."""

import golden_data
import jax.numpy as jnp
import numpy as np
import pytest
import test_api
import test_drawing

from lavit_jax import api, pictures, ranking
from lavit_jax.models import clip, vit
from lavit_jax.weights import model_directory

compile_fast, folders = test_api.compile_fast, test_api.folders
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
  found = ranking.own_scorer(model)(list(images), texts)
  ranker = ranking.reranking.load(
    model.folder, model.coder.tower, model.coder.frozen["vit"], model.mesh
  )
  ids, lengths = ranking.reranking.tokens(ranker, model.language.tokenizer, texts)
  whole = clip.Clip(ranker.tower, ranker.words, {}, "float32")
  norm = {"word_norm": {"scale": np.ones(16), "bias": np.zeros(16)}}
  params = ranker.params | norm | {"scale": np.float32(1)}
  row = (vit.normalize(jnp.asarray(images)), ids, lengths)
  out = golden_data.run(whole, params, *row)
  np.testing.assert_allclose(found, (out.image * out.text).sum(-1), atol=1e-5)
  assert np.ptp(found) > 1e-3


def test_the_best_of_several_drawings_is_kept(model):
  prompts, score = ["a red circle", "two stars"], ranking.own_scorer(model)
  made = model.draw(prompts, n=3, sampling=test_drawing.QUICK)
  scores = score(made, np.repeat(prompts, 3).tolist()).reshape(2, 3)
  found = ranking.keep_best(made, prompts, score)
  for row, (picture, value) in enumerate(found):
    assert value == scores[row].max()
    kept = pictures.stack(made[3 * row + scores[row].argmax()], 64)
    np.testing.assert_array_equal(pictures.stack(picture, 64), kept)
  with pytest.raises(ValueError, match="equally many drawings of each of 2 prompts"):
    ranking.keep_best(made[:5], prompts, score)
