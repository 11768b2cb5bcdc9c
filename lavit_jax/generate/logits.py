"""What happens to logits between the model and the choice of an id.

    logits f32[B, V] -> guidance -> minimum length -> allowed ids -> temperature
    -> top-k -> top-p -> argmax or sample

The order is that of transformers 4.33, which the reference runs (reference facts,
section 8). Removed ids are -inf.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a sequence is continued; hashable, one compiled program for each.

  Attributes:
    end: id that ends a sequence.
    allowed: which ids may be chosen, a key of `ALLOWED`.
    max_new: most ids to choose, the end included.
    min_new: the end is not chosen among this many first ids.
    temperature: divides the logits of sampling; 0 is greedy.
    top_k: ids kept for sampling; 0 keeps all.
    top_p: probability kept for sampling; 1 keeps all.
    guidance: weight of the prompt against the unconditional stream; 1 is no guidance.
  """

  end: int
  allowed: str
  max_new: int
  min_new: int = 0
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  guidance: float = 1.0

  def __post_init__(self):
    if self.allowed not in ALLOWED:
      raise ValueError(f"allowed {self.allowed!r} is not one of {sorted(ALLOWED)}")
    checks = {
      "max_new": (self.max_new >= 1, "at least 1"),
      "min_new": (0 <= self.min_new < self.max_new, f"in [0, {self.max_new})"),
      "temperature": (self.temperature >= 0, "0 (greedy) or more"),
      "top_k": (self.top_k >= 0, "0 (all ids) or more"),
      "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
    }
    for name, (good, expected) in checks.items():
      if not good:
        raise ValueError(f"{name} must be {expected}, got {getattr(self, name)}")


def text_ids(vocabulary: Vocabulary) -> np.ndarray:
  """bool[V] for writing: text only."""
  return np.arange(vocabulary.padded_size) < vocabulary.text_size


def drawing_ids(vocabulary: Vocabulary) -> np.ndarray:
  """bool[V] for drawing: codes and [/IMG]."""
  ids = np.arange(vocabulary.padded_size)
  return vocabulary.is_code(ids) | (ids == vocabulary.image_end)


def reference_drawing_ids(vocabulary: Vocabulary) -> np.ndarray:
  """bool[V] as the reference draws: it forbids only the text ids from 3 on."""
  ids = np.arange(vocabulary.padded_size)
  return (ids < vocabulary.size) & ((ids < 3) | (ids >= vocabulary.text_size))


ALLOWED = {
  "text": text_ids,
  "codes": drawing_ids,
  "reference": reference_drawing_ids,
}


def guide(logits: jax.Array, unconditional: jax.Array, scale: float) -> jax.Array:
  """Moves log-probabilities away from the unconditional ones.

  Args:
    logits: float32[B, V] given the prompt.
    unconditional: float32[B, V] without it.
    scale: 1 gives the prompt's own log-probabilities.

  Returns:
    float32[B, V] u + scale (c - u) of the log-softmaxes; -inf where either is.
  """
  prompted = jax.nn.log_softmax(logits)
  free = jax.nn.log_softmax(unconditional)
  known = jnp.isfinite(prompted) & jnp.isfinite(free)  # -inf - -inf is no number
  prompted, free = jnp.where(known, prompted, 0), jnp.where(known, free, 0)
  return jnp.where(known, free + scale * (prompted - free), -jnp.inf)


def delay_end(logits: jax.Array, step: jax.Array, end: int, min_new: int) -> jax.Array:
  """Forbids `end` in float32[B, V] at the first `min_new` steps (`step` from 0)."""
  forbidden = (jnp.arange(logits.shape[-1]) == end) & (step < min_new)
  return jnp.where(forbidden, -jnp.inf, logits)


def only(logits: jax.Array, allowed: jax.Array) -> jax.Array:
  """Keeps the ids of bool[V] in float32[B, V]."""
  return jnp.where(allowed, logits, -jnp.inf)


def keep_top_k(logits: jax.Array, k: int) -> jax.Array:
  """Keeps the k largest of float32[B, V], and all that equal the k-th."""
  k = min(k, logits.shape[-1])
  lowest = jax.lax.top_k(logits, k)[0][..., -1:]
  return jnp.where(logits < lowest, -jnp.inf, logits)


def keep_top_p(logits: jax.Array, p: float) -> jax.Array:
  """Keeps the most probable ids of float32[B, V] that together exceed p.

  An id goes when it and all less probable ones hold at most 1 - p; the most probable
  id stays.
  """
  order = jnp.argsort(logits, axis=-1)  # ascending
  ranked = jnp.take_along_axis(logits, order, axis=-1)
  tail = jnp.cumsum(jax.nn.softmax(ranked, axis=-1), axis=-1)
  removed = (tail <= 1 - p).at[..., -1].set(False)
  rank = jnp.argsort(order, axis=-1)
  return jnp.where(jnp.take_along_axis(removed, rank, axis=-1), -jnp.inf, logits)


def process(
  logits: jax.Array,
  unconditional: jax.Array | None,
  step: jax.Array,
  allowed: jax.Array,
  settings: Settings,
) -> jax.Array:
  """All of the above in their fixed order.

  Args:
    logits: float32[B, V], -inf at padded ids.
    unconditional: float32[B, V] of the second stream; None without guidance.
    step: int32[] ids chosen before this one.
    allowed: bool[V].
    settings: what to apply.

  Returns:
    float32[B, V] scores; their softmax is what sampling draws from.
  """
  if unconditional is not None:
    logits = guide(logits, unconditional, settings.guidance)
  logits = delay_end(logits, step, settings.end, settings.min_new)
  logits = only(logits, allowed)
  if settings.temperature:
    logits = logits / settings.temperature
    if settings.top_k:
      logits = keep_top_k(logits, settings.top_k)
    if settings.top_p < 1:
      logits = keep_top_p(logits, settings.top_p)
  return logits
