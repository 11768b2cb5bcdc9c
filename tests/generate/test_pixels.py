"""Sampling of pixels: noise, guidance, null conditions, sizes and slices."""

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_pixels

from lavit_jax.diffusion import schedule as schedules
from lavit_jax.generate import pixels
from lavit_jax.models import patch_latents

pytestmark = pytest.mark.usefixtures("compile_fast")

SCHEDULE = schedules.from_config(schedules.STABLE_DIFFUSION)
SHAPE = (4, 4, 9)


@pytest.fixture(scope="module")
def unet():
  return toy_pixels.unet(), toy_pixels.unet_params()


def condition(count, seed=0):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  context = normal(count, 6, toy_pixels.UNET["context_dim"])
  return pixels.Condition(
    context, grid=normal(count, 2, 2, toy_pixels.UNET["grid_dim"])
  )


def keys(*names):
  return jax.vmap(lambda n: jax.random.fold_in(jax.random.key(0), n))(jnp.array(names))


def sample(unet, given, start, null=None, **settings):
  settings = pixels.Settings(**{"steps": 3, "solver": "dpm"} | settings)
  return np.asarray(pixels.sample(*unet, SCHEDULE, given, null, start, settings))


def rows(given, index):
  return jax.tree.map(lambda x: x[jnp.array(index)], given)


def test_a_picture_does_not_depend_on_its_batch(unet):
  given, start = condition(3), pixels.noise(keys(5, 6, 7), SHAPE)
  together = sample(unet, given, start, guidance=3.0)
  assert np.abs(together[0] - together[1]).max() > 0.1
  for order in ([2, 0], [1]):
    alone = sample(
      unet,
      rows(given, order),
      pixels.noise(keys(*[(5, 6, 7)[i] for i in order]), SHAPE),
      guidance=3.0,
    )
    np.testing.assert_allclose(alone, together[order], atol=2e-5)


def test_guidance_moves_from_the_unconditional_output(unet):
  model, params = unet
  given, start = condition(2), pixels.noise(keys(1, 2), SHAPE)
  step = pixels.SOLVERS["ddim"](SCHEDULE, 1)
  time = jnp.full(2, step.timesteps[0])
  call = lambda given: model.apply(
    {"params": params}, start, time, *pixels.unet_inputs(given)
  )
  full, bare = call(given), call(jax.tree.map(jnp.zeros_like, given))
  row = jax.tree.map(lambda x: x[0], step)
  for guidance in (1.0, 4.0):
    output = bare + guidance * (full - bare)
    expected, _ = pixels.solver.step(row, start, jnp.zeros_like(start), output)
    found = sample(unet, given, start, steps=1, solver="ddim", guidance=guidance)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_null_embedding_fills_its_slots_and_masks_the_rest():
  given = condition(2)
  embedding = jnp.full((4, toy_pixels.UNET["context_dim"]), 2.0)
  free = pixels.unconditional(given, embedding)
  assert (free.context[:, :4] == 2).all() and (free.context[:, 4:] == 0).all()
  np.testing.assert_array_equal(free.mask[0], [True] * 4 + [False] * 2)
  zeros = pixels.unconditional(given, None)
  assert zeros.mask is None and not zeros.context.any()
  assert not free.grid.any()
  mixed = pixels.choose(jnp.array([True, False]), free, given)
  np.testing.assert_array_equal(mixed.grid, given.grid.at[0].set(0))
  np.testing.assert_array_equal(mixed.mask.sum(1), [4, 6])
  np.testing.assert_array_equal(mixed.context[1], given.context[1])
  with pytest.raises(ValueError, match="at most 6 slots"):
    pixels.unconditional(given, jnp.zeros((7, 8)))


def test_masked_slots_do_not_reach_the_picture(unet):
  start = pixels.noise(keys(1), SHAPE)
  null = jnp.ones((3, toy_pixels.UNET["context_dim"]))
  free = pixels.unconditional(condition(1), null)
  other = free.replace(context=free.context.at[:, 3:].set(9.0))
  one, two = (sample(unet, c, start, guidance=1.0) for c in (free, other))
  np.testing.assert_allclose(one, two, atol=1e-5)


def test_pooled_conditions_become_zeros_and_sizes_stay():
  given = condition(2).replace(
    pooled=jnp.ones((2, 5)), time_ids=pixels.time_ids((128, 64), 2)
  )
  free = pixels.unconditional(given, None)
  assert not free.pooled.any()
  np.testing.assert_array_equal(free.time_ids[1], [128, 64, 0, 0, 128, 64])


def test_ratios_are_those_of_the_reference():
  assert pixels.size_of("16:9", pixels.RATIOS) == (768, 1344)
  assert len(pixels.RATIOS) == 6
  for height, width in pixels.RATIOS.values():
    assert 0.9 < height * width / 1024**2 < 1.1
  with pytest.raises(ValueError, match="1:1, 4:3, .* got '5:4'; choose"):
    pixels.size_of("5:4", pixels.RATIOS)
  with pytest.raises(ValueError, match="multiples of 64 pixels, got 100x64"):
    pixels.check_size((100, 64))
  with pytest.raises(ValueError, match=r"not one of \['ddim', 'dpm'\]"):
    pixels.Settings(solver="euler")


def test_a_condition_of_another_width_is_refused(unet):
  start = pixels.noise(keys(1), SHAPE)
  wide = pixels.Condition(jnp.zeros((1, 6, 20)))
  with pytest.raises(ValueError, match="takes conditions of width 8, got 20"):
    sample(unet, wide, start)


def test_slices_decode_as_the_whole():
  vae = patch_latents.PatchLatents(**toy_pixels.LATENTS)
  latents = jax.random.normal(jax.random.key(1), (3, 16, 16, vae.latent_channels))
  one, all_ = (np.asarray(pixels.decode(vae, {}, latents, n)) for n in (1, 3))
  assert one.shape == (3, 64, 64, 3) and one.dtype == np.uint8
  np.testing.assert_array_equal(one, all_)


def test_patch_latents_lose_only_high_frequencies():
  vae = patch_latents.PatchLatents(**toy_pixels.LATENTS)
  assert vae.latent_channels == 9
  latents = jax.random.normal(jax.random.key(1), (2, 3, 5, 9))
  apply = lambda x, method: vae.apply({}, x, method=method)
  images = apply(latents, "decode")
  assert images.shape == (2, 12, 20, 3)
  mean, log_variance = apply(images, "encode")
  np.testing.assert_allclose(mean, latents, atol=1e-5)
  assert np.exp(0.5 * np.asarray(log_variance)).max() < 1e-6
  flat = jnp.full((1, 8, 8, 3), 0.3)
  np.testing.assert_allclose(golden_data.run(vae, {}, flat), flat, atol=1e-6)
  with pytest.raises(ValueError, match="multiples of 4, got 6 x 8"):
    apply(jnp.zeros((1, 6, 8, 3)), "encode")
