"""The U-Net: published sizes, conditions and masks, and what it refuses."""

import functools
import math

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.layers import linear
from lavit_jax.models import unet
from lavit_jax.weights import rules, stable_diffusion

SMALL = dict(
  channels=4,
  level_channels=(8, 16),
  num_layers=1,
  depths=(0, 2),
  middle_depth=1,
  num_heads=(1, 2),
  context_dim=6,
  pooled_dim=5,
  time_id_dim=4,
  num_groups=4,
  linear_projection=True,
  grid_dim=3,
)
SD15 = {
  "_class_name": "UNet2DConditionModel",
  "_diffusers_version": "0.6.0",
  "act_fn": "silu",
  "attention_head_dim": 8,
  "block_out_channels": [320, 640, 1280, 1280],
  "center_input_sample": False,
  "cross_attention_dim": 768,
  "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
  "downsample_padding": 1,
  "flip_sin_to_cos": True,
  "freq_shift": 0,
  "in_channels": 4,
  "layers_per_block": 2,
  "mid_block_scale_factor": 1,
  "norm_eps": 1e-05,
  "norm_num_groups": 32,
  "out_channels": 4,
  "sample_size": 64,
  "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}


def abstract_inputs(fields: dict, batch: int = 1, side: int = 16) -> dict:
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
  inputs = dict(
    latents=shape(batch, side, side, fields["channels"]),
    timesteps=shape(batch),
    context=shape(batch, 7, fields["context_dim"]),
  )
  if fields["pooled_dim"]:
    inputs |= dict(pooled=shape(batch, fields["pooled_dim"]), time_ids=shape(batch, 6))
  if fields.get("grid_dim"):
    inputs["grid"] = shape(batch, side, side, fields["grid_dim"])
  return inputs


def target_of(fields: dict) -> dict:
  model, inputs = unet.UNet(**fields), abstract_inputs(fields)
  init = lambda **inputs: model.init(jax.random.key(0), **inputs)
  boxed = jax.eval_shape(init, **inputs)
  return linear.split_boxes(boxed)[0]["params"]


@functools.cache
def small():
  """Random parameters and inputs of a small U-Net, and its compiled call."""
  rng = np.random.default_rng(0)
  params = golden_data.random_like(target_of(SMALL))
  inputs = {
    name: rng.normal(size=leaf.shape).astype(np.float32)
    for name, leaf in abstract_inputs(SMALL, batch=2, side=4).items()
  }
  inputs["timesteps"] = np.array([10, 600], np.int32)
  inputs["context_mask"] = np.arange(7) < np.array([[7], [3]])
  model = unet.UNet(**SMALL, dtype="float32")
  call = golden_data.compiled(lambda p, x: model.apply({"params": p}, **x))
  return params, inputs, call


def test_full_sizes_have_the_published_parameter_counts():
  count = lambda fields: sum(
    math.prod(leaf.shape) for leaf in jax.tree.leaves(target_of(fields))
  )
  assert count(unet.VARIANTS["sd15"]) == 859_520_964
  assert count(unet.VARIANTS["sdxl"]) == 2_567_463_684


@pytest.mark.parametrize("name", unet.VARIANTS)
def test_the_table_covers_every_parameter(name):
  fields, target = unet.VARIANTS[name], target_of(unet.VARIANTS[name])
  table = stable_diffusion.unet_table(fields)
  shapes = rules.source_shapes(table, target)
  matches = rules.match_keys(table, shapes, target)
  assert {match.path for match in matches} == set(rules.flatten(target))
  assert unet.fields_from_config(stable_diffusion.unet_config(fields)) == {
    "eps": 1e-5,
    "grid_dim": 0,
    **fields,
  }


def test_weights_survive_the_way_to_us_and_back_bit_by_bit():
  for linear_projection in (True, False):
    fields = SMALL | dict(linear_projection=linear_projection)
    target, table = target_of(fields), stable_diffusion.unet_table(fields)
    shapes = rules.source_shapes(table, target)
    state = golden_data.random_like(
      {key: jax.ShapeDtypeStruct(shape, jnp.float32) for key, shape in shapes.items()}
    )
    golden_data.import_checked(table, state, target)
    projection = shapes["mid_block.attentions.0.proj_in.weight"]
    assert len(projection) == (2 if linear_projection else 4)


def test_the_published_config_gives_the_variant():
  fields = unet.fields_from_config(SD15)
  assert {key: fields[key] for key in unet.VARIANTS["sd15"]} == unet.VARIANTS["sd15"]


def test_an_inpainting_model_is_refused_and_named():
  message = "expected 4 input channels, .* got 9; use the text-to-image U-Net, not an"
  with pytest.raises(ValueError, match=message):
    unet.fields_from_config(SD15 | {"in_channels": 9})
  own = unet.fields_from_config(SD15 | {"in_channels": 9, "_grid_channels": 5})
  assert own["grid_dim"] == 5


def test_every_input_counts_but_masked_slots():
  params, inputs, call = small()
  out = call(params, inputs)
  assert out.shape == inputs["latents"].shape and out.dtype == jnp.float32
  for name in ("latents", "timesteps", "context", "pooled", "time_ids", "grid"):
    moved = inputs | {name: inputs[name] + 1}
    assert not np.allclose(call(params, moved), out, atol=1e-3), name
  context = inputs["context"].copy()
  context[1, 3:] = 100.0
  np.testing.assert_array_equal(call(params, inputs | {"context": context}), out)


def test_a_grid_is_stretched_to_the_latents():
  latents = jnp.zeros((1, 4, 6, 2))
  grid = jnp.arange(4.0).reshape(1, 2, 2, 1)
  joined = unet._joined(latents, grid)
  assert joined.shape == (1, 4, 6, 3)
  corners = joined[0, ::3, ::5, 2]
  np.testing.assert_allclose(corners, [[0, 1], [2, 3]], atol=1e-6)
  np.testing.assert_array_equal(unet._joined(latents[:, :2, :2], grid)[..., 2:], grid)


def test_a_picture_does_not_depend_on_its_batch():
  params, inputs, call = small()
  out = call(params, inputs)
  turned = {name: value[::-1] for name, value in inputs.items()}
  np.testing.assert_allclose(call(params, turned)[::-1], out, atol=1e-5)


def test_gradient_reaches_every_parameter():
  fields = SMALL | dict(level_channels=(8, 8), depths=(0, 1))
  params = golden_data.random_like(target_of(fields))
  _, inputs, _ = small()
  model = unet.UNet(**fields, dtype="float32", remat="full")
  loss = lambda p: jnp.square(model.apply({"params": p}, **inputs)).mean()
  grads = golden_data.compiled(jax.grad(loss))(params)
  still = [path for path, g in rules.flatten(grads).items() if not np.any(g)]
  assert not still, still


@pytest.mark.parametrize(
  "change, message",
  [
    ({"latents": (1, 5, 4, 4)}, "multiples of 2"),
    ({"context": (1, 7, 9)}, "conditions of width 6, got 9"),
    ({"pooled": None}, "needs pooled condition and time ids"),
    ({"grid": (1, 4, 4, 2)}, "grid condition of width 3, got 2"),
    ({"grid": None}, "grid condition of width 3, got 0"),
  ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
  inputs = abstract_inputs(SMALL, side=4)
  for name, shape in change.items():
    inputs[name] = shape and jax.ShapeDtypeStruct(shape, jnp.float32)
  model = unet.UNet(**SMALL)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda x: model.init(jax.random.key(0), **x), inputs)


@pytest.mark.parametrize(
  "change",
  [
    {"time_cond_proj_dim": 256},
    {"resnet_time_scale_shift": "scale_shift"},
    {"class_embed_type": "timestep"},
    {"down_block_types": ["AttnDownBlock2D"] * 4},
    {"in_channels": 9},
    {"_grid_channels": 5},
    {"layers_per_block": [1, 2, 2, 2]},
    {"attention_head_dim": [5, 10, 20]},
    {"a_feature_of_tomorrow": "on"},
  ],
  ids=lambda change: next(iter(change)),
)
def test_a_config_of_another_model_is_refused(change):
  with pytest.raises(ValueError, match="expected"):
    unet.fields_from_config(SD15 | change)
