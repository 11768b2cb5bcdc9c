"""What happens to logits between the model and the choice of an id.

    logits f32[B, V] -> guidance -> repetition penalty -> minimum length -> allowed ids
    -> temperature -> top-k -> top-p -> argmax or sample

The order is that of transformers 4.33, which the reference runs (reference facts,
section 8). Removed ids are -inf. A batch mixes requests, so every setting is an array
with a number per row.
"""

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax.core.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Settings:
  """How one request is continued, one id after the other.

  Attributes:
    end: id that ends a sequence.
    allowed: which ids may be chosen, a key of `ALLOWED`.
    max_new: most ids to choose, the end included.
    min_new: the end is not chosen among this many first ids.
    temperature: divides the logits of sampling; 0 is greedy.
    top_k: ids kept for sampling; 0 keeps all.
    top_p: probability kept for sampling; 1 keeps all.
    guidance: weight of the prompt against the unconditional stream; 1 is no guidance.
    repetition_penalty: divides positive logits of ids chosen before, and multiplies
      negative ones; 1 is none.
  """

  end: int
  allowed: str
  max_new: int
  min_new: int = 0
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  guidance: float = 1.0
  repetition_penalty: float = 1.0

  def __post_init__(self):
    if self.allowed not in ALLOWED:
      raise ValueError(
        f"allowed must be one of {sorted(ALLOWED)}, got {self.allowed!r}"
      )
    check(
      max_new=(self.max_new, self.max_new >= 1, "at least 1"),
      min_new=(
        self.min_new,
        0 <= self.min_new < self.max_new,
        f"in [0, {self.max_new})",
      ),
      temperature=(
        self.temperature,
        0 <= self.temperature < np.inf,
        "0 (greedy) or more",
      ),
      top_k=(self.top_k, self.top_k >= 0, "0 (all ids) or more"),
      top_p=(self.top_p, 0 < self.top_p <= 1, "in (0, 1]"),
      guidance=(self.guidance, np.isfinite(self.guidance), "a finite number"),
      repetition_penalty=(
        self.repetition_penalty,
        0 < self.repetition_penalty < np.inf,
        "above 0",
      ),
    )


def check(**fields: tuple[object, bool, str]) -> None:
  """Refuses the first field (value, is it good, what was expected) that is not good."""
  for name, (value, good, expected) in fields.items():
    if not good:
      raise ValueError(f"{name} must be {expected}, got {value}")


@flax.struct.dataclass
class Rows:
  """Settings of a batch.

  Attributes:
    end: int32[B].
    allowed: int32[B] index into `ALLOWED`.
    max_new: int32[B].
    min_new: int32[B].
    temperature: float32[B].
    top_k: int32[B].
    top_p: float32[B].
    guidance: float32[B].
    repetition_penalty: float32[B].
  """

  end: jax.Array
  allowed: jax.Array
  max_new: jax.Array
  min_new: jax.Array
  temperature: jax.Array
  top_k: jax.Array
  top_p: jax.Array
  guidance: jax.Array
  repetition_penalty: jax.Array


def rows(settings: Sequence[Settings]) -> Rows:
  """Settings side by side, on the host."""
  kinds = list(ALLOWED)
  column = lambda name, dtype: np.array([getattr(s, name) for s in settings], dtype)
  whole = {
    name: column(name, np.int32) for name in ("end", "max_new", "min_new", "top_k")
  }
  real = {
    name: column(name, np.float32)
    for name in ("temperature", "top_p", "guidance", "repetition_penalty")
  }
  allowed = np.array([kinds.index(s.allowed) for s in settings], np.int32)
  return Rows(allowed=allowed, **whole, **real)


def text_ids(vocabulary: Vocabulary) -> np.ndarray:
  """bool[V] for writing: text only."""
  return vocabulary.is_text(np.arange(vocabulary.padded_size))


def drawing_ids(vocabulary: Vocabulary) -> np.ndarray:
  """bool[V] for drawing: codes and [/IMG]."""
  ids = np.arange(vocabulary.padded_size)
  return vocabulary.is_code(ids) | (ids == vocabulary.image_end)


def reference_drawing_ids(vocabulary: Vocabulary) -> np.ndarray:
  """bool[V] as the reference draws: it forbids text ids but for LLaMA's marks."""
  ids = np.arange(vocabulary.padded_size)
  marks = np.isin(ids, (0, vocabulary.begin, vocabulary.end))
  return (ids < vocabulary.size) & (marks | (ids >= vocabulary.text_size))


ALLOWED = {
  "text": text_ids,
  "codes": drawing_ids,
  "reference": reference_drawing_ids,
}


def allowed_ids(kinds: jax.Array, vocabulary: Vocabulary) -> jax.Array:
  """bool[B, V] of int32[B] indices into `ALLOWED`."""
  return jnp.asarray(np.stack([ids(vocabulary) for ids in ALLOWED.values()]))[kinds]


def guide(logits: jax.Array, unconditional: jax.Array, scale: jax.Array) -> jax.Array:
  """Moves log-probabilities away from the unconditional ones.

  Args:
    logits: float32[B, V] given the prompt.
    unconditional: float32[B, V] without it.
    scale: float32[B]; 1 gives the prompt's own log-probabilities.

  Returns:
    float32[B, V] u + scale (c - u) of the log-softmaxes; -inf where either is.
  """
  prompted = jax.nn.log_softmax(logits)
  free = jax.nn.log_softmax(unconditional)
  known = jnp.isfinite(prompted) & jnp.isfinite(free)  # -inf - -inf is no number
  prompted, free = jnp.where(known, prompted, 0), jnp.where(known, free, 0)
  guided = free + scale[:, None] * (prompted - free)
  return jnp.where(known, guided, -jnp.inf)


def penalize(logits: jax.Array, chosen: jax.Array, penalty: jax.Array) -> jax.Array:
  """Makes ids of bool[B, V] `chosen` less likely by float32[B] penalties above 1."""
  weight = jnp.where(logits < 0, penalty[:, None], 1 / penalty[:, None])
  return jnp.where(chosen & jnp.isfinite(logits), logits * weight, logits)


def delay_end(
  logits: jax.Array, step: jax.Array, end: jax.Array, min_new: jax.Array
) -> jax.Array:
  """Forbids int32[B] `end` in float32[B, V] at the first int32[B] `min_new` steps."""
  is_end = jnp.arange(logits.shape[-1]) == end[:, None]
  return jnp.where(is_end & (step < min_new)[:, None], -jnp.inf, logits)


def only(logits: jax.Array, allowed: jax.Array) -> jax.Array:
  """Keeps the ids of bool[B, V] in float32[B, V]."""
  return jnp.where(allowed, logits, -jnp.inf)


def keep_top_k(ranked: jax.Array, k: jax.Array) -> jax.Array:
  """Keeps the k largest of float32[B, C] logits in falling order, k int32[B].

  Ids that equal the k-th stay too, as far as they are among the C; k = 0 keeps all.
  """
  last = jnp.clip(jnp.where(k > 0, k, ranked.shape[1]), 1, ranked.shape[1]) - 1
  lowest = jnp.take_along_axis(ranked, last[:, None], axis=1)
  return jnp.where(ranked < lowest, -jnp.inf, ranked)


def keep_top_p(ranked: jax.Array, p: jax.Array) -> jax.Array:
  """Keeps the most probable of float32[B, C] in falling order that exceed p float32[B].

  An id goes when it and all less probable ones hold at most 1 - p; the most probable
  id stays.
  """
  rising = jnp.cumsum(jax.nn.softmax(ranked, axis=-1)[:, ::-1], axis=-1)
  removed = (rising[:, ::-1] <= 1 - p[:, None]).at[:, 0].set(False)
  removed = removed & (p < 1)[:, None]
  return jnp.where(removed, -jnp.inf, ranked)


def score(
  logits: jax.Array,
  unconditional: jax.Array | None,
  chosen: jax.Array | None,
  step: jax.Array,
  vocabulary: Vocabulary,
  settings: Rows,
) -> jax.Array:
  """What greedy decoding chooses by: guidance, penalty, minimum length, allowed ids.

  Args:
    logits: float32[B, V], -inf at padded ids.
    unconditional: float32[U, V] of the second stream of the first U rows, or None.
    chosen: bool[B, V] ids that a row already holds; None when no row penalizes them.
    step: int32[] ids chosen before this one.
    vocabulary: the joint vocabulary.
    settings: of each row.

  Returns:
    float32[B, V] scores.
  """
  if unconditional is not None:
    guided = len(unconditional)
    scale = settings.guidance[:guided]
    moved = guide(logits[:guided], unconditional, scale)
    moved = jnp.where(scale[:, None] == 1, logits[:guided], moved)
    logits = jnp.concatenate([moved, logits[guided:]])
  if chosen is not None:
    logits = penalize(logits, chosen, settings.repetition_penalty)
  logits = delay_end(logits, step, settings.end, settings.min_new)
  return only(logits, allowed_ids(settings.allowed, vocabulary))


def warp(
  scores: jax.Array, candidates: int, settings: Rows
) -> tuple[jax.Array, jax.Array]:
  """What sampling draws from: temperature, top-k and top-p of the likeliest ids.

  Args:
    scores: float32[B, V] of `score`.
    candidates: C, at least the largest top_k; V when a row keeps all ids.
    settings: of each row; a temperature of 0 counts as 1.

  Returns:
    float32[B, C] logits in falling order, their softmax is what is drawn from, and
    int32[B, C] ids.
  """
  ranked, ids = jax.lax.top_k(scores, candidates)
  ranked = (
    ranked / jnp.where(settings.temperature > 0, settings.temperature, 1)[:, None]
  )
  return keep_top_p(keep_top_k(ranked, settings.top_k), settings.top_p), ids
