"""The programs of generation for a mesh that is not there: shapes in, functions out.

    model, mesh -> abstract weights -> reading and decoding -> trace, lower, compile

The functions are those of `generate.decode`, with everything that is no array bound;
`stages.serving_programs` gives them to `plan`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lavit_jax.core import sharding
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.generate import decode, serving
from lavit_jax.generate import logits as processors
from lavit_jax.generate.decode import Shape, State
from lavit_jax.generate.logits import Settings
from lavit_jax.generate.serving import Serving
from lavit_jax.models import llama

CACHE_AXES = ("act_batch", "act_heads", None, None)

# A jitted function, and its arguments by name in their order.
Call = tuple[Callable, dict[str, Any]]


def abstract_serving(
  model: llama.Llama, vocabulary: Vocabulary, abstract_params, mesh: Mesh
) -> Serving:
  """Weights as shapes with shardings, in the dtype they are served in."""
  arrange = functools.partial(serving.lay_out, model)
  shapes = jax.eval_shape(arrange, abstract_params)
  layouts = serving.weight_shardings(model, shapes, mesh)
  return Serving(model, vocabulary, _placed(shapes, layouts))


def start(side: Serving, mesh: Mesh, rows: int, prompt: int, shape: Shape) -> Call:
  """Reads `rows` prompts of `prompt` slots, and the unconditional ones behind them."""

  def run(side, batch, keys):
    return decode.start(side, *batch, keys, shape)

  prompts, settings, keys = _start_arguments(side, mesh, rows, prompt, shape)
  arguments = {"parameters": side, "batch": (prompts, settings), "key": keys}
  return jax.jit(run), arguments


def advance(side: Serving, mesh: Mesh, rows: int, prompt: int, shape: Shape) -> Call:
  """The decoding loop over the donated cache; its body is one step."""

  def run(side, batch, state, keys):
    settings, limit = batch
    return decode.advance(side, state, settings, keys, limit, shape)

  prompts, settings, keys = _start_arguments(side, mesh, rows, prompt, shape)
  begin = functools.partial(decode.start, shape=shape)
  with jax.set_mesh(mesh):
    state = jax.eval_shape(begin, side, prompts, settings, keys)
  limit = _whole(mesh, np.zeros((), np.int32))
  arguments = {
    "parameters": side,
    "batch": (settings, limit),
    "cache": _placed(state, _state_shardings(state, mesh)),
    "key": keys,
  }
  return jax.jit(run, donate_argnums=2), arguments


def step_bytes(side: Serving, state: State) -> int:
  """Bytes that one chip reads in a step at the least: its weights and its cache.

  The embedding table is only looked up. The cache counts in full, as the program
  reads all its slots.
  """
  ends = {k: v for k, v in side.weights.ends.items() if k != "embedding"}
  read = (side.weights.replace(ends=ends), state.cache)
  return sharding.bytes_per_device(read, jax.tree.map(lambda x: x.sharding, read))


def _start_arguments(side: Serving, mesh: Mesh, rows: int, prompt: int, shape: Shape):
  """Prompts, settings and keys of `decode.start`."""
  total, dim = rows + shape.guided, side.model.embed_dim
  by_row = sharding.batch_sharding(mesh)
  leaf = lambda s, dtype: jax.ShapeDtypeStruct(s, dtype, sharding=by_row)
  ids = leaf((total, prompt), jnp.int32)
  vectors = leaf((total, prompt, dim), jnp.dtype(side.model.dtype))
  end = side.vocabulary.end
  settings = processors.rows([Settings(end, "codes", shape.max_new)] * rows)
  settings = jax.tree.map(lambda x: _whole(mesh, x), settings)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
  return decode.Prompts(vectors, ids, ids), settings, _whole(mesh, keys)


def _state_shardings(state: State, mesh: Mesh) -> State:
  """Cache over rows and heads; what is small stays whole."""
  spread = lambda axes: NamedSharding(mesh, sharding.partition_spec(axes))
  layouts = jax.tree.map(lambda _: sharding.replicated(mesh), state)
  axes = lambda leaf: CACHE_AXES if leaf.ndim == 4 else (None,) * 3
  cache = jax.tree.map(lambda leaf: spread(axes(leaf)), state.cache)
  return layouts.replace(cache=cache, segment_ids=spread(("act_batch", None)))


def _whole(mesh: Mesh, array) -> jax.ShapeDtypeStruct:
  layout = sharding.replicated(mesh)
  return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=layout)


def _placed(shapes, layouts):
  one = lambda leaf, layout: jax.ShapeDtypeStruct(
    leaf.shape, leaf.dtype, sharding=layout
  )
  return jax.tree.map(one, shapes, layouts)
