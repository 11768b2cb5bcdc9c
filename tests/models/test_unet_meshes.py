"""The U-Net on meshes of eight devices: outputs and gradients of one device."""

import functools

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_pixels

from lavit_jax.core import sharding
from lavit_jax.layers import linear


def inputs() -> tuple:
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  latents, times, context = draw(8, 4, 4, 9), draw(8) * 100 + 500, draw(8, 6, 8)
  return latents, times, context, None, None, None, draw(8, 2, 2, 5)


def loss(params, arguments):
  return (toy_pixels.unet().apply({"params": params}, *arguments) ** 2).mean()


@functools.cache
def alone():
  arguments = toy_pixels.unet_params(), inputs()
  step = jax.jit(jax.value_and_grad(loss)).lower(*arguments)
  return step.compile(golden_data.COMPILE_FAST)(*arguments)


def shardings(mesh):
  init = lambda: toy_pixels.unet().init(jax.random.key(0), *inputs())
  abstract, axes = linear.split_boxes(jax.eval_shape(init))
  return sharding.parameter_shardings(abstract["params"], axes["params"], mesh)


@pytest.mark.parametrize("shape", [(2, 2, 1, 2), (1, 4, 2, 1)])
def test_any_mesh_gives_the_gradients_of_one_device(shape):
  mesh = sharding.make_mesh(dict(zip(sharding.MESH_AXES, shape)))
  spread = shardings(mesh)
  if mesh.shape["tensor"] > 1:  # the pair of convolutions of a residual block
    leaves = jax.tree_util.tree_flatten_with_path(spread)[0]
    split = [path for path, leaf in leaves if "tensor" in str(leaf.spec)]
    assert any("conv1" in str(path) for path in split)
    assert any("conv2" in str(path) for path in split)
  with jax.set_mesh(mesh):
    params = jax.device_put(toy_pixels.unet_params(), spread)
    step = jax.jit(jax.value_and_grad(loss), out_shardings=(None, spread))
    program = step.lower(params, inputs()).compile(golden_data.COMPILE_FAST)
    found = program(params, inputs())
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    *jax.device_get((found, alone())),
  )
