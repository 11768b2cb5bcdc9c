"""The programs of generation for a mesh that is not there: shapes in, programs out.

    model, mesh -> abstract weights -> lowered prefill and decoding loop -> compile()

What `planning` asks of a training step can be asked of these: memory of one chip from
`memory_analysis()`, the program's text, and the bytes that one step must read.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lavit_jax import sharding
from lavit_jax.generate import decode, serving
from lavit_jax.generate import logits as processors
from lavit_jax.generate.decode import Shape, State
from lavit_jax.generate.logits import Settings
from lavit_jax.generate.serving import Serving
from lavit_jax.models import llama
from lavit_jax.vocabulary import END, Vocabulary

CACHE_AXES = ("act_batch", "act_heads", None, None)


def abstract_serving(
  model: llama.Llama, vocabulary: Vocabulary, abstract_params, mesh: Mesh
) -> Serving:
  """Weights as shapes with shardings, in the dtype they are served in."""
  arrange = functools.partial(serving.lay_out, model)
  shapes = jax.eval_shape(arrange, abstract_params)
  layouts = serving.weight_shardings(model, shapes, mesh)
  return Serving(model, vocabulary, _placed(shapes, layouts))


def lower_start(
  side: Serving, mesh: Mesh, rows: int, prompt: int, shape: Shape
) -> jax.stages.Lowered:
  """The program that reads `rows` prompts, and the unconditional ones behind them."""
  with jax.set_mesh(mesh):
    return decode.start.lower(*_start_arguments(side, mesh, rows, prompt, shape), shape)


def lower_advance(
  side: Serving, mesh: Mesh, rows: int, prompt: int, shape: Shape
) -> jax.stages.Lowered:
  """The decoding loop over the donated cache; its body is one step."""
  with jax.set_mesh(mesh):
    arguments = _start_arguments(side, mesh, rows, prompt, shape)
    state = jax.eval_shape(functools.partial(decode.start, shape=shape), *arguments)
    state = _placed(state, _state_shardings(state, mesh))
    _, _, settings, keys = arguments
    limit = _whole(mesh, np.zeros((), np.int32))
    return decode.advance.lower(side, state, settings, keys, limit, shape)


def step_bytes(side: Serving, mesh: Mesh, rows: int, prompt: int, shape: Shape) -> int:
  """Bytes that one chip reads in a step at the least: its weights and its cache.

  The embedding table is only looked up. The cache counts in full, as the program
  reads all its slots.
  """
  weights, model = side.weights, side.model
  read = weights.replace(
    ends={k: v for k, v in weights.ends.items() if k != "embedding"}
  )
  spread = jax.tree.map(lambda leaf: leaf.sharding, read)
  slots = (
    rows + shape.guided,
    model.num_kv_heads,
    prompt + shape.max_new,
    model.head_dim,
  )
  layout = NamedSharding(mesh, sharding.partition_spec(CACHE_AXES))
  each = math.prod(layout.shard_shape(slots)) * jnp.dtype(model.dtype).itemsize
  return sharding.bytes_per_device(read, spread) + 2 * model.num_layers * each


def _start_arguments(side: Serving, mesh: Mesh, rows: int, prompt: int, shape: Shape):
  total, dim = rows + shape.guided, side.model.embed_dim
  by_row = sharding.batch_sharding(mesh)
  leaf = lambda s, dtype: jax.ShapeDtypeStruct(s, dtype, sharding=by_row)
  ids = leaf((total, prompt), jnp.int32)
  prompts = decode.Prompts(
    leaf((total, prompt, dim), jnp.dtype(side.model.dtype)), ids, ids
  )
  settings = processors.rows([Settings(END, "codes", shape.max_new)] * rows)
  settings = jax.tree.map(lambda x: _whole(mesh, x), settings)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
  return side, prompts, settings, _whole(mesh, keys)


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
