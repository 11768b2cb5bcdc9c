"""Every stage starts from the weights of a model directory."""

import jax
import numpy as np
import pytest
import toy_run

from configs import contrastive as contrastive_config
from configs import pixel_decoder as pixel_decoder_config
from configs import pretrain as pretrain_config
from configs import visual_tokenizer as visual_tokenizer_config
from lavit_jax.core import sharding
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.layers import linear
from lavit_jax.models import codebook, lavit
from lavit_jax.stages import pretrain, warm_start
from lavit_jax.training.train_state import TrainState
from lavit_jax.weights import model_directory, rules
from lavit_jax.weights.model_directory import Part

WORDS = toy_run.WORDS
PLAIN = 48  # ids of the plain model, 40 of them text


def language_state(mesh):
  """State of step 0 as the stage makes it, with random parameters, and shardings."""
  model = toy_run.language_model()
  init = lavit.init_function(model, toy_run.PATCHES)
  abstract, axes = linear.abstract_params(init)
  spread = sharding.parameter_shardings(abstract, axes, mesh)
  params = jax.device_put(toy_run.language_params(), spread)
  fields = dict(step=0, opt_state=None)
  return TrainState(params=params, **fields), TrainState(params=spread, **fields)


def plain_llama(folder, sizes=None):
  """A model directory with a plain LLaMA of text ids; returns its parameters."""
  tree = rules.flatten(toy_run.language_params()["llama"])
  rng = np.random.default_rng(1)
  for path, leaf in tree.items():
    tree[path] = rng.normal(size=leaf.shape, scale=0.3).astype(np.float32)
  width = toy_run.LLAMA["embed_dim"]
  tree["embedding/embedding"] = np.zeros((128, width), np.float32)
  tree["embedding/embedding"][:PLAIN] = 1 + rng.normal(size=(PLAIN, width))
  tree["head/kernel"] = np.ascontiguousarray(tree["embedding/embedding"].T) * 2
  tree = rules.unflatten(tree)
  config = (sizes or toy_run.LLAMA) | dict(
    vocab_size=PLAIN, padded_size=128, text_size=WORDS.text_size, published={}
  )
  model_directory.save(folder, {"llama": Part(tree, config)})
  return tree


@pytest.mark.parametrize("shape", [{}, dict(fsdp=4, tensor=2)])
def test_plain_llama_gets_rows_for_marks_and_codes(tmp_path, shape):
  devices = jax.devices() if shape else jax.devices()[:1]
  mesh = sharding.make_mesh(shape, devices)
  old = plain_llama(tmp_path / "plain")
  state, shardings = language_state(mesh)
  config = toy_run.language_config(warm_start=str(tmp_path / "plain"))
  new = warm_start.language(state, shardings, config, WORDS).params["llama"]
  found, expected = rules.flatten(jax.device_get(new)), rules.flatten(old)
  for path in set(found) - {"embedding/embedding", "head/kernel"}:
    np.testing.assert_array_equal(found[path], expected[path], err_msg=path)
  text = WORDS.text_size
  for own, published in (
    (found["embedding/embedding"], expected["embedding/embedding"]),
    (found["head/kernel"].T, expected["head/kernel"].T),
  ):
    np.testing.assert_array_equal(own[:text], published[:text])
    added = own[text : WORDS.size]
    mean, spread = published[:text].mean(), published[:text].std(0).mean()
    assert abs(added.mean() - mean) < 0.15 * abs(mean)
    assert 0.7 * spread < added.std(0).mean() < 1.3 * spread
    assert not own[WORDS.size :].any()
  assert new["head"]["kernel"].sharding == shardings.params["llama"]["head"]["kernel"]


def test_joint_llama_and_understanding_are_taken_whole(tmp_path):
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  state, shardings = language_state(mesh)
  params = jax.tree.map(lambda x: np.asarray(x) + 1, toy_run.language_params())
  config = toy_run.language_config(warm_start=str(tmp_path / "model"))
  saving = _saving(config, tmp_path)
  saving.decoding.answer.min_new = 0
  pretrain.save(params, saving, WORDS, str(tmp_path / "model"))
  said = model_directory.decoding_of(tmp_path / "model")
  assert said == saving.decoding.to_dict() and said["answer"]["min_new"] == 0
  found = warm_start.language(state, shardings, config, WORDS).params
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), params)


def _saving(config, tmp_path):
  """The config with an empty base directory and text tokenizer to copy."""
  model_directory.save(tmp_path / "base", {})
  (tmp_path / "words").mkdir()
  config = config.copy_and_resolve_references()
  config.init_from = str(tmp_path / "base")
  config.data.text_tokenizer = str(tmp_path / "words")
  return config


def test_sizes_that_shapes_do_not_show_are_compared(tmp_path):
  sizes = toy_run.LLAMA | dict(norm_eps=1e-6, rope_base=5e5)
  plain_llama(tmp_path / "plain", sizes)
  state, shardings = language_state(sharding.make_mesh({}, jax.devices()[:1]))
  config = toy_run.language_config(warm_start=str(tmp_path / "plain"))
  with pytest.raises(ValueError, match="norm_eps.*1e-06.*set these fields"):
    warm_start.language(state, shardings, config, WORDS)


def test_a_text_tokenizer_of_another_model_is_refused(tmp_path):
  plain_llama(tmp_path / "plain")
  state, shardings = language_state(sharding.make_mesh({}, jax.devices()[:1]))
  config = toy_run.language_config(warm_start=str(tmp_path / "plain"))
  with pytest.raises(ValueError, match="expected at least the 60 ids"):
    warm_start.language(state, shardings, config, Vocabulary(60, 24))


def test_visual_tokenizer_and_codebook(tmp_path):
  rng = np.random.default_rng(3)
  params = toy_run.visual_tokenizer_params()
  table = rng.normal(size=(24, 8)).astype(np.float32)
  parts = {
    "visual_tokenizer": Part(params, toy_run.TOKENIZER),
    "codebook": Part({"embedding": table}, dict(num_codes=24, code_dim=8)),
  }
  model_directory.save(tmp_path / "model", parts)
  mesh = sharding.make_mesh({"fsdp": 8})
  whole = sharding.replicated(mesh)
  zeros = jax.tree.map(np.zeros_like, params)
  fields = dict(step=0, opt_state=None)
  state = TrainState(params=zeros, codebook=codebook.create(table * 0), **fields)
  spread = jax.tree.map(lambda _: whole, (state.params, state.codebook))
  shardings = TrainState(params=spread[0], codebook=spread[1], **fields)
  config = toy_run.visual_tokenizer_run(tmp_path, tmp_path)
  config.warm_start = str(tmp_path / "model")
  found = warm_start.visual_tokenizer(state, shardings, config)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(found.params), params)
  np.testing.assert_array_equal(found.codebook.embedding, table)


@pytest.mark.parametrize("stored", ["named", "absent"])
def test_a_selector_that_saw_other_features_is_refused(tmp_path, stored):
  sizes = toy_run.TOKENIZER | {"selector_input": "whitened"}
  if stored == "absent":  # as before the field was there
    del sizes["selector_input"]
  params = toy_run.visual_tokenizer_params()
  parts = {"visual_tokenizer": Part(params, sizes)}
  model_directory.save(tmp_path / "model", parts)
  config = toy_run.visual_tokenizer_run(tmp_path, tmp_path)
  config.warm_start = str(tmp_path / "model")
  with pytest.raises(ValueError, match="'selector_input': .'whitened', 'raw'"):
    warm_start.visual_tokenizer(None, None, config)


@pytest.mark.parametrize(
  "config",
  [
    pretrain_config.get_config("7b"),
    pixel_decoder_config.get_config("sd15"),
    pixel_decoder_config.get_config("sdxl"),
  ],
  ids=lambda config: config.stage,
)
def test_full_size_stages_start_at_random_only_when_asked_by_name(config):
  with pytest.raises(ValueError, match="warm_start is empty; .*warm_start=random"):
    warm_start.check(config)
  for fields in (dict(warm_start="models/llama"), dict(parameters_from="runs/a")):
    told = config.copy_and_resolve_references()
    told.update(fields)
    warm_start.check(told)
  config.warm_start = "random"
  warm_start.check(config)
  assert warm_start.folder_of(config) == ""


def test_tiny_stages_and_the_tokenizer_of_the_paper_start_at_random():
  for module in (contrastive_config, visual_tokenizer_config, pretrain_config):
    assert module.get_config("tiny").warm_start == "random"
  assert visual_tokenizer_config.get_config("7b").warm_start == "random"
