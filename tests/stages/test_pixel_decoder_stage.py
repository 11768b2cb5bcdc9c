"""Stage 1b: what trains, what is dropped, what is averaged; buckets and errors."""

import functools

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_pixels
import toy_run

from configs import pixel_decoder as config_file
from lavit_jax.core import sharding
from lavit_jax.data import coded
from lavit_jax.diffusion import schedule
from lavit_jax.generate import pixels
from lavit_jax.inference import pixel_parts
from lavit_jax.layers import linear
from lavit_jax.stages import pixel_decoder
from lavit_jax.training import base, optimizer, train_state
from lavit_jax.weights import model_directory

pytestmark = pytest.mark.usefixtures("compile_fast")

BATCH = 4


def config_of(**changes):
  config = config_file.get_config("tiny")
  config.update(dict(batch_size=BATCH, num_steps=4) | changes)
  config.model.unet = toy_pixels.UNET
  config.model.head = toy_pixels.HEAD
  config.model.patch_latents = toy_pixels.LATENTS
  return config


def batch() -> dict[str, np.ndarray]:
  rng = np.random.default_rng(3)
  return {
    "image": rng.integers(0, 256, (BATCH, 16, 16, 3)).astype(np.uint8),
    "codes": rng.integers(0, 24, (BATCH, 25)).astype(np.int32),
    "length": np.array([3, 25, 1, 7], np.int32),
    "noise_id": np.array([3, 1, 4, 9], np.uint32),
    "time_ids": np.zeros((BATCH, 6), np.float32),
  }


def frozen():
  params = toy_run.visual_tokenizer_params()
  rows = np.random.default_rng(1).normal(size=(24, 8)).astype(np.float32)
  return {
    "codebook": {"embedding": rows},
    "feature_decoder": params["feature_decoder"],
    "whitening": toy_run.whitening(),
    "autoencoder": {},
    "null": None,
  }


@functools.cache
def params():
  modules = pixel_decoder.Modules(config_of())
  tree = golden_data.linear.split_boxes(
    jax.eval_shape(modules.init(25, toy_run.WIDTH), jax.random.key(0))["params"]
  )[0]
  return toy_run.random_tree(tree, 2)


@functools.cache
def stepped(**changes):
  config = config_of(**changes)
  modules = pixel_decoder.Modules(config)
  tx = optax.chain(toy_run.recorder(), optimizer.averaged(0.5))
  step = pixel_decoder.make_step(modules, toy_run.visual_tokenizer(), tx, config)
  state = train_state.fresh(params(), tx)
  run = golden_data.compiled(step)
  return jax.device_get(run(state, frozen(), batch(), jax.random.key(1)))


def test_the_gradient_reaches_all_that_trains_and_nothing_else_is_there():
  state, metrics = stepped(condition_drop=0.0)
  assert set(state.params) == {"unet", "head"}
  golden_data.assert_all_reached(state.opt_state[0])
  assert metrics["dropped"] == 0 and metrics["loss"] > 0


def test_the_loss_is_the_error_of_what_the_schedule_predicts():
  _, metrics = stepped(condition_drop=0.0)
  modules, data = pixel_decoder.Modules(config_of()), batch()
  key = jax.random.key(1)
  time, noise, _, _ = pixel_decoder.chances(key, data["noise_id"], 1000, (4, 4, 9))
  features = pixel_decoder.features_of(toy_run.visual_tokenizer(), frozen(), data)
  clean, _ = modules.autoencoder.apply({}, data["image"] / 127.5 - 1, method="encode")
  alpha = modules.schedule.alphas_cumprod[time][:, None, None, None]
  noisy = np.sqrt(alpha) * clean + np.sqrt(1 - alpha) * noise
  context, grid = modules.head.apply({"params": params()["head"]}, features)
  inputs = (jnp.asarray(noisy, jnp.float32), time, context, None, None, None, grid)
  found = golden_data.run(modules.unet, params()["unet"], *inputs)
  assert modules.schedule.prediction == "v_prediction"
  wanted = np.sqrt(alpha) * noise - np.sqrt(1 - alpha) * clean
  expected = np.square(found - wanted).mean()
  np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)


def test_micro_batches_change_nothing():
  whole, values = stepped(condition_drop=0.0)
  split, metrics = stepped(condition_drop=0.0, accumulate=2)
  np.testing.assert_allclose(metrics["loss"], values["loss"], rtol=1e-5)
  check = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)
  jax.tree.map(check, split.opt_state[0], whole.opt_state[0])


def test_a_dropped_condition_leaves_no_trace():
  modules = pixel_decoder.Modules(config_of())
  loss = pixel_decoder.make_loss(modules, toy_run.visual_tokenizer(), 1.0)
  run = golden_data.compiled(loss)
  data, rest = batch(), (params(), frozen())
  one, dropped = run(*rest, data, jax.random.key(1))
  other_codes = {"codes": data["codes"][::-1].copy()}
  other, _ = run(*rest, data | other_codes, jax.random.key(1))
  assert dropped.all()
  np.testing.assert_allclose(one, other, rtol=1e-6)


def test_the_stated_share_is_dropped():
  names = np.arange(4000, dtype=np.uint32)
  draws = pixel_decoder.chances(jax.random.key(0), names, 1000, (1, 1, 1))
  assert abs((np.asarray(draws[3]) < 0.1).mean() - 0.1) < 0.015
  assert np.asarray(draws[0]).min() < 10 and np.asarray(draws[0]).max() > 989


def test_chance_follows_the_record_and_not_its_place():
  names = np.array([7, 9], np.uint32)
  draw = lambda n: pixel_decoder.chances(jax.random.key(0), n, 1000, (2, 2, 1))
  for a, b in zip(draw(names), draw(names[::-1].copy())):
    np.testing.assert_array_equal(a, b[::-1])


def test_the_average_follows_the_parameters():
  tx = optax.chain(optax.sgd(1.0), optimizer.averaged(0.3))
  values = {"a": jnp.array([1.0])}
  state = tx.init(values)
  expected = 1.0
  for number in range(4):
    updates, state = tx.update({"a": jnp.array([1.0])}, state, values)
    values = optax.apply_updates(values, updates)
    share = min(0.3, (1 + number) / (10 + number))
    expected = share * expected + (1 - share) * (1.0 - (number + 1))
  np.testing.assert_allclose(state[-1].params["a"], [expected], rtol=1e-6)


def test_pictures_go_to_the_nearest_ratio():
  targets = np.array(list(pixels.RATIOS.values()))
  sizes = np.array([[500, 500], [600, 1000], [1000, 600], [300, 400], [0, 0]])
  names = list(pixels.RATIOS)
  found = [names[i] for i in coded.nearest(sizes, targets)]
  assert found == ["1:1", "16:9", "2:3", "4:3", "1:1"]


def test_batches_hold_one_picture_size():
  bucket = np.array([0] * 5 + [2] * 9 + [5])
  order = coded.BatchOrder(bucket, 4, seed=1)
  assert order.per_epoch == 2 + 3 + 1
  for epoch in range(2):
    start = epoch * order.per_epoch * 4
    rows = np.array([order[start + i] for i in range(order.per_epoch * 4)])
    assert set(rows) == set(range(15))
    assert all(len(set(bucket[own])) == 1 for own in rows.reshape(-1, 4))
  assert [order[i] for i in range(24)] != [order[24 + i] for i in range(24)]


def test_the_tiny_variant_has_one_latent_to_a_patch_and_knows_where_features_lie():
  modules = pixel_decoder.Modules(config_file.get_config("tiny"))
  assert 64 // modules.autoencoder.factor == 8
  features = jax.ShapeDtypeStruct((2, 64, 128), jnp.float32)
  made = jax.eval_shape(modules.init(64, 128), jax.random.key(0))
  head = golden_data.linear.split_boxes(made["params"]["head"])[0]
  run = lambda params, x: pixel_parts.condition_of(modules.head, params, None, x)
  given = jax.eval_shape(run, head, features)
  assert given.grid.shape == (2, 8, 8, modules.unet.grid_dim)
  assert given.context.shape == (2, 64, modules.unet.context_dim)


@pytest.mark.parametrize("variant", ["sd15", "sdxl"])
def test_the_full_size_step_has_shapes(variant):
  config = config_file.get_config(variant)
  config.update(dict(accumulate=2, batch_size=4))
  modules = pixel_decoder.Modules(config)
  abstract, _ = linear.abstract_params(modules.init(256, 1408))
  expected = {"sd15": 859_520_964, "sdxl": 2_567_463_684}[variant]
  assert train_state.count(abstract["unet"]) == expected
  from lavit_jax.models.visual_tokenizer import VARIANTS, VisualTokenizer

  coder = VisualTokenizer(**VARIANTS["lavit"])
  shape = lambda *s, dtype=jnp.float32: jax.ShapeDtypeStruct(s, dtype)
  decoder = jax.eval_shape(
    lambda key: coder.init(key, jnp.zeros((1, 256, 1408)), jnp.ones((1, 256), bool)),
    jax.random.key(0),
  )["params"]["feature_decoder"]
  image_vae, _ = linear.abstract_params(
    pixel_parts.init_autoencoder(modules.autoencoder)
  )
  fixed = {
    "codebook": {"embedding": shape(16384, 32)},
    "feature_decoder": golden_data.linear.split_boxes(decoder)[0],
    "whitening": None,
    "autoencoder": image_vae,
    "null": shape(77, 768) if variant == "sd15" else None,
  }
  height, width = {"sd15": (512, 512), "sdxl": (768, 1344)}[variant]
  data = {
    "image": shape(4, height, width, 3, dtype=jnp.uint8),
    "codes": shape(4, 256, dtype=jnp.int32),
    "length": shape(4, dtype=jnp.int32),
    "noise_id": shape(4, dtype=jnp.uint32),
    "time_ids": shape(4, 6),
  }
  tx = optax.chain(optimizer.make(config.optimizer, 10), optimizer.averaged(0.99))
  step = pixel_decoder.make_step(modules, coder, tx, config)
  state = jax.eval_shape(lambda p: train_state.fresh(p, tx), abstract)
  key = jax.eval_shape(lambda: jax.random.key(0))
  after, metrics = jax.eval_shape(step, state, fixed, data, key)
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
  assert metrics["loss"].shape == ()


def test_a_state_from_published_weights_is_split_as_planned(tmp_path):
  """Both moments and the average of the U-Net used to be whole on every device."""
  config = config_of(warm_start=str(tmp_path / "model"))
  modules, mesh = pixel_decoder.Modules(config), sharding.make_mesh({"fsdp": 8})
  tx = pixel_decoder.optimizer_of(config)
  made = base.born_sharded(modules.init(25, toy_run.WIDTH), tx, mesh)
  abstract, shardings, initial = made
  state = initial(0)
  part = model_directory.Part(state.params["unet"], config.model.unet.to_dict())
  model_directory.save(config.warm_start, {"unet": part})
  found = pixel_decoder._warm(state, shardings, config, mesh, modules)
  base.check_state(found, abstract, shardings)
  held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(found))
  assert held == sharding.bytes_per_device(abstract, shardings)
  whole = sharding.replicated(mesh)
  loose = jax.device_put(found.opt_state, whole)
  with pytest.raises(ValueError, match=r"opt_state/\S+kernel is split as .* planned"):
    base.check_state(found.replace(opt_state=loose), abstract, shardings)


def stage_config(data, model):
  config = config_of(checkpoint_every=0, eval_batches=1, init_from=str(model))
  config.update(dict(batch_size=8, mesh=dict(data=1, fsdp=-1)))
  config.data.update(dict(train=str(data / "train"), eval=str(data / "test")))
  config.sampling.steps = 2
  return config


@pytest.fixture(scope="module")
def stage(tokenized_data, visual_tokenizer_directory):
  config = stage_config(tokenized_data, visual_tokenizer_directory)
  return pixel_decoder.build(config, sharding.make_mesh(dict(config.mesh))), config


def test_a_stage_reads_codes_steps_and_writes_a_decoder(stage, tmp_path):
  stage, config = stage
  state, feed = stage.initial(0), stage.batches(0)
  data, position = next(feed)
  feed.close()
  assert data["image"].shape == (8, 64, 64, 3) and position == 8
  before = jax.device_get(state.params)
  with jax.set_mesh(stage.mesh):
    state, metrics = stage.step(0)(state, stage.frozen, data, jax.random.key(0))
    state, _ = stage.step(1)(state, stage.frozen, data, jax.random.key(1))
    figures, pictures = stage.evaluate(state)
  assert np.isfinite(metrics["loss"]) and figures["loss"] > 0
  assert pictures["reconstructed"].shape == (128, 64 * 8, 3)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, state.params)
  assert all(np.asarray(leaf) > 0 for leaf in jax.tree.leaves(moved))
  stage.finish(state, str(tmp_path / "model"))
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  decoder = pixel_parts.load_best(str(tmp_path / "model"), mesh, "float32")
  average = pixel_decoder.average_of(state)
  for name in ("unet", "head"):
    jax.tree.map(np.testing.assert_array_equal, decoder.params[name], average[name])
  assert decoder.ratios == {"1:1": (64, 64)}
  with pytest.raises(ValueError, match="prediction"):
    schedule.from_config({"prediction_type": "sample"})
  assert base.TrainState is type(state)


def test_mistakes_of_a_config_end_in_one_sentence(tokenized_data, tmp_path):
  config = config_of()
  config.model.head.condition_dim = 9
  with pytest.raises(ValueError, match="width 8, .* head makes .* width 9,"):
    pixel_decoder.Modules(config)
  config = config_of()
  config.model.head = dict(condition_dim=8)
  with pytest.raises(ValueError, match="grid width 5, .* and grid width 0;"):
    pixel_decoder.Modules(config)
  config = config_of()
  config.model.unet.channels = 4
  with pytest.raises(ValueError, match="makes 9 latent channels, the U-Net takes 4"):
    pixel_decoder.Modules(config)
  config = stage_config(tokenized_data, tmp_path)
  config.ratios = {"1:1": (60, 64)}
  mesh = sharding.make_mesh(dict(config.mesh))
  with pytest.raises(ValueError, match="multiples of 64 pixels, got 60x64"):
    pixel_decoder.build(config, mesh)
  config.ratios = {"1:1": (64, 64)}
  with pytest.raises(ValueError, match="made by|visual tokenizer|no manifest"):
    pixel_decoder.build(config, mesh)
