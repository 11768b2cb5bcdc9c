"""What a run carries from step to step, born sharded."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from lavit_jax.core import sharding
from lavit_jax.layers import linear


@flax.struct.dataclass
class TrainState:
  """The state of a run: only what trains, plus running statistics.

  Attributes:
    step: int32[] optimizer steps taken.
    params: trainable parameters.
    opt_state: optimizer state, sharded with its parameters.
    codebook: running codebook of stage 1 (no gradient, no decay), else None.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  codebook: Any = None


def unboxed_init(init: Callable) -> Callable:
  """`init(key, *args)` returning bare arrays."""
  return lambda key, *args: linear.split_boxes(init(key, *args)["params"])[0]


def fresh(params: Any, tx: optax.GradientTransformation, codebook=None) -> TrainState:
  """State at step 0."""
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), codebook)


def state_shardings(abstract: TrainState, axes: Any, mesh: Mesh) -> TrainState:
  """Shardings of a whole state: optimizer moments follow their parameters.

  Args:
    abstract: abstract state.
    axes: logical axis names of `abstract.params`.
    mesh: the mesh.

  Returns:
    A TrainState of NamedShardings.
  """
  params = sharding.parameter_shardings(abstract.params, axes, mesh)
  whole = sharding.replicated(mesh)
  return TrainState(
    step=whole,
    params=params,
    opt_state=sharding.optimizer_shardings(abstract.opt_state, abstract.params, params),
    codebook=jax.tree.map(lambda _: whole, abstract.codebook),
  )


def count(tree: Any) -> int:
  """Number of values in a tree of (abstract) arrays."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))
