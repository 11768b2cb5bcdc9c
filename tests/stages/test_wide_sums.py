"""Sums over rows, pictures and places are made in float32, whatever the compute dtype.

A bfloat16 sum of equal terms stands still after 256 of them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_meshes
import test_pixel_decoder_stage
import toy_run

from configs import contrastive as contrastive_config
from lavit_jax.layers import conv, linear
from lavit_jax.models import lavit
from lavit_jax.models import visual_tokenizer as tokenizer_model
from lavit_jax.stages import contrastive, pixel_decoder, pretrain, reconstruction
from lavit_jax.training import train_state

HALF = "bfloat16"


def gradient_of_sum(model, *arguments):
  """Gradient of the sum of a model's outputs by its parameters."""
  params = linear.split_boxes(model.init(jax.random.key(0), *arguments)["params"])[0]
  total = lambda p: model.apply({"params": p}, *arguments).sum(dtype=jnp.float32)
  return jax.grad(total)(params)


@pytest.mark.parametrize(
  ("model", "shape"),
  [
    (linear.dense(2, 3, dtype=HALF), (4, 4096, 2)),
    (conv.Conv(3, dtype=HALF), (4, 64, 64, 2)),
  ],
)
def test_a_bias_learns_from_every_row(model, shape):
  bias = gradient_of_sum(model, jnp.ones(shape, HALF))["bias"]
  np.testing.assert_array_equal(bias, np.full(3, 4 * 4096))


def test_what_all_rows_share_is_added_in_float32_and_rounded_once():
  x, shared = jnp.full((1, 1), 256.0, HALF), jnp.array([1.003])
  assert x + shared.astype(HALF) == 256
  assert linear.add_shared(x, shared) == 258  # as near to 257.003 as there is
  assert linear.add_shared(x, shared).dtype == HALF


# Programs of the stages


def contrastive_gradient():
  config = contrastive_config.get_config("tiny")
  sizes = dict(embed_dim=40, num_layers=2, num_heads=8, head_dim=4, mlp_dim=56)
  config.model.vit, config.unroll, config.dtype = toy_run.VIT, 1, HALF
  config.model.text = sizes | dict(max_length=14)
  weights = {kind: entry.background_weight for kind, entry in config.words.items()}
  model = contrastive.make_model(config, toy_run.WORDS.text_size)
  step = contrastive.make_step(model, toy_run.recorder(), weights, 1.0)
  shown = (toy_run.pictures(8), jnp.zeros((8, 14), int), jnp.ones(8, int))
  batch = dict(zip(("image", "tokens", "length"), shown))
  batch |= {kind: jnp.zeros((8, toy_run.PATCHES), jnp.uint8) for kind in weights}
  init = lambda key: model.init(key, shown[0] / 255, *shown[1:])
  return step, init, None, batch, None


def tokenizer_gradient(quantize):
  model = tokenizer_model.VisualTokenizer(**toy_run.TOKENIZER, dtype=HALF)
  parts = (model, toy_run.tower().clone(dtype=HALF), toy_run.recorder())
  step = reconstruction.make_step(*parts, test_meshes.tokenizer_config(1), quantize)
  batch = test_meshes.picture_batch()
  book = test_meshes.random_codebook()
  return step, test_meshes.init_tokenizer, toy_run.frozen(), batch, book


def pixel_gradient():
  config = test_pixel_decoder_stage.config_of(dtype=HALF)
  modules = pixel_decoder.Modules(config)
  coder = tokenizer_model.VisualTokenizer(**toy_run.TOKENIZER, dtype=HALF)
  step = pixel_decoder.make_step(modules, coder, toy_run.recorder(), config)
  init = modules.init(toy_run.PATCHES, toy_run.WIDTH)
  frozen = test_pixel_decoder_stage.frozen()
  return step, init, frozen, test_pixel_decoder_stage.batch(), None


def language_gradient():
  model = toy_run.language_model(toy_run.language_config(dtype=HALF))
  tower = toy_run.tower().clone(dtype=HALF)
  step = pretrain.make_step(model, tower, toy_run.recorder(), toy_run.WORDS, 2, 2)
  init = lavit.init_function(model, toy_run.PATCHES)
  return step, init, toy_run.frozen(), toy_run.packed_batch(8), None


def narrow_sums(jaxpr) -> list[str]:
  """Sums of a program in bfloat16 over more than two terms, but for matrix products.

  Two are a pixel's copies in an upsampled picture. Taking patches into a row sums none
  on the way back, as each has one place, though places without a patch send zeros.
  """
  found = []
  for equation in jaxpr.eqns:
    name, given = equation.primitive.name, [x.aval for x in equation.invars]
    if name in ("reduce_sum", "cumsum", "reduce_window_sum", "scatter-add"):
      source, made = given[-1], equation.outvars[0].aval
      if made.dtype == jnp.bfloat16 and source.size > 2 * made.size:
        found.append(f"{name} {source} -> {made}")
    for inner in jax.tree.leaves(list(equation.params.values())):
      inner = getattr(inner, "jaxpr", inner)
      found += narrow_sums(inner) if hasattr(inner, "eqns") else []
  return found


STAGES = {
  "contrastive": contrastive_gradient,
  "visual_tokenizer, phase a": lambda: tokenizer_gradient(False),
  "visual_tokenizer, phase b": lambda: tokenizer_gradient(True),
  "pixel_decoder": pixel_gradient,
  "pretrain": language_gradient,
}


@pytest.mark.parametrize("stage", STAGES)
def test_no_step_adds_up_rows_in_bfloat16(stage):
  step, init, frozen, batch, book = STAGES[stage]()
  params, _ = linear.abstract_params(init)
  fresh = lambda p, b: train_state.fresh(p, toy_run.recorder(), b)
  state = jax.eval_shape(fresh, params, book)
  program = jax.make_jaxpr(step)(state, frozen, batch, jax.random.key(0))
  text = str(program)
  assert "bf16" in text and "reduce_sum" in text
  assert narrow_sums(program.jaxpr) == []
