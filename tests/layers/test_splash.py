"""The attention kernel, interpreted, against the einsum; and where it is chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.core import sequence, sharding
from lavit_jax.layers import attention, splash, stack

LENGTH = 256


def row_arrays(heads: int, kv_heads: int, size: int = 128):
  """Query, key, value, and two rows of segments, the last of them padding."""
  keys = jax.random.split(jax.random.key(0), 4)
  shape = lambda n: (2, LENGTH, n, size)
  query, key, value = (
    jax.random.normal(k, shape(n)) for k, n in zip(keys, (heads, kv_heads, kv_heads))
  )
  bounds = [[40, 170, 230], [128, 129, 256]]
  place = np.arange(LENGTH)
  ids = np.stack([np.searchsorted(ends, place, side="right") + 1 for ends in bounds])
  ids = np.where(ids > 3, 0, ids).astype(np.int32)
  weight = jax.random.normal(keys[3], query.shape) * (ids > 0)[..., None, None]
  return query, key, value, jnp.asarray(ids), weight


def value_and_gradients(attend, query, key, value, ids, weight):
  def loss(query, key, value):
    out = attend(query, key, value, ids)
    return (out * weight).sum(), out

  step = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
  (_, out), grads = step(query, key, value)
  return out * (ids > 0)[..., None, None], grads


def einsum(query, key, value, ids):
  return attention.attend(query, key, value, sequence.packed_mask(ids))


def interpreted(query, key, value, ids):
  return splash.attend(query, key, value, ids, interpret=True)


def assert_same(found, expected):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_the_kernel_gives_what_the_einsum_gives_and_its_gradients():
  arrays = row_arrays(heads=2, kv_heads=1)
  assert_same(
    value_and_gradients(interpreted, *arrays), value_and_gradients(einsum, *arrays)
  )


def test_over_a_mesh_it_stays_spread_and_gives_the_same():
  arrays = row_arrays(heads=2, kv_heads=2)
  expected = value_and_gradients(einsum, *arrays)
  mesh = sharding.make_mesh({"fsdp": 2, "sequence": 2, "tensor": 2})
  with jax.set_mesh(mesh):
    step = jax.jit(lambda *args: value_and_gradients(interpreted, *args))
    found = step(*arrays)
    text = step.lower(*arrays).compile().as_text()
  assert_same(found, expected)
  # Rows, heads and query places are spread: no device runs on a whole array.
  assert f"f32[1,1,{LENGTH // 2},128]" in text


def test_elsewhere_than_on_tpu_the_einsum_runs():
  query, key, value, ids, _ = row_arrays(heads=2, kv_heads=1)
  assert sharding.platform() == "" and not splash.suits(query, key)
  found = attention.attend_packed(query, key, value, ids)
  np.testing.assert_array_equal(found, einsum(query, key, value, ids))
  with jax.set_mesh(sharding.make_mesh({"fsdp": -1})):
    assert jax.jit(lambda x: x * (sharding.platform() == "cpu"))(jnp.ones(1)) == 1


def test_every_policy_has_a_name_and_others_are_refused():
  assert set(stack.REMAT_POLICIES) == {"none", "full", "attention", "dots"}
  with pytest.raises(ValueError, match="remat 'some' is not one of"):
    stack.layers(object, 2, "some")
