"""Schedules, groups and the decay mask, on scalars that can be followed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.training import optimizer


def config(**changes):
  values = dict(learning_rate=1.0, warmup_steps=4, final_fraction=0.1, weight_decay=0.0)
  return optimizer.default_config(**values | changes)


def test_cosine_schedule():
  rate = optimizer.schedule(config(), 104)
  assert rate(0) == 0.0 and rate(2) == 0.5 and rate(4) == 1.0
  np.testing.assert_allclose([rate(54), rate(104)], [0.55, 0.1], atol=1e-6)


def test_linear_schedule_stays_flat_first():
  rate = optimizer.schedule(config(schedule="linear", flat_fraction=0.6), 104)
  np.testing.assert_allclose([rate(4), rate(63), rate(64)], 1.0, atol=1e-6)
  np.testing.assert_allclose([rate(84), rate(104)], [0.55, 0.1], atol=1e-6)


def test_warm_up_is_cut_in_a_short_run():
  rate = optimizer.schedule(config(warmup_steps=100), 3)
  assert rate(1) == 0.5 and rate(2) == 1.0


def test_unknown_schedule_is_refused():
  with pytest.raises(ValueError, match="'step' is not 'cosine' or 'linear'"):
    optimizer.schedule(config(schedule="step"), 10)


def params():
  block = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "scale": jnp.ones(2)}
  return {"llama": block | {"embedding": jnp.ones((2, 2))}, "merger": dict(block)}


def first_update(settings, grad=0.0):
  tx = optimizer.make(settings, 10)
  tree = params()
  grads = jax.tree.map(lambda leaf: jnp.full_like(leaf, grad), tree)
  updates, state = tx.update(grads, tx.init(tree), tree)
  return jax.tree.map(lambda leaf: float(leaf.reshape(-1)[0]), updates), state


def test_decay_touches_kernels_and_tables_only():
  updates, _ = first_update(config(warmup_steps=0, weight_decay=0.5))
  updates = updates["llama"]
  assert updates["kernel"] == updates["embedding"] == -0.5
  assert updates["bias"] == updates["scale"] == 0.0


def test_groups_scale_the_whole_update():
  groups = dict(llama=0.25)
  settings = config(warmup_steps=0, weight_decay=0.5, groups=groups, clip_norm=1e9)
  updates, _ = first_update(settings, grad=1.0)
  # The first Adam step is the sign of the gradient.
  np.testing.assert_allclose(updates["merger"]["bias"], -1.0, rtol=1e-4)
  np.testing.assert_allclose(updates["merger"]["kernel"], -1.5, rtol=1e-4)
  for name in ("bias", "kernel"):
    expected = 0.25 * updates["merger"][name]
    np.testing.assert_allclose(updates["llama"][name], expected, rtol=1e-6)


def test_misspelt_group_is_refused():
  with pytest.raises(ValueError, match=r"names .'lama'., but the parameters are"):
    first_update(config(groups=dict(lama=0.1)))


def test_gradients_are_clipped_by_their_common_norm():
  settings = config(warmup_steps=0, clip_norm=1.0)
  _, state = first_update(settings, grad=100.0)
  first_moments = jax.tree.leaves(state[1][0].mu)
  norm = np.sqrt(sum(np.square(leaf).sum() for leaf in first_moments))
  np.testing.assert_allclose(norm, 1.0 - settings.beta1, rtol=1e-5)


def matrices():
  """A stacked attention block, its output map, a head and a bias, all seeded."""
  rng = np.random.default_rng(0)
  make = lambda *shape: jnp.array(rng.normal(size=shape), jnp.float32)
  attention = {
    "qkv": {"kernel": make(2, 8, 3, 2, 4)},
    "out": {"kernel": make(2, 2, 4, 8), "bias": make(2, 8)},
  }
  return {"llama": {"blocks": attention, "head": {"kernel": make(8, 16)}}}


def test_muon_makes_every_matrix_orthogonal():
  tree = matrices()
  settings = config(name="muon", warmup_steps=0, clip_norm=1e9)
  tx = optimizer.make(settings, 10)
  updates, _ = tx.update(tree, tx.init(tree), tree)
  blocks = updates["llama"]["blocks"]
  qkv = np.moveaxis(blocks["qkv"]["kernel"], 2, 1).reshape(6, 8, 8)
  out = blocks["out"]["kernel"].reshape(2, 8, 8)
  for matrix in (*qkv, *out):
    values = np.linalg.svd(matrix, compute_uv=False)
    # Five Newton-Schulz steps bring singular values near 1, times 0.2 sqrt(8).
    scale = optimizer.MUON_RMS * 8**0.5
    assert 0.3 * scale < values.min() and values.max() < 1.5 * scale
  # The head takes Adam's first step: one size, against the sign of the gradient.
  head = updates["llama"]["head"]["kernel"]
  signs = -np.sign(tree["llama"]["head"]["kernel"])
  np.testing.assert_allclose(head, signs * np.abs(head).max(), rtol=1e-4)


def test_muon_contracts_the_window_and_channels_of_a_convolution():
  leaf = jax.ShapeDtypeStruct((3, 3, 8, 16), jnp.float32)
  keys = tuple(jax.tree_util.DictKey(name) for name in ("unet", "conv1", "kernel"))
  found = optimizer.matrix_axes(keys, leaf)
  assert (found.reduction_axis, found.output_axis) == ((0, 1, 2), (3,))


def test_unknown_optimizer_is_refused():
  with pytest.raises(ValueError, match="'sgd' is not 'adamw' or 'muon'"):
    optimizer.make(config(name="sgd"), 10)
