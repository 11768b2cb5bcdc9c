"""Cached decoding: one compiled program per batch size, prompt bucket and settings.

    left-padded prompts f[B, T, D] -> prefill -> cache, logits f32[B, V]
    -> while any sequence is open: choose an id, feed it -> ids i32[B, max_new]

Guidance doubles the rows: the second half continues the unconditional prompt with the
ids chosen by the first. A sequence draws from its own key, so that it does not depend
on the batch it is in.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from lavit_jax.generate import logits as processors
from lavit_jax.generate.logits import Settings
from lavit_jax.layers.attention import KVCache
from lavit_jax.models import llama
from lavit_jax.vocabulary import END, Vocabulary

# Prompts are padded to a multiple of this: other lengths reuse the program.
BUCKET = 32
PAD = END  # what follows the end of a sequence


@flax.struct.dataclass
class Generated:
  """New ids of a batch.

  Attributes:
    ids: int32[B, max_new], `PAD` after the end id.
    lengths: int32[B] ids before the end id.
    scores: float32[B, max_new] log-probability of each id in what it was chosen from,
      0 after the end.
  """

  ids: jax.Array
  lengths: jax.Array
  scores: jax.Array


@flax.struct.dataclass
class _State:
  """The loop's carry.

  Attributes:
    step: int32[] ids chosen.
    cache: keys and values of all rows.
    token: int32[B] the newest id.
    finished: bool[B].
    ids: int32[B, max_new].
    scores: float32[B, max_new].
  """

  step: jax.Array
  cache: KVCache
  token: jax.Array
  finished: jax.Array
  ids: jax.Array
  scores: jax.Array


def bucket(length: int) -> int:
  """The padded length of a prompt."""
  return max(-(-length // BUCKET), 1) * BUCKET


def generate(
  model: llama.Llama,
  params: Any,
  inputs: jax.Array,
  segment_ids: jax.Array,
  positions: jax.Array,
  vocabulary: Vocabulary,
  settings: Settings,
  keys: jax.Array,
  unconditional: jax.Array | None = None,
) -> Generated:
  """Continues prompts.

  Args:
    model: the language model.
    params: its parameters.
    inputs: float[B, T, D] prompt vectors, left padded.
    segment_ids: int32[B, T] 1, and 0 on padding.
    positions: int32[B, T], counted from 0 at the first true token.
    vocabulary: the joint vocabulary.
    settings: how to choose.
    keys: one random key per sequence, key[B]; greedy decoding ignores them.
    unconditional: float[U, D] vectors of the unconditional prompt, for guidance.

  Returns:
    The new ids.
  """
  if settings.guidance != 1 and unconditional is None:
    raise ValueError(
      f"guidance {settings.guidance} needs an unconditional prompt, got none; pass the"
      " vector of [IMG], or guidance 1"
    )
  missing = bucket(inputs.shape[1]) - inputs.shape[1]
  pad = lambda x: jnp.pad(x, ((0, 0), (missing, 0)))
  return _generate(
    model,
    params,
    jnp.pad(inputs, ((0, 0), (missing, 0), (0, 0))),
    pad(segment_ids),
    pad(positions),
    vocabulary,
    settings,
    keys,
    None if settings.guidance == 1 else unconditional,
  )


@functools.partial(jax.jit, static_argnames=("model", "vocabulary", "settings"))
def _generate(
  model, params, inputs, segment_ids, positions, vocabulary, settings, keys, free
):
  batch, length = segment_ids.shape
  if free is not None:
    inputs, segment_ids, positions = _with_unconditional(
      inputs, segment_ids, positions, free
    )
  allowed = jnp.asarray(processors.ALLOWED[settings.allowed](vocabulary))
  first = segment_ids.sum(axis=1, dtype=jnp.int32)  # position of the first new id
  ones = jnp.ones_like(segment_ids[:, :1])

  def choose(state, logits):
    streams = (logits, None) if free is None else (logits[:batch], logits[batch:])
    scores = processors.process(*streams, state.step, allowed, settings)
    return _append(state, scores, keys, settings)

  def advance(state):
    token = jnp.tile(state.token, len(first) // batch)[:, None]
    place = (first + state.step - 1)[:, None]
    arguments = (token, place, ones, state.cache)
    logits, cache = model.apply({"params": params}, *arguments, method=_feed)
    return choose(state.replace(cache=cache), logits)

  def is_open(state):
    return (state.step < settings.max_new) & ~state.finished.all()

  cache = model.empty_cache(len(first), length + settings.max_new)
  logits, cache = model.apply(
    {"params": params}, inputs, positions, segment_ids, cache, method=_prefill
  )
  shape = (batch, settings.max_new)
  start = _State(
    step=jnp.zeros((), jnp.int32),
    cache=cache,
    token=jnp.zeros(batch, jnp.int32),
    finished=jnp.zeros(batch, bool),
    ids=jnp.full(shape, PAD, jnp.int32),
    scores=jnp.zeros(shape, jnp.float32),
  )
  state = jax.lax.while_loop(is_open, advance, choose(start, logits))
  ended = state.ids == settings.end
  lengths = jnp.where(ended.any(1), jnp.argmax(ended, 1), settings.max_new)
  return Generated(state.ids, lengths.astype(jnp.int32), state.scores)


def _with_unconditional(inputs, segment_ids, positions, free):
  """Appends a row for each prompt that holds the unconditional one, left padded."""
  batch, length, _ = inputs.shape
  size = free.shape[0]
  left = lambda x: jnp.pad(x, ((length - size, 0),) + ((0, 0),) * (x.ndim - 1))
  rows = lambda x: jnp.broadcast_to(x, (batch, *x.shape))
  free_inputs = rows(left(free.astype(inputs.dtype)))
  free_segments = rows(left(jnp.ones(size, segment_ids.dtype)))
  free_positions = rows(left(jnp.arange(size, dtype=positions.dtype)))
  join = lambda a, b: jnp.concatenate([a, b])
  return (
    join(inputs, free_inputs),
    join(segment_ids, free_segments),
    join(positions, free_positions),
  )


def _prefill(module, inputs, positions, segment_ids, cache):
  """Logits float32[B, V] after the last input, and the filled cache."""
  hidden, cache = module(inputs, positions, segment_ids, cache)
  return module.logits(hidden[:, -1:])[:, 0], cache


def _feed(module, token, positions, segment_ids, cache):
  """As `_prefill` for ids int32[B, 1]."""
  return _prefill(module, module.embed(token), positions, segment_ids, cache)


def _append(state: _State, scores, keys, settings: Settings) -> _State:
  """Chooses an id of each open sequence by its scores float32[B, V]."""
  if settings.temperature:
    draw = lambda key, row: jax.random.categorical(
      jax.random.fold_in(key, state.step), row
    )
    chosen = jax.vmap(draw)(keys, scores)
  else:
    chosen = jnp.argmax(scores, axis=-1)
  log_probs = jax.nn.log_softmax(scores)
  score = jnp.take_along_axis(log_probs, chosen[:, None], axis=1)[:, 0]
  chosen = jnp.where(state.finished, PAD, chosen).astype(jnp.int32)
  score = jnp.where(state.finished, 0.0, score)
  return state.replace(
    step=state.step + 1,
    token=chosen,
    finished=state.finished | (chosen == settings.end),
    ids=state.ids.at[:, state.step].set(chosen),
    scores=state.scores.at[:, state.step].set(score),
  )
