"""What `train` asks of a stage, and what all stages do alike."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax.sharding import Mesh

from lavit_jax.core import sharding
from lavit_jax.layers import linear
from lavit_jax.training import feed, train_state
from lavit_jax.training.train_state import TrainState

SHOWN = 8  # leaves named in a message


@dataclasses.dataclass
class Stage:
  """One stage, assembled from its config on a mesh.

  Attributes:
    mesh: the device mesh.
    abstract: abstract state.
    shardings: its shardings.
    initial: makes the state of step 0 from a seed.
    frozen: parameters that are read and never trained.
    frozen_checksums: checksum of each frozen part, for checkpoints and reports.
    step: the pure train step (state, frozen, batch, key) -> (state, metrics) of a step
      number; phases of a stage have different ones.
    batches: the feed from a position in rows: yields (batch, next position).
    before_step: host work due before a step number (k-means), on the whole state.
    evaluate: figures on held-out data, and pictures u8[H, W, 3] by name.
    finish: writes the model directory.
    records: record ids of the batch from a position in rows on, for messages; each is
      read when it is asked for.
    data_names: fingerprint of each folder of data, for checkpoints.
    contents: tokens and images of one example, for rates; places, filled or not.
  """

  mesh: Mesh
  abstract: TrainState
  shardings: TrainState
  initial: Callable[[int], TrainState]
  frozen: Any
  frozen_checksums: dict[str, str]
  step: Callable[[int], Callable]
  batches: Callable[[int], feed.DeviceFeed]
  before_step: Callable[[TrainState, int], TrainState]
  evaluate: Callable[[TrainState], tuple[dict[str, float], dict[str, Any]]]
  finish: Callable[[TrainState, str], None]
  records: Callable[[int], Iterable[str]] = lambda position: ()
  data_names: dict[str, str] = dataclasses.field(default_factory=dict)
  contents: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Assembled:
  """What sizes and a mesh alone decide of a stage; no file is read.

  Attributes:
    model: what trains.
    abstract: abstract state.
    shardings: its shardings.
    initial: seed -> state of step 0.
    step: the jitted train step of a step number.
    figures: the jitted evaluation (state, frozen, batch) -> figures of a step number.
  """

  model: Any
  abstract: TrainState
  shardings: TrainState
  initial: Callable[[int], TrainState]
  step: Callable[[int], Callable]
  figures: Callable[[int], Callable]


def born_sharded(
  init: Callable[[jax.Array], Any],
  tx: optax.GradientTransformation,
  mesh: Mesh,
  codebook: Callable[[jax.Array], Any] = lambda key: None,
) -> tuple[TrainState, TrainState, Callable[[int], TrainState]]:
  """Evaluates a state abstractly, shards it, and makes it in place on the devices.

  Args:
    init: key -> boxed variables of the trainable module(s).
    tx: the optimizer.
    mesh: the mesh.
    codebook: key -> running codebook, or None.

  Returns:
    Abstract state, its shardings, and seed -> state.
  """
  _, axes = linear.abstract_params(init)

  def fresh(key):
    params = train_state.unboxed_init(init)(key)
    return train_state.fresh(params, tx, codebook(jax.random.fold_in(key, 1)))

  abstract = jax.eval_shape(fresh, jax.random.key(0))
  shardings = train_state.state_shardings(abstract, axes, mesh)

  def initial(seed: int) -> TrainState:
    with jax.set_mesh(mesh):
      return jax.jit(fresh, out_shardings=shardings)(jax.random.key(seed))

  return abstract, shardings, initial


def micro_batches(batch: Any, accumulate: int) -> Any:
  """Splits rows into `accumulate` micro-batches without moving them across devices."""
  return jax.tree.map(
    lambda x: rearrange(x, "(b a) ... -> a b ...", a=accumulate), batch
  )


def over_micro_batches(
  function: Callable[[Any, Any], tuple[Any, Any]], carry: Any, micro: Any
) -> tuple[Any, Any]:
  """`lax.scan` over micro-batches; a single one is called directly."""
  if jax.tree.leaves(micro)[0].shape[0] > 1:
    return jax.lax.scan(function, carry, micro)
  carry, out = function(carry, jax.tree.map(lambda x: x[0], micro))
  return carry, jax.tree.map(lambda x: x[None], out)


def joined(micro: Any) -> Any:
  """Rows of micro-batches in the order of their batch: undoes `micro_batches`."""
  return jax.tree.map(lambda x: rearrange(x, "a b ... -> (b a) ..."), micro)


def in_micro_batches(function: Callable[[Any], Any], batch: Any, accumulate: int):
  """Results of a function of rows, stacked over micro-batches.

  Evaluation needs no more memory than the step then, which takes as few rows at a time.
  """
  micro = micro_batches(batch, accumulate)
  return over_micro_batches(lambda _, mb: (None, function(mb)), None, micro)[1]


def accumulated_gradients(
  loss: Callable[[Any, Any], tuple[jax.Array, Any]], params: Any, micro: Any
) -> tuple[Any, tuple[jax.Array, Any]]:
  """Gradients of a batch, one micro-batch at a time.

  Args:
    loss: (params, micro-batch) -> its share of the batch's loss float32[], and whatever
      else is wanted of it.
    params: what trains.
    micro: of `micro_batches`.

  Returns:
    The summed gradients; losses float32[a] and the rest, stacked over micro-batches.
  """

  def one(grads, mb):
    out, new = jax.value_and_grad(loss, has_aux=True)(params, mb)
    return jax.tree.map(jnp.add, grads, new), out

  zeros = jax.tree.map(jnp.zeros_like, params)
  return over_micro_batches(one, zeros, micro)


def apply_gradients(
  state: TrainState, grads: Any, tx: optax.GradientTransformation, **changes: Any
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One optimizer step; reports norms, and whether it was skipped.

  A gradient that is not finite changes nothing but the number of the step: neither
  parameters nor optimizer state, nor what `changes` would replace.
  """
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  norm = optax.tree.norm(grads)
  finite = jnp.isfinite(norm)
  changes |= {"params": params, "opt_state": opt_state}
  kept = {
    name: jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
    for name, new in changes.items()
    for old in (getattr(state, name),)
  }
  metrics = {
    "gradient_norm": norm,
    "parameter_norm": optax.tree.norm(kept["params"]),
    "skipped": 1.0 - finite,
  }
  for name in grads:  # by group of parameters, as in optimizer.groups
    metrics[f"gradient_norm_{name}"] = optax.tree.norm(grads[name])
    moved = optax.tree.norm(updates[name])
    metrics[f"update_norm_{name}"] = jnp.where(finite, moved, 0.0)
  return state.replace(step=state.step + 1, **kept), metrics


def jitted(step: Callable, shardings: TrainState) -> Callable:
  """Compiles a step with donated state and pinned output shardings."""
  return jax.jit(step, out_shardings=(shardings, None), donate_argnums=0)


def evaluation(function: Callable) -> Callable:
  """Compiles an evaluation (state, frozen, batch) -> figures.

  All of the state is an argument, used or not: it stays on the devices meanwhile, and a
  plan of the program counts it.
  """
  return jax.jit(function, keep_unused=True)


def check_state(state: TrainState, abstract: TrainState, shardings: TrainState) -> None:
  """Checks that a state, however it was made, is as planned, before it is trained.

  Args:
    state: the state.
    abstract: the planned shapes and dtypes.
    shardings: the planned shardings.

  Raises:
    ValueError: names the leaves whose shape, dtype or sharding is another one, and
      those that share memory, so that they cannot be donated.
  """
  expected, structure = jax.tree_util.tree_flatten_with_path(abstract)
  if jax.tree.structure(state) != structure:
    raise ValueError(
      f"expected a state with the leaves {structure}, got {jax.tree.structure(state)};"
      " this is a mistake of the stage that made it"
    )
  wrong, seen = [], {}
  planned = jax.tree.leaves(shardings)
  for (path, leaf), spread, found in zip(expected, planned, jax.tree.leaves(state)):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    wrong += _differences(name, leaf, spread, found)
    if isinstance(found, jax.Array) and found.size:
      for piece in found.addressable_shards:
        at = (piece.device.id, piece.data.unsafe_buffer_pointer())
        if at in seen and seen[at] != name:
          wrong.append(f"{name} shares its memory with {seen[at]}")
          break
        seen[at] = name
  if wrong:
    more = f" and {len(wrong) - SHOWN} more" if wrong[SHOWN:] else ""
    raise ValueError(
      "expected a state as it was planned before step 1, got another one:"
      f" {'; '.join(wrong[:SHOWN])}{more}; whatever made these leaves must place them"
    )


def _differences(name: str, leaf: Any, spread: Any, found: Any) -> list[str]:
  """How one leaf differs from its plan."""
  if not isinstance(found, jax.Array):
    return [f"{name} is {type(found).__name__}, not on the devices"]
  if (found.shape, found.dtype) != (leaf.shape, leaf.dtype):
    planned = f"{leaf.dtype}{list(leaf.shape)}"
    return [f"{name} is {found.dtype}{list(found.shape)}, planned {planned}"]
  if not found.sharding.is_equivalent_to(spread, found.ndim):
    got = getattr(found.sharding, "spec", found.sharding)
    return [f"{name} is split as {got}, planned {spread.spec}"]
  return []


def place(tree: Any, mesh: Mesh) -> Any:
  """Puts whole copies of small host arrays on every device."""
  return jax.device_put(tree, sharding.replicated(mesh))


def mean_metrics(metrics: list[dict[str, jax.Array]]) -> dict[str, float]:
  """Averages metric records of several batches."""
  return {
    name: float(jnp.stack([m[name] for m in metrics]).mean()) for name in metrics[0]
  }
