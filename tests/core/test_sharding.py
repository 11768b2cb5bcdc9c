"""Mesh requests, the rules table, and shardings of whole states."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from lavit_jax.core import sharding
from lavit_jax.core.contraction import contract
from lavit_jax.layers import linear, mlp


def test_minus_one_takes_the_devices_that_are_left():
  shape = sharding.resolve_mesh_shape({"fsdp": -1, "tensor": 2}, 8)
  assert shape == {"data": 1, "fsdp": 4, "sequence": 1, "tensor": 2}
  assert sharding.make_mesh({"data": -1}).shape["data"] == 8


def test_an_open_fsdp_divides_the_model_and_data_takes_the_rest():
  """256 devices split no 1408: encoder and merger were whole on each of them."""
  shape = sharding.resolve_mesh_shape({"fsdp": -1}, 256, [4096, 1408])
  assert shape == {"data": 2, "fsdp": 128, "sequence": 1, "tensor": 1}
  shape = sharding.resolve_mesh_shape({"data": 4, "fsdp": -1}, 1024, [1408])
  assert shape["data"] == 8 and shape["fsdp"] == 128
  assert sharding.resolve_mesh_shape({"data": -1}, 256, [1408])["data"] == 256
  assert sharding.make_mesh({"fsdp": -1}, widths=[12]).shape["fsdp"] == 4


@pytest.mark.parametrize("sizes", [{"fsdp": 3}, {"fsdp": 4}, {"data": 3, "fsdp": -1}])
def test_a_mesh_that_does_not_divide_the_devices_names_the_sizes_that_do(sizes):
  with pytest.raises(ValueError, match=r"there are 8; .* choose from \[1, 2, 4, 8\]"):
    sharding.resolve_mesh_shape(sizes, 8)


def test_unknown_axes_and_two_open_axes_are_refused():
  with pytest.raises(ValueError, match="unknown mesh axes .'model'.; the axes are"):
    sharding.resolve_mesh_shape({"model": 2}, 8)
  with pytest.raises(ValueError, match="at most one -1"):
    sharding.resolve_mesh_shape({"data": -1, "fsdp": -1}, 8)
  with pytest.raises(ValueError, match="must be positive"):
    sharding.resolve_mesh_shape({"data": 0}, 8)


def test_counts_that_the_mesh_does_not_divide_are_named():
  mesh = sharding.make_mesh({"data": 2, "tensor": 4})
  sharding.check_divides(mesh, heads=(8, ("tensor",)), batch=(2, ("data", "fsdp")))
  message = r"tensor = 4 do not divide heads = 6; use a mesh .* of \[1, 2, 3, 6\]"
  with pytest.raises(ValueError, match=message):
    sharding.check_divides(mesh, heads=(6, ("tensor",)))


def test_a_parameter_axis_that_does_not_divide_stays_whole():
  mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
  leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  abstract = {"even": leaf(8, 6), "odd": leaf(6, 5), "free": leaf(3)}
  axes = {"even": ("embed", "mlp"), "odd": ("embed", "mlp"), "free": (None,)}
  found = sharding.parameter_shardings(abstract, axes, mesh)
  assert found["even"].spec == P(("fsdp",), ("tensor",))
  assert found["odd"].spec == P(None, None) and found["free"].spec == P(None)
  # 8 x 6 over 8 devices, 6 x 5 and 3 whole, 4 bytes each.
  assert sharding.bytes_per_device(abstract, found) == 4 * (48 // 8 + 30 + 3)
  assert sharding.replicated_arrays(abstract, found, over=100) == {"odd": 120}


def test_optimizer_state_takes_the_sharding_of_its_parameter():
  mesh = sharding.make_mesh({"fsdp": 8})
  params = {"a": {"kernel": jax.ShapeDtypeStruct((16, 4), jnp.float32)}}
  spread = sharding.parameter_shardings(
    params, {"a": {"kernel": ("embed", "mlp")}}, mesh
  )
  tx = optax.MultiSteps(optax.chain(optax.adam(0.1), optax.ema(0.9)), 2)
  state = jax.eval_shape(tx.init, params)
  found = sharding.optimizer_shardings(state, params, spread)
  kernels = [
    s.spec
    for leaf, s in zip(jax.tree.leaves(state), jax.tree.leaves(found), strict=True)
    if leaf.shape == (16, 4)
  ]
  assert len(kernels) == 4  # two moments, the average, the accumulator
  assert set(kernels) == {spread["a"]["kernel"].spec}
  scalars = [s for s in jax.tree.leaves(found) if s.is_fully_replicated]
  assert len(scalars) == len(jax.tree.leaves(state)) - 4


def test_constrain_is_the_identity_without_a_mesh():
  x = jnp.ones((2, 3))
  assert sharding.constrain(x, "act_batch", None) is x
  with jax.set_mesh(sharding.make_mesh({"fsdp": -1})):
    y = jax.jit(lambda x: sharding.constrain(x, "act_batch", None))(jnp.ones((8, 3)))
  assert y.sharding.shard_shape(y.shape) == (1, 3)


@pytest.mark.parametrize(
  ("equation", "x", "kernel"),
  [
    ("btd,df->btf", (2, 3, 4), (4, 5)),
    ("btd,dnh->btnh", (2, 3, 4), (4, 5, 6)),
    ("btnh,nhd->btd", (2, 3, 4, 5), (4, 5, 6)),
  ],
)
def test_contraction_is_its_einsum(equation, x, kernel):
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=x), rng.normal(size=kernel)
  found = contract(equation, jnp.asarray(x), jnp.asarray(kernel))
  np.testing.assert_allclose(found, np.einsum(equation, x, kernel), atol=1e-5)


def test_a_contraction_over_leading_axes_is_refused():
  with pytest.raises(ValueError, match="must end x and begin the kernel"):
    contract("dbt,df->btf", jnp.ones((4, 2, 3)), jnp.ones((4, 5)))


@dataclasses.dataclass(frozen=True)
class Chip:
  """A device of a pod that is not there."""

  id: int
  slice_index: int
  coords: tuple[int, int, int]
  core_on_chip: int = 0
  platform: str = "tpu"
  device_kind: str = "TPU v5 lite"
  process_index: int = 0


def test_data_spans_slices_and_the_rest_may_take_a_part_of_a_side():
  places = itertools.product(range(2), range(16), range(16))
  chips = [Chip(i, piece, (x, y, 0)) for i, (piece, y, x) in enumerate(places)]
  mesh = sharding.make_mesh({"data": 8, "fsdp": 64}, chips)
  assert mesh.devices.shape == (8, 64, 1, 1)
  halves = mesh.devices[:4], mesh.devices[4:]
  assert [{chip.slice_index for chip in half.flat} for half in halves] == [{0}, {1}]


@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU v6 lite"])
def test_an_axis_may_take_a_part_of_a_side_of_any_torus(kind):
  places = itertools.product(range(16), range(16))
  chips = [Chip(i, 0, (x, y, 0), device_kind=kind) for i, (y, x) in enumerate(places)]
  mesh = sharding.make_mesh({"data": 4, "fsdp": 64}, chips)
  assert mesh.devices.shape == (4, 64, 1, 1) and len(set(mesh.devices.flat)) == 256


def exchanges(rows: dict[str, str]) -> tuple[list[str], jax.Array]:
  """Collectives of a two-layer map over eight devices under other rules, its result."""
  layer = mlp.Mlp(32, "float32")
  mesh = sharding.make_mesh({"tensor": 8})
  x = jnp.arange(4 * 2 * 8, dtype=jnp.float32).reshape(4, 2, 8) / 64
  init = lambda key: layer.init(key, x)
  params = linear.split_boxes(init(jax.random.key(0))["params"])[0]
  abstract, axes = linear.abstract_params(init)
  with sharding.rules(rows), jax.set_mesh(mesh):
    spread = sharding.parameter_shardings(abstract, axes, mesh)
    run = jax.jit(lambda params, x: layer.apply({"params": params}, x))
    given = (
      jax.device_put(params, spread),
      jax.device_put(x, sharding.batch_sharding(mesh)),
    )
    text = run.lower(*given).compile().as_text()
    kinds = re.findall(r"= \S+ (all-reduce|all-gather|reduce-scatter|all-to-all)", text)
    return sorted(kinds), run(*given)


def test_a_rule_of_the_config_changes_the_exchange_and_nothing_else():
  own, expected = exchanges(dict.fromkeys(sharding.RULES, ""))
  whole, found = exchanges({"mlp": "none", "act_mlp": "none"})
  assert own == ["all-reduce"] and not whole
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert exchanges({})[0] == own  # the table is as it was


@pytest.mark.parametrize("rows", [{"mlps": "tensor"}, {"mlp": "tensors"}])
def test_rules_that_do_not_exist_are_refused(rows):
  with pytest.raises(ValueError, match="expected config.rules"), sharding.rules(rows):
    pass
