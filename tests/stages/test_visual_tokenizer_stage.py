"""Stage 1: the loss of the paper, the way of its gradient, and the codebook."""

import functools

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_run

from configs import visual_tokenizer as config_file
from lavit_jax.core import losses, sharding
from lavit_jax.data import items
from lavit_jax.inference import frozen_parts
from lavit_jax.models import codebook, selector, whitening
from lavit_jax.stages import reconstruction, visual_tokenizer
from lavit_jax.training import train_state

pytestmark = pytest.mark.usefixtures("compile_fast")

BATCH = 4
KEY = jax.random.key(1)


def config_of(**changes):
  config = config_file.get_config("tiny")
  config.update(dict(batch_size=BATCH, unroll=1) | changes)
  config.model = toy_run.TOKENIZER
  return config


def batch() -> dict[str, np.ndarray]:
  images = toy_run.pictures(BATCH, seed=2)
  ids = np.array([items.noise_id(image) for image in images], np.uint32)
  return {"image": images, "noise_id": ids}


def book() -> codebook.Codebook:
  shape = (toy_run.TOKENIZER["num_codes"], toy_run.TOKENIZER["code_dim"])
  rows = np.random.default_rng(1).normal(size=shape)
  return codebook.create(codebook.l2_normalize(jnp.asarray(rows)))


@functools.cache
def stepped(quantize: bool, **changes):
  """State after one step, with the gradient as optimizer state, and metrics."""
  tx = toy_run.recorder()
  parts = (toy_run.visual_tokenizer(), toy_run.tower())
  step = reconstruction.make_step(*parts, tx, config_of(**changes), quantize)
  state = train_state.fresh(toy_run.visual_tokenizer_params(), tx, book())
  run = golden_data.compiled(step)
  return jax.device_get(run(state, toy_run.frozen(), batch(), KEY))


@functools.cache
def observed():
  """Features, merger inputs and both noises of the batch, as the step sees them."""
  data = batch()
  features = frozen_parts.patch_features(
    toy_run.tower(), toy_run.frozen(), jnp.asarray(data["image"])
  )
  inputs = whitening.whiten(toy_run.frozen()["whitening"], features)
  keys = [jax.random.fold_in(KEY, draw) for draw in range(2)]
  noises = [selector.gumbel(key, data["noise_id"], toy_run.PATCHES) for key in keys]
  return features, inputs, *noises


def distances(params, quantize: bool, features, inputs, noise):
  """1 - cosine of each picture float[B] under one noise; its mask and commitment."""
  model = toy_run.visual_tokenizer()
  encoded = reconstruction.encode(model, params, features, inputs, noise)
  vectors, commitment = encoded.z, 0.0
  if quantize:
    rows = book().embedding[codebook.lookup(book().embedding, encoded.z)]
    kept = jax.lax.stop_gradient(encoded.keep)
    commitment = (jnp.square(encoded.z - rows).sum(-1) * kept).sum() / kept.sum()
    vectors = codebook.straight_through(encoded.z, rows)
  rebuilt = reconstruction.reconstruct(model, params, vectors, encoded.keep)
  return losses.feature_cosine(features, rebuilt).mean(1), encoded, commitment


def paper_loss(params, quantize, features, inputs, noise):
  """Equation 4 written down directly, the mean keep inside the square."""
  config = config_of()
  distance, encoded, commitment = distances(params, quantize, features, inputs, noise)
  rate = jnp.square(config.keep_share - encoded.keep.mean())
  loss = distance.mean() + config.rate_weight * rate
  return loss + config.commitment_weight * commitment


def compared(params, quantize, features, inputs, noise, other):
  """The term whose gradient makes the better of two masks more likely."""
  found = []
  for draw in (noise, other):
    distance, encoded, _ = distances(params, quantize, features, inputs, draw)
    log_probs = toy_run.visual_tokenizer().apply(
      {"params": params}, features, inputs, method="select"
    )
    kept = jax.lax.stop_gradient(encoded.keep)
    log_prob = kept * log_probs[..., 0] + (1 - kept) * log_probs[..., 1]
    found.append((jax.lax.stop_gradient(distance), log_prob.sum(1)))
  (first, log_prob), (second, other_log_prob) = found
  return ((first - second) * (log_prob - other_log_prob) / 2).mean()


@pytest.mark.parametrize(
  ("quantize", "comparison"),
  [(False, 1.0), (False, 0.0), (True, 1.0)],
  ids=["phase_a", "phase_a_of_the_paper", "phase_b"],
)
def test_the_step_follows_the_loss_of_the_paper_and_the_better_mask(
  quantize, comparison
):
  changes = {} if comparison else {"mask_comparison": comparison}
  state, metrics = stepped(quantize, **changes)

  def objective(params, features, inputs, noise, other):
    loss = paper_loss(params, quantize, features, inputs, noise)
    score = compared(params, quantize, features, inputs, noise, other)
    return loss + comparison * score, loss

  run = golden_data.compiled(jax.value_and_grad(objective, has_aux=True))
  (_, loss), grads = run(toy_run.visual_tokenizer_params(), *observed())
  if quantize:  # the selector is frozen by then
    grads["selector"] = jax.tree.map(np.zeros_like, grads["selector"])
  np.testing.assert_allclose(metrics["loss"], loss, atol=1e-5)
  found = jax.tree_util.tree_flatten_with_path(state.opt_state)[0]
  for (path, a), b in zip(found, jax.tree.leaves(grads), strict=True):
    name = jax.tree_util.keystr(path)
    np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4, err_msg=name)


def test_gradient_reaches_every_parameter():
  golden_data.assert_all_reached(stepped(False)[0].opt_state)


def test_phase_b_freezes_the_selector_and_nothing_else():
  state, _ = stepped(True)
  before = toy_run.visual_tokenizer_params()["selector"]
  jax.tree.map(np.testing.assert_array_equal, state.params["selector"], before)
  grads = dict(state.opt_state)
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads["selector"]))
  golden_data.assert_all_reached({k: g for k, g in grads.items() if k != "selector"})


def test_reconstruction_alone_reaches_the_selector():
  loss = lambda params, *rest: distances(params, False, *rest)[0].mean()
  run = golden_data.compiled(jax.grad(loss))
  grads = run(toy_run.visual_tokenizer_params(), *observed()[:3])
  assert np.abs(grads["selector"]["out_proj3"]["kernel"]).max() > 1e-6


def test_comparing_masks_moves_the_selector_only():
  run = golden_data.compiled(jax.grad(lambda p, *rest: compared(p, False, *rest)))
  grads = run(toy_run.visual_tokenizer_params(), *observed())
  golden_data.assert_all_reached(grads.pop("selector"))
  assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("quantize", [False, True], ids=["phase_a", "phase_b"])
def test_micro_batches_change_nothing(quantize):
  whole, values = stepped(quantize)
  split, metrics = stepped(quantize, accumulate=2)
  for name in ("loss", "cosine", "kept_share", "commitment"):
    np.testing.assert_allclose(metrics[name], values[name], atol=1e-6, err_msg=name)
  check = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6)
  jax.tree.map(check, split.opt_state, whole.opt_state)
  jax.tree.map(check, split.codebook, whole.codebook)


def test_the_codebook_rests_in_phase_a_and_follows_the_kept_in_phase_b():
  state, _ = stepped(False)
  jax.tree.map(np.testing.assert_array_equal, state.codebook, jax.device_get(book()))
  state, metrics = stepped(True, revive_below=0.0)
  params, config = toy_run.visual_tokenizer_params(), config_of()
  encoded = reconstruction.encode(toy_run.visual_tokenizer(), params, *observed()[:3])
  chosen = np.asarray(encoded.keep) > 0.5
  z = np.asarray(encoded.z)[chosen]
  codes = np.asarray(codebook.lookup(book().embedding, jnp.asarray(z)))
  counts = np.bincount(codes, minlength=config.model.num_codes)
  expected = config.ema_decay * 1.0 + (1 - config.ema_decay) * counts
  np.testing.assert_allclose(state.codebook.counts, expected, rtol=1e-5)
  assert metrics["codes_used"] == (counts > 0).sum()
  np.testing.assert_allclose(metrics["kept_share"], chosen.mean(), rtol=1e-6)


def test_noise_follows_the_picture_and_not_its_place():
  ids = np.array([7, 9, 11], np.uint32)
  noise = np.asarray(selector.gumbel(KEY, ids, 5))
  again = np.asarray(selector.gumbel(KEY, ids[::-1].copy(), 5))
  np.testing.assert_array_equal(noise, again[::-1])
  assert np.abs(noise[0] - noise[1]).max() > 0.1
  other_step = np.asarray(selector.gumbel(jax.random.key(2), ids, 5))
  assert np.abs(noise - other_step).max() > 0.1


def test_rescued_pictures_are_counted():
  log_probs = jnp.log(jnp.array([[[0.01, 0.99], [0.02, 0.98]], [[0.9, 0.1]] * 2]))
  noise = jnp.zeros_like(log_probs)
  keep = selector.sample(log_probs, noise)
  np.testing.assert_array_equal(keep, [[0, 1], [1, 1]])
  assert selector.count_empty(log_probs, noise) == 1


@pytest.fixture(scope="module")
def stage(toy_data, encoder_directory):
  config = toy_run.visual_tokenizer_run(toy_data, encoder_directory)
  return visual_tokenizer.build(config, sharding.make_mesh(dict(config.mesh)))


def test_codes_start_from_k_means_at_the_phase_change(stage):
  state = stage.initial(0)
  with jax.set_mesh(stage.mesh):
    assert stage.before_step(state, 3) is state
    started = stage.before_step(state, 4)
  rows = np.asarray(started.codebook.embedding)
  np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-5)
  assert np.abs(rows - np.asarray(state.codebook.embedding)).max() > 0.1
  jax.tree.map(
    np.testing.assert_array_equal, *jax.device_get((started.params, state.params))
  )
  assert stage.step(3) is not stage.step(4) and stage.step(4) is stage.step(5)


def test_frozen_parts_and_codebook_hold_no_optimizer_state(stage):
  trained = train_state.count(stage.abstract.params)
  names = {"selector", "merger", "encode_task_layer", "feature_decoder"}
  assert set(stage.abstract.params) == names
  # Muon keeps one moment of a matrix, and Adam's two of everything else.
  moments = train_state.count(stage.abstract.opt_state)
  assert trained < moments < 2 * trained
  for path, leaf in jax.tree_util.tree_leaves_with_path(stage.abstract.opt_state):
    assert leaf.size < 5 or names & {getattr(entry, "key", "") for entry in path}
  assert set(stage.frozen) == {"vit", "whitening"}
