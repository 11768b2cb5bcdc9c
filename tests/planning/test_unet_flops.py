"""The analytic FLOPs of the U-Net equal those of its traced products."""

import math

import jax
import jax.numpy as jnp
import pytest

from lavit_jax.layers import linear
from lavit_jax.models import unet
from lavit_jax.planning import unet_flops

SIDES = {"sd15": 64, "sdxl": 128, "tiny": 16}


def counted(jaxpr, times: int = 1) -> int:
  """FLOPs of the products and convolutions of a traced program."""
  total = 0
  for equation in jaxpr.eqns:
    sizes = [variable.aval.shape for variable in equation.invars]
    outputs = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
      contracted = equation.params["dimension_numbers"][0][0]
      total += 2 * times * outputs * math.prod(sizes[0][axis] for axis in contracted)
    elif equation.primitive.name == "conv_general_dilated":
      total += 2 * times * outputs * math.prod(sizes[1][:3])
    length = equation.params.get("length", 1)
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        total += counted(inner, times * length)
  return total


@pytest.mark.parametrize("name", unet.VARIANTS)
def test_traced_products_equal_the_formula(name):
  fields, side = unet.VARIANTS[name], SIDES[name]
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
  inputs = [
    shape(1, side, side, fields["channels"]),
    shape(1),
    shape(1, 256, fields["context_dim"]),
  ]
  if fields["pooled_dim"]:
    inputs += [shape(1, 256), shape(1, fields["pooled_dim"]), shape(1, 6)]
  if fields.get("grid_dim"):
    grid = shape(1, side, side, fields["grid_dim"])
    inputs += [None] * (6 - len(inputs)) + [grid]
  model = unet.UNet(**fields)
  boxed = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x), *inputs)
  traced = jax.make_jaxpr(model.apply)(linear.split_boxes(boxed)[0], *inputs)
  assert counted(traced.jaxpr) == unet_flops.forward(fields, side, side, 256)
