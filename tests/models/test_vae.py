"""The VAE: published size, shapes, the distribution, and what it refuses."""

import math

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.layers import linear
from lavit_jax.models import vae
from lavit_jax.weights import rules, stable_diffusion

SMALL = dict(
  latent_channels=4,
  level_channels=(8, 16),
  num_layers=1,
  num_groups=4,
  scaling_factor=0.5,
)
IMAGES = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)


def target_of(fields: dict) -> dict:
  model = vae.AutoencoderKL(**fields)
  boxed = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), IMAGES)
  return linear.split_boxes(boxed)[0]["params"]


def test_full_size_has_the_published_parameter_count():
  leaves = jax.tree.leaves(target_of(vae.VARIANTS["sd15"]))
  assert sum(math.prod(leaf.shape) for leaf in leaves) == 83_653_863


@pytest.mark.parametrize("name", vae.VARIANTS)
def test_config_and_table_describe_the_whole_model(name):
  fields, target = vae.VARIANTS[name], target_of(vae.VARIANTS[name])
  assert vae.fields_from_config(stable_diffusion.vae_config(fields)) == fields
  table = stable_diffusion.vae_table(fields)
  shapes = rules.source_shapes(table, target)
  matches = rules.match_keys(table, shapes, target)
  assert {match.path for match in matches} == set(rules.flatten(target))


def test_files_with_old_and_new_attention_keys_fill_the_same_model():
  target = target_of(SMALL)
  rng = np.random.default_rng(0)
  table = stable_diffusion.vae_table(SMALL)
  new = {
    key: rng.normal(size=shape).astype(np.float32)
    for key, shape in rules.source_shapes(table, target).items()
  }
  names = zip(stable_diffusion.ATTENTION_KEYS, stable_diffusion.OLD_ATTENTION_KEYS)
  old = dict(new)
  for now, before in names:
    for key in [key for key in old if f".{now}." in key]:
      old[key.replace(now, before)] = old.pop(key)
  kind = stable_diffusion.attention_keys(old)
  assert kind == stable_diffusion.OLD_ATTENTION_KEYS
  assert stable_diffusion.attention_keys(new) == stable_diffusion.ATTENTION_KEYS
  first = golden_data.import_checked(table, new, target)
  second = golden_data.import_checked(
    stable_diffusion.vae_table(SMALL, kind), old, target
  )
  jax.tree.map(np.testing.assert_array_equal, first, second)


def test_shapes_and_the_distribution():
  model = vae.AutoencoderKL(**SMALL)
  params = golden_data.random_params(model, np.zeros(IMAGES.shape, np.float32))
  images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
  mean, log_variance = golden_data.run(model, params, images, method="encode")
  assert mean.shape == log_variance.shape == (2, 4, 6, 4)
  pictures = golden_data.run(model, params, mean, method="decode")
  assert pictures.shape == images.shape and pictures.dtype == jnp.float32


def test_a_sample_is_the_mean_and_its_deviation_times_noise():
  mean, log_variance = jnp.array([1.0]), jnp.log(jnp.array([4.0]))
  np.testing.assert_allclose(vae.sample(mean, log_variance, jnp.array([-3.0])), [-5.0])


def test_sizes_that_do_not_fit_are_refused():
  model = vae.AutoencoderKL(**SMALL)
  images = jax.ShapeDtypeStruct((1, 8, 9, 3), jnp.float32)
  with pytest.raises(ValueError, match="multiples of 2, got 8 x 9"):
    jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)


@pytest.mark.parametrize(
  "change",
  [{"use_quant_conv": False}, {"shift_factor": 0.1}, {"down_block_types": ["Other"]}],
  ids=lambda change: next(iter(change)),
)
def test_a_config_of_another_model_is_refused(change):
  config = stable_diffusion.vae_config(SMALL)
  with pytest.raises(ValueError, match="expected"):
    vae.fields_from_config(config | change)
