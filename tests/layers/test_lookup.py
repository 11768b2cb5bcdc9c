"""Embedding lookup: a common id learns from all of its tokens, at no wider exchange."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_meshes
from jax.experimental.compilation_cache import compilation_cache

from lavit_jax.core import sharding
from lavit_jax.layers import linear

ROWS, LENGTH, WIDTH, IDS = 64, 4096, 16, 1024
MESHES = [(1, 8, 1, 1), (2, 4, 1, 1), (2, 2, 2, 1), (1, 4, 1, 2), (8, 1, 1, 1)]


def zipf_batch() -> tuple[np.ndarray, np.ndarray]:
  """int32 ids of 262k tokens, 35,000 of them id 0, and the gradients of their vectors.

  The gradients are bfloat16 already, so that their sum alone is compared.
  """
  rng = np.random.default_rng(0)
  share = 1 / np.arange(1, IDS + 1)
  ids = rng.choice(IDS, size=(ROWS, LENGTH), p=share / share.sum())
  gradient = rng.normal(1.0, 1.0, (ROWS, LENGTH, WIDTH)).astype(jnp.bfloat16)
  return ids.astype(np.int32), gradient


def compiled_gradient(mesh, dtype, options=None):
  """(table, ids, gradient of the vectors) -> gradient of the table, on a mesh."""
  model = linear.Embed(IDS, WIDTH, dtype)
  split = jax.NamedSharding(mesh, sharding.partition_spec((None, "embed")))
  rows = jax.NamedSharding(mesh, sharding.partition_spec(("act_batch", "act_length")))

  def gradient_of(table, ids, gradient):
    look = lambda table: model.apply({"params": {"embedding": table}}, ids)
    vectors, pull = jax.vjp(look, table)
    return pull(gradient.astype(vectors.dtype))[0]

  shape = lambda *sizes, dtype, where: jax.ShapeDtypeStruct(
    sizes, dtype, sharding=where
  )
  arguments = (
    shape(IDS, WIDTH, dtype=jnp.float32, where=split),
    shape(ROWS, LENGTH, dtype=jnp.int32, where=rows),
    shape(ROWS, LENGTH, WIDTH, dtype=jnp.bfloat16, where=rows),
  )
  with jax.set_mesh(mesh):
    lowered = jax.jit(gradient_of, out_shardings=split).lower(*arguments)
    run = lowered.compile(options)
  return lambda *args: np.asarray(run(*jax.device_put(args, (split, rows, rows))))


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_a_frequent_id_learns_from_all_of_its_tokens(shape):
  ids, gradient = zipf_batch()
  table = np.zeros((IDS, WIDTH), np.float32)
  assert (ids == 0).sum() > 30_000
  expected = compiled_gradient(test_meshes.mesh_of((1, 1, 1, 1)), "float32")
  expected = expected(table, ids, gradient)
  np.testing.assert_allclose(
    expected[0], gradient.astype(np.float64)[ids == 0].sum(0), rtol=1e-4
  )
  found = compiled_gradient(test_meshes.mesh_of(shape), "bfloat16")
  found = found(table, ids, gradient)
  np.testing.assert_allclose(found[0], expected[0], rtol=0.01)
  size = np.linalg.norm(expected, axis=1)
  assert (np.linalg.norm(found - expected, axis=1) < 0.01 * size).all()


# What crosses between devices


@pytest.fixture
def partitioned(tmp_path):
  """Compiles for a mesh and gives the lines of its exchanges and sums.

  The text is that of the partitioner: XLA on CPU then widens every bfloat16 exchange to
  float32, which it cannot send otherwise.
  """
  usual = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)  # it would not be compiled
  compilation_cache.reset_cache()

  def lines(mesh):
    dump = {"xla_dump_to": str(tmp_path), "xla_dump_hlo_pass_re": "spmd-partitioning"}
    compiled_gradient(mesh, "bfloat16", dump)
    (path,) = tmp_path.glob("*after_spmd-partitioning*.txt")
    pattern = r"= (\S+) (all-[\w-]+|reduce-scatter|collective-\w+|scatter)\("
    return [(kind, shape) for shape, kind in re.findall(pattern, path.read_text())]

  yield lines
  jax.config.update("jax_enable_compilation_cache", usual)
  compilation_cache.reset_cache()


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_tokens_are_summed_in_float32_and_exchanged_in_bfloat16(shape, partitioned):
  mesh = test_meshes.mesh_of(shape)
  found = partitioned(mesh)
  sums = [made for kind, made in found if kind == "scatter"]
  split = WIDTH // mesh.shape["fsdp"]
  assert [made.split("{")[0] for made in sums] == [f"f32[{IDS},{split}]"]
  sent = [(kind, made) for kind, made in found if kind != "scatter"]
  assert all(made.startswith(("bf16", "s32")) for _, made in sent), sent
  wide = sorted(kind for kind, made in sent if made.startswith("bf16"))
  sharing = mesh.shape["data"] * mesh.shape["sequence"]
  expected = ["all-reduce"] * (sharing > 1) + ["all-to-all"] * (mesh.shape["fsdp"] > 1)
  assert wide == expected


def test_rows_that_no_mesh_divides_are_summed_whole():
  mesh, model = test_meshes.mesh_of((2, 2, 2, 1)), linear.Embed(4, 3, "bfloat16")
  ids = jnp.array([[0, 1, 1], [2, 1, 0], [1, 1, 1]])

  def total(table):
    return model.apply({"params": {"embedding": table}}, ids).sum(dtype=jnp.float32)

  with jax.set_mesh(mesh):
    found = jax.jit(jax.grad(total))(jnp.ones((4, 3)))
  np.testing.assert_array_equal(found, [[2] * 3, [6] * 3, [1] * 3, [0] * 3])
