"""Convolutions and the group norm against formulas written out."""

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.layers import conv, linear, norm

CASES = {
  "same": (3, 1, (1, 1)),
  "halved": (3, 2, (1, 1)),
  "halved, padded on the far side": (3, 2, (0, 1)),
  "one pixel": (1, 1, (0, 0)),
}


def by_hand(x, kernel, stride, padding):
  """The definition, output pixel by output pixel."""
  size = kernel.shape[0]
  padded = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
  rows = range(0, padded.shape[1] - size + 1, stride)
  columns = range(0, padded.shape[2] - size + 1, stride)
  see = lambda i, j: padded[:, i : i + size, j : j + size]
  out = [
    [jnp.einsum("bklc,klcd->bd", see(i, j), kernel) for j in columns] for i in rows
  ]
  return jnp.stack([jnp.stack(row, 1) for row in out], 1)


@pytest.mark.parametrize("name", CASES)
def test_convolution_and_its_gradients_follow_the_definition(name):
  size, stride, padding = CASES[name]
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 4, 2, 3)).astype(np.float32)
  kernel = rng.normal(size=(size, size, 3, 5)).astype(np.float32)

  def outcome(function):
    loss = lambda x, k: jnp.sin(function(x, k, stride, padding)).sum()
    both = lambda x, k: (function(x, k, stride, padding), *jax.grad(loss, (0, 1))(x, k))
    return golden_data.compiled(both)(x, kernel)

  for ours, expected in zip(outcome(conv.convolve), outcome(by_hand)):
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_group_norm_normalizes_each_group_over_the_picture():
  x = np.random.default_rng(0).normal(2, 3, (2, 4, 5, 6)).astype(np.float32)
  module = norm.GroupNorm(num_groups=3, eps=1e-5)
  params, axes = linear.split_boxes(module.init(jax.random.key(0), x))
  out = np.asarray(module.apply(params, x)).reshape(2, 20, 3, 2)
  assert axes["params"]["scale"] == (None,)
  np.testing.assert_allclose(out.mean((1, 3)), 0, atol=1e-5)
  np.testing.assert_allclose(out.std((1, 3)), 1, atol=1e-4)
  with pytest.raises(ValueError, match="4 norm groups do not divide 6 channels"):
    norm.GroupNorm(num_groups=4, eps=1e-5).init(jax.random.key(0), x)
