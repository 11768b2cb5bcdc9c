"""The same step on every mesh: losses, gradients, keep masks and the codebook."""

import functools
import math

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_run

from configs import visual_tokenizer as config_file
from lavit_jax.core import sharding
from lavit_jax.data import items
from lavit_jax.inference import frozen_parts
from lavit_jax.layers import linear
from lavit_jax.models import codebook, lavit, selector, whitening
from lavit_jax.stages import pretrain, reconstruction
from lavit_jax.training import base, feed, train_state

MESHES = [(8, 1, 1, 1), (2, 2, 1, 2), (1, 2, 2, 2), (1, 1, 1, 8)]
BATCH = 8


def mesh_of(shape) -> jax.sharding.Mesh:
  sizes = dict(zip(sharding.MESH_AXES, shape))
  return sharding.make_mesh(sizes, jax.devices()[: math.prod(shape)])


def shardings_of(init, params, book, mesh):
  """Abstract state and its shardings, with the gradient as optimizer state."""
  _, axes = linear.abstract_params(init)
  tx = toy_run.recorder()
  abstract = jax.eval_shape(lambda p, b: train_state.fresh(p, tx, b), params, book)
  return train_state.state_shardings(abstract, axes, mesh)


def run_step(step, init, params, frozen, batch, mesh, book=None):
  """One step on a mesh: the state it leaves and its metrics, as numpy arrays."""
  spread = shardings_of(init, params, book, mesh)
  state = jax.device_put(train_state.fresh(params, toy_run.recorder(), book), spread)
  frozen = base.place(frozen, mesh)
  rows = len(next(iter(batch.values())))
  batch = feed.place(batch, list(range(rows)), rows, mesh)
  with jax.set_mesh(mesh):
    compiled = jax.jit(
      step,
      out_shardings=(spread, None),
      compiler_options=golden_data.COMPILE_FAST,
    )
    state, metrics = compiled(state, frozen, batch, jax.random.key(0))
  return jax.device_get((state, metrics))


def assert_equal_trees(found, expected, atol=1e-5):
  found = jax.tree_util.tree_flatten_with_path(found)[0]
  for (path, a), b in zip(found, jax.tree.leaves(expected), strict=True):
    name = jax.tree_util.keystr(path)
    np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5, err_msg=name)


# Stage 2


def language_step(accumulate=1, **changes):
  model = toy_run.language_model(toy_run.language_config(**changes))
  tx = toy_run.recorder()
  step = pretrain.make_step(model, toy_run.tower(), tx, toy_run.WORDS, accumulate, 2)
  return step, lavit.init_function(model, toy_run.PATCHES)


@functools.cache
def language_result(shape, rows=BATCH, slots=2):
  step, init = language_step()
  batch = toy_run.packed_batch(rows, slots=slots)
  params = toy_run.language_params()
  return run_step(step, init, params, toy_run.frozen(), batch, mesh_of(shape))


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_stage_2_loss_and_gradients_are_those_of_one_device(shape):
  expected, values = language_result((1, 1, 1, 1))
  found, metrics = language_result(shape)
  np.testing.assert_allclose(metrics["loss"], values["loss"], atol=1e-5)
  assert_equal_trees(found.opt_state, expected.opt_state)
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected.opt_state))
  assert largest > 1e-2  # the comparison is not one of zeros


def test_three_pictures_of_a_row_that_two_devices_share_count_as_on_one_device():
  rows_and_slots = (4, 3)  # one row to each pair of devices
  expected, _ = language_result((1, 1, 1, 1), *rows_and_slots)
  found, _ = language_result((1, 4, 2, 1), *rows_and_slots)
  assert_equal_trees(found.opt_state, expected.opt_state)


def test_slots_are_added_only_where_pictures_do_not_divide():
  def slots(shape, rows, sized=3):
    images = jnp.ones((rows, sized, 8, 8, 3), jnp.uint8)
    keep = jnp.ones((rows, sized, 1), bool)
    with jax.set_mesh(mesh_of(shape)):
      images, keep = jax.jit(pretrain.even_slots)(images, keep)
    assert images.shape[:2] == keep.shape[:2]
    assert keep[:, :sized].all() and not keep[:, sized:].any()
    return images.shape[1]

  assert slots((1, 4, 2, 1), 4) == 4
  assert slots((1, 4, 2, 1), 8) == 3  # two rows hold six pictures
  assert slots((1, 2, 4, 1), 4) == 4
  assert slots((2, 2, 1, 2), 4) == 3


# Stage 1


def tokenizer_config(accumulate):
  config = config_file.get_config("tiny")
  config.update(dict(accumulate=accumulate, batch_size=BATCH, unroll=1))
  config.model = toy_run.TOKENIZER
  return config


def picture_batch() -> dict[str, np.ndarray]:
  images = toy_run.pictures(BATCH)
  ids = np.array([items.noise_id(image) for image in images], np.uint32)
  return {"image": images, "noise_id": ids}


def init_tokenizer(key):
  inputs = jnp.zeros((1, toy_run.PATCHES, toy_run.WIDTH))
  return toy_run.visual_tokenizer().init(key, inputs, inputs[..., 0] == 0)


def random_codebook() -> codebook.Codebook:
  shape = (toy_run.TOKENIZER["num_codes"], toy_run.TOKENIZER["code_dim"])
  rows = np.random.default_rng(1).normal(size=shape)
  return codebook.create(codebook.l2_normalize(jnp.asarray(rows)), 0.1)


@functools.cache
def tokenizer_result(shape, accumulate=1, quantize=True):
  tx, config = toy_run.recorder(), tokenizer_config(accumulate)
  parts = (toy_run.visual_tokenizer(), toy_run.tower())
  step = reconstruction.make_step(*parts, tx, config, quantize)
  return run_step(
    step,
    init_tokenizer,
    toy_run.visual_tokenizer_params(),
    toy_run.frozen(),
    picture_batch(),
    mesh_of(shape),
    random_codebook(),
  )


def assert_same_codebook(found, expected):
  for field in ("embedding", "counts", "sums"):
    a, b = (getattr(state.codebook, field) for state in (found, expected))
    np.testing.assert_allclose(a, b, atol=1e-5, err_msg=field)


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_stage_1_gradients_and_codebook_are_those_of_one_device(shape):
  expected, values = tokenizer_result((1, 1, 1, 1))
  found, metrics = tokenizer_result(shape)
  assert_same_codebook(found, expected)
  assert_equal_trees(found.opt_state, expected.opt_state)
  for name in ("kept_share", "codes_used", "codes_revived", "rescued"):
    assert metrics[name] == values[name], name
  before = random_codebook()
  assert np.abs(expected.codebook.embedding - before.embedding).max() > 0.01


def test_stage_1_gradients_before_the_codebook_are_those_of_one_device():
  expected, _ = tokenizer_result((1, 1, 1, 1), quantize=False)
  found, _ = tokenizer_result((2, 1, 2, 2), accumulate=2, quantize=False)
  assert_equal_trees(found.opt_state, expected.opt_state)
  assert np.abs(expected.opt_state["selector"]["in_proj"]["kernel"]).max() > 1e-5


def test_stage_1_over_four_micro_batches_equals_one_batch_of_one_device():
  expected, values = tokenizer_result((1, 1, 1, 1))
  found, metrics = tokenizer_result((2, 1, 2, 2), accumulate=4)
  assert_same_codebook(found, expected)
  assert_equal_trees(found.opt_state, expected.opt_state)
  for name in ("loss", "cosine", "kept_share", "codes_used", "code_perplexity"):
    np.testing.assert_allclose(metrics[name], values[name], rtol=1e-5, err_msg=name)
  assert values["codes_revived"] > 0  # revived codes are the same vectors too


@functools.cache
def keep_masks(shape):
  mesh, tower = mesh_of(shape), toy_run.tower()
  model = toy_run.visual_tokenizer()

  def run(params, frozen, batch):
    features = frozen_parts.patch_features(tower, frozen, batch["image"])
    inputs = whitening.whiten(frozen["whitening"], features)
    noise = selector.gumbel(jax.random.key(0), batch["noise_id"], toy_run.PATCHES)
    return reconstruction.encode(model, params, features, inputs, noise).keep

  batch = feed.place(picture_batch(), list(range(BATCH)), BATCH, mesh)
  params = toy_run.visual_tokenizer_params()
  spread = shardings_of(init_tokenizer, params, None, mesh).params
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, spread), base.place(toy_run.frozen(), mesh)
    return np.asarray(golden_data.compiled(run)(*placed, batch))


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_keep_masks_are_those_of_one_device(shape):
  expected = keep_masks((1, 1, 1, 1))
  assert 0 < expected.mean() < 1 and set(np.unique(expected)) == {0.0, 1.0}
  np.testing.assert_array_equal(keep_masks(shape), expected)
