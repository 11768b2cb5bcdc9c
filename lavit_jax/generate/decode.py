"""Greedy decoding and sampling: two compiled programs over a donated cache.

    left-padded prompts f[P, T, D] -> start -> first ids and the cache
    -> advance: while a sequence is open and below a limit: feed, choose -> ids [R, M]

The first U of R rows are guided: behind the R prompts stand U unconditional ones, that
are continued with the ids chosen by the first. A sequence draws from its own key, so
that it does not depend on the batch it is in, and settings are arrays: requests of all
kinds share a batch and a program.
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp

from lavit_jax.generate import logits as processors
from lavit_jax.generate import serving
from lavit_jax.generate.logits import Rows
from lavit_jax.generate.serving import Cache, Serving


@dataclasses.dataclass(frozen=True)
class Shape:
  """What a program is compiled for, beside the sizes of its arguments.

  Attributes:
    max_new: M, most ids of any row.
    guided: U, rows with an unconditional stream.
    candidates: ids that sampling ranks; 1 when every row is greedy.
    penalized: whether a row has a repetition penalty.
  """

  max_new: int
  guided: int = 0
  candidates: int = 1
  penalized: bool = False


@flax.struct.dataclass
class Prompts:
  """A left-padded batch; P = R + U.

  Attributes:
    inputs: float[P, T, D] vectors.
    segment_ids: int32[P, T] 1, and 0 on padding.
    positions: int32[P, T] from 0 at the first true token.
  """

  inputs: jax.Array
  segment_ids: jax.Array
  positions: jax.Array


@flax.struct.dataclass
class State:
  """Sequences so far.

  Attributes:
    step: int32[] ids chosen.
    cache: keys and values of all prompts.
    segment_ids: int32[P, T] of the prompts.
    token: int32[R] the newest id.
    finished: bool[R].
    ids: int32[R, M], the pad id after the end.
    scores: float32[R, M] log-probability of each id in what it was chosen from, 0
      after the end.
    chosen: bool[R, V] ids so far; None without penalties.
  """

  step: jax.Array
  cache: Cache
  segment_ids: jax.Array
  token: jax.Array
  finished: jax.Array
  ids: jax.Array
  scores: jax.Array
  chosen: jax.Array | None


@functools.partial(jax.jit, static_argnames="shape")
def start(
  side: Serving, prompts: Prompts, settings: Rows, keys: jax.Array, shape: Shape
) -> State:
  """Reads prompts and chooses the first ids.

  Args:
    side: the model.
    prompts: R prompts, then the unconditional ones of the first U.
    settings: of each of the R rows.
    keys: key[R], one per sequence; greedy rows ignore theirs.
    shape: what this program is for.
  """
  row = (prompts.inputs, prompts.segment_ids, prompts.positions)
  logits, cache = serving.prefill(side.model, side.weights, *row, shape.max_new)
  count = len(settings.end)
  grid = (count, shape.max_new)
  state = State(
    step=jnp.zeros((), jnp.int32),
    cache=cache,
    segment_ids=prompts.segment_ids,
    token=jnp.zeros(count, jnp.int32),
    finished=jnp.zeros(count, bool),
    ids=jnp.full(grid, side.vocabulary.pad, jnp.int32),
    scores=jnp.zeros(grid, jnp.float32),
    chosen=jnp.zeros((count, logits.shape[-1]), bool) if shape.penalized else None,
  )
  return _choose(side, state, logits, settings, keys, shape)


@functools.partial(jax.jit, static_argnames="shape", donate_argnames="state")
def advance(
  side: Serving,
  state: State,
  settings: Rows,
  keys: jax.Array,
  limit: jax.Array,
  shape: Shape,
) -> State:
  """Continues until `limit` (int32[]) ids are chosen or all sequences have ended."""

  def is_open(state):
    return (state.step < limit) & ~state.finished.all()

  def feed(state):
    token = jnp.concatenate([state.token, state.token[: shape.guided]])[:, None]
    length = state.segment_ids.shape[1]
    slot = length + state.step - 1
    later = jnp.broadcast_to(
      jnp.arange(shape.max_new) < state.step, (len(token), shape.max_new)
    )
    mask = jnp.concatenate([state.segment_ids > 0, later], axis=1)[:, None]
    place = (state.segment_ids.sum(axis=1, dtype=jnp.int32) + state.step - 1)[:, None]
    row = (state.cache, token, place, mask, slot)
    logits, cache = serving.extend(side.model, side.weights, *row)
    state = state.replace(cache=cache)
    return _choose(side, state, logits[:, 0], settings, keys, shape)

  return jax.lax.while_loop(is_open, feed, state)


def _choose(side, state: State, logits, settings: Rows, keys, shape: Shape) -> State:
  """Appends an id to each open sequence by its logits float32[P, V]."""
  count = len(state.token)
  free = logits[count:] if shape.guided else None
  scores = processors.score(
    logits[:count], free, state.chosen, state.step, side.vocabulary, settings
  )
  if shape.candidates == 1:
    chosen, score = _best(scores)
  else:
    chosen, score = _draw(scores, state.step, settings, keys, shape.candidates)
  chosen = jnp.where(state.finished, side.vocabulary.pad, chosen).astype(jnp.int32)
  score = jnp.where(state.finished, 0.0, score)
  seen = state.chosen
  if seen is not None:
    seen = seen.at[jnp.arange(count), chosen].set(True)
  step = state.step + 1
  return state.replace(
    step=step,
    token=chosen,
    finished=state.finished | (chosen == settings.end) | (step >= settings.max_new),
    ids=state.ids.at[:, state.step].set(chosen),
    scores=state.scores.at[:, state.step].set(score),
    chosen=seen,
  )


def _best(scores):
  """The likeliest ids and their log-probabilities."""
  chosen = jnp.argmax(scores, axis=-1)
  top = jnp.take_along_axis(scores, chosen[:, None], axis=1)[:, 0]
  return chosen, top - jax.nn.logsumexp(scores, axis=-1)


def _draw(scores, step, settings: Rows, keys, candidates: int):
  """Sampled ids and their log-probabilities; rows of temperature 0 take the best."""
  ranked, ids = processors.warp(scores, candidates, settings)
  draw = lambda key, row: jax.random.categorical(jax.random.fold_in(key, step), row)
  greedy = settings.temperature == 0
  rank = jnp.where(greedy, 0, jax.vmap(draw)(keys, ranked))[:, None]
  take = lambda x: jnp.take_along_axis(x, rank, axis=1)[:, 0]
  best = take(ranked) - jax.nn.logsumexp(scores, axis=-1)
  score = jnp.where(greedy, best, take(jax.nn.log_softmax(ranked)))
  return take(ids), score
