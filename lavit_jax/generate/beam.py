"""Beam search as one compiled loop over a cache that is never reordered.

    left-padded prompts f[P, T, D] -> start -> advance: feed Q beams, take the 2 Q best
    continuations, keep Q open ones, bank ended ones -> finish -> ids [P, Q, M]

All beams of a prompt read the prompt's slots, and each other's: step n writes Q slots,
and a beam sees those of its ancestors by its mask. The rules are those of transformers
(reference facts, section 7): a sequence that ends among the Q best continuations is
banked with its sum of log-probabilities / length^penalty, the end counted in its
length; what is open at the last step is banked at its length + `length_offset`.
"""

import dataclasses
import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax.generate import logits as processors
from lavit_jax.generate import serving
from lavit_jax.generate.decode import Prompts
from lavit_jax.generate.logits import Rows, Settings
from lavit_jax.generate.serving import Cache, Serving

MAX_BEAMS = 32  # each sees the slots of all others
NEVER = -1e9  # score of the beams that do not exist at the first step


@dataclasses.dataclass(frozen=True)
class Beams:
  """How one request is searched.

  Attributes:
    settings: what may be chosen, and how long; sampling and guidance must be off.
    count: Q beams.
    length_penalty: power of the length that divides a score; 0 leaves the sum.
    early_stopping: stops at Q banked sequences, else when none can become better.
    length_offset: added to the length of open sequences: 1 in the reference, whose
      transformers counts a dummy first id; 0 in today's transformers.
    today: the stopping rules of today's transformers: what can still come is judged by
      the best open sequence (in the reference by the best continuation, ended or not),
      and open sequences are banked at the last step also when that step stops.
  """

  settings: Settings
  count: int
  length_penalty: float = 1.0
  early_stopping: bool = False
  length_offset: int = 1
  today: bool = False

  def __post_init__(self):
    processors.check(
      count=(self.count, 1 <= self.count <= MAX_BEAMS, f"in [1, {MAX_BEAMS}]"),
      length_penalty=(
        self.length_penalty,
        bool(np.isfinite(self.length_penalty)),
        "a finite number",
      ),
      temperature=(
        self.settings.temperature,
        self.settings.temperature == 0,
        "0 in beam search",
      ),
      guidance=(
        self.settings.guidance,
        self.settings.guidance == 1,
        "1 in beam search",
      ),
    )


@flax.struct.dataclass
class BeamRows:
  """Settings of a batch.

  Attributes:
    rows: of each prompt.
    length_penalty: float32[P].
    early_stopping: bool[P].
    length_offset: int32[P].
    today: bool[P].
  """

  rows: Rows
  length_penalty: jax.Array
  early_stopping: jax.Array
  length_offset: jax.Array
  today: jax.Array


def beam_rows(asked: Sequence[Beams]) -> BeamRows:
  """Settings side by side, on the host."""
  column = lambda name, dtype: np.array([getattr(b, name) for b in asked], dtype)
  return BeamRows(
    rows=processors.rows([b.settings for b in asked]),
    length_penalty=column("length_penalty", np.float32),
    early_stopping=column("early_stopping", bool),
    length_offset=column("length_offset", np.int32),
    today=column("today", bool),
  )


@dataclasses.dataclass(frozen=True)
class Shape:
  """What a program is compiled for: M ids at most, Q beams, penalties or none."""

  max_new: int
  count: int
  penalized: bool = False


@flax.struct.dataclass
class Bank:
  """Finished sequences, the best first.

  Attributes:
    scores: float32[P, Q] sums over length^penalty, -inf where there is none.
    ids: int32[P, Q, M] with the end, then the pad id.
    lengths: int32[P, Q] ids before the end.
  """

  scores: jax.Array
  ids: jax.Array
  lengths: jax.Array


@flax.struct.dataclass
class State:
  """The search so far.

  Attributes:
    step: int32[] ids chosen.
    cache: keys and values, T + Q M slots of each prompt.
    visible: bool[P, Q, T + Q M] slots that each beam sees.
    first: int32[P] position of the first new id.
    ids: int32[P, Q, M] of the open sequences.
    sums: float32[P, Q] their sums of log-probabilities.
    done: bool[P].
    bank: finished sequences.
  """

  step: jax.Array
  cache: Cache
  visible: jax.Array
  first: jax.Array
  ids: jax.Array
  sums: jax.Array
  done: jax.Array
  bank: Bank


@functools.partial(jax.jit, static_argnames="shape")
def start(side: Serving, prompts: Prompts, asked: BeamRows, shape: Shape) -> State:
  """Reads prompts and chooses the first ids of all beams."""
  count, slots = shape.count, shape.count * shape.max_new
  row = (prompts.inputs, prompts.segment_ids, prompts.positions)
  logits, cache = serving.prefill(side.model, side.weights, *row, slots)
  batch, width = logits.shape
  visible = jnp.pad(prompts.segment_ids > 0, ((0, 0), (0, slots)))
  grid = (batch, count, shape.max_new)
  beams = lambda x: jnp.broadcast_to(x[:, None], (batch, count, *x.shape[1:]))
  empty = Bank(
    scores=jnp.full((batch, count), -jnp.inf),
    ids=jnp.full(grid, side.vocabulary.pad, jnp.int32),
    lengths=jnp.zeros((batch, count), jnp.int32),
  )
  state = State(
    step=jnp.zeros((), jnp.int32),
    cache=cache,
    visible=beams(visible),
    first=prompts.segment_ids.sum(axis=1, dtype=jnp.int32),
    ids=jnp.full(grid, side.vocabulary.pad, jnp.int32),
    sums=jnp.where(jnp.arange(count) == 0, 0.0, NEVER) * jnp.ones((batch, 1)),
    done=jnp.zeros(batch, bool),
    bank=empty,
  )
  return _choose(side, state, beams(logits), asked, shape)


@functools.partial(jax.jit, static_argnames="shape", donate_argnames="state")
def advance(side: Serving, state: State, asked: BeamRows, shape: Shape) -> State:
  """Searches on until every prompt is done."""

  def feed(state):
    count, last = shape.count, state.step - 1
    length = state.visible.shape[2] - count * shape.max_new
    slot = length + last * count
    own = jnp.arange(state.visible.shape[2]) == slot + jnp.arange(count)[:, None]
    visible = state.visible | own
    token = jax.lax.dynamic_index_in_dim(state.ids, last, 2, keepdims=False)
    place = jnp.broadcast_to((state.first + last)[:, None], token.shape)
    row = (state.cache, token, place, visible, slot)
    logits, cache = serving.extend(side.model, side.weights, *row)
    state = state.replace(cache=cache, visible=visible)
    return _choose(side, state, logits, asked, shape)

  return jax.lax.while_loop(lambda state: ~state.done.all(), feed, state)


def _choose(side, state: State, logits, asked: BeamRows, shape: Shape) -> State:
  """One step of the rules, given the logits float32[P, Q, V] of all beams."""
  batch, count, width = logits.shape
  sums = state.sums[..., None] + _log_probs(side, state, logits, asked, shape)
  top, index = _continuations(sums, 2 * count)
  parent, token = index // width, (index % width).astype(jnp.int32)
  pick = lambda x, at: jnp.take_along_axis(
    x, at.reshape(*at.shape, *[1] * (x.ndim - 2)), 1
  )
  ids = pick(state.ids, parent).at[:, :, state.step].set(token)
  length, done = state.step + 1, state.done

  ended = token == asked.rows.end[:, None]
  banked = ended & (jnp.arange(2 * count) < count) & ~done[:, None]
  divide = lambda x, n: x / jnp.maximum(n, 1) ** asked.length_penalty[:, None]
  value = jnp.where(banked, divide(top, length.astype(jnp.float32)), -jnp.inf)
  bank = _deposit(state.bank, value, ids, jnp.full_like(token, state.step))

  opened = jnp.argsort(ended, axis=1, stable=True)[:, :count]
  open_sums = jnp.take_along_axis(top, opened, axis=1)
  counted = (length + asked.length_offset[:, None]).astype(jnp.float32)
  last = (length >= asked.rows.max_new) & ~done
  value = jnp.where(last[:, None], divide(open_sums, counted), -jnp.inf)

  best = jnp.where(asked.today, open_sums[:, 0], top[:, 0])[:, None]
  full, hopeless = _is_full(bank), divide(best, counted)[:, 0] <= bank.scores[:, -1]
  stop = full & (asked.early_stopping | hopeless)
  value = jnp.where((stop & ~asked.today)[:, None], -jnp.inf, value)
  bank = _deposit(bank, value, pick(ids, opened), jnp.full((batch, count), length))

  return state.replace(
    step=length,
    visible=pick(state.visible, jnp.take_along_axis(parent, opened, axis=1)),
    ids=pick(ids, opened),
    sums=open_sums,
    done=done | stop | last,
    bank=bank,
  )


def _is_full(bank: Bank) -> jax.Array:
  return jnp.isfinite(bank.scores).all(axis=1)


def _log_probs(side, state: State, logits, asked: BeamRows, shape: Shape):
  """Processed, not normalized again: float32[P, Q, V]."""
  batch, count, width = logits.shape
  flat = jax.nn.log_softmax(logits).reshape(batch * count, width)
  rows = jax.tree.map(lambda x: jnp.repeat(x, count), asked.rows)
  chosen = None
  if shape.penalized:
    ids = state.ids.reshape(batch * count, -1)
    ids = jnp.where(jnp.arange(shape.max_new) < state.step, ids, width)
    put = lambda row: jnp.zeros(width, bool).at[row].set(True, mode="drop")
    chosen = jax.vmap(put)(ids)
  row = (flat, None, chosen, state.step, side.vocabulary, rows)
  return processors.score(*row).reshape(batch, count, width)


def _continuations(sums: jax.Array, number: int):
  """The best of float32[P, Q, V]: values and indices into Q V, the best first."""
  best, ids = jax.lax.top_k(sums, min(number, sums.shape[2]))  # of each beam
  beam = jnp.arange(sums.shape[1])[:, None] * sums.shape[2]
  flat = lambda x: x.reshape(len(sums), -1)
  top, at = jax.lax.top_k(flat(best), number)
  return top, jnp.take_along_axis(flat(ids + beam), at, axis=1)


def _deposit(bank: Bank, scores, ids, lengths) -> Bank:
  """Keeps the best of the bank and new sequences (-inf where there is none)."""
  join = lambda a, b: jnp.concatenate([a, b], axis=1)
  best, at = jax.lax.top_k(join(bank.scores, scores), bank.scores.shape[1])
  take = lambda a, b: jnp.take_along_axis(join(a, b), at, axis=1)
  ids = jnp.take_along_axis(join(bank.ids, ids), at[..., None], axis=1)
  return Bank(best, ids, take(bank.lengths, lengths))
