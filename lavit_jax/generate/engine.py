"""Requests in, ids out: groups what may share a program, and keeps programs few.

    requests -> groups of one prompt bucket and beam count -> padded batches -> replies

Prompt lengths, numbers of rows and of new ids are rounded up to a few sizes, so that a
program serves many; everything else about a request is data. A reply does not depend
on the batch it was made in, but for the rounding of its sums.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax.core import sharding
from lavit_jax.generate import beam, decode
from lavit_jax.generate import logits as processors
from lavit_jax.generate.beam import Beams
from lavit_jax.generate.logits import Settings
from lavit_jax.generate.prompts import Prompt, PromptBatch, left_padded
from lavit_jax.generate.serving import Serving

LEAST_PROMPT, LEAST_NEW, LEAST_CANDIDATES = 32, 8, 16
CONTEXT = 2048  # positions that LLaMA was trained on; LLaMA-2 saw twice as many
STREAM_STEPS = 4  # ids between two looks at a stream


@dataclasses.dataclass(frozen=True)
class Request:
  """One sequence to make.

  Attributes:
    prompt: ids and patches.
    how: sampled or greedy, or searched.
    key: uint32[...] data of its random key; None when nothing is drawn.
  """

  prompt: Prompt
  how: Settings | Beams
  key: np.ndarray | None = None

  def __post_init__(self):
    length = len(self.prompt) + self.settings.max_new
    if length > CONTEXT:
      raise ValueError(
        f"expected a prompt and at most {self.settings.max_new} new ids within"
        f" {CONTEXT} positions, got a prompt of {len(self.prompt)}; shorten the text"
      )

  @property
  def settings(self) -> Settings:
    """What may be chosen, and how long."""
    return self.how.settings if isinstance(self.how, Beams) else self.how

  @property
  def beams(self) -> int:
    """Q of a search; 0 without one."""
    return self.how.count if isinstance(self.how, Beams) else 0


@dataclasses.dataclass(frozen=True)
class Reply:
  """What a request became; a search gives one per beam, the best first.

  Attributes:
    ids: int32[n] new ids without the end.
    score: sum of the log-probabilities of what was chosen, over length^penalty in a
      search.
    ended: whether the end was chosen, else the ids were cut.
  """

  ids: np.ndarray
  score: float
  ended: bool


# Vectors float[P, T, D] of a padded batch, given the requests of its rows.
Vectors = Callable[[PromptBatch, Sequence[int]], jax.Array]


def bucket(number: int, least: int, steps: int = 2) -> int:
  """The smallest size no less than both; from one power of two to the next: `steps`.

  With two steps the sizes are 2, 3, 4, 6, 8, 12, ...
  """
  number = max(number, least)
  half = (1 << (number - 1).bit_length()) // 2
  step = max(half // steps, 1)
  return half + -(-(number - half) // step) * step


def padded_length(batch: Sequence[Request]) -> int:
  """What prompts of a batch are padded to; reading costs by length: fine steps."""
  return bucket(max(len(request.prompt) for request in batch), LEAST_PROMPT, 4)


def groups(
  requests: Sequence[Request], batch_size: int
) -> Iterator[tuple[int, list[int]]]:
  """Batches of requests that share a program: padded length, and members.

  Batches are full before they are snug: a step of 16 rows costs little more than one
  of 8. Guided requests come first in a batch, for their unconditional streams.
  """
  kinds: dict[tuple[int, int], list[int]] = {}
  for i, request in enumerate(requests):
    kind = (bucket(len(request.prompt), LEAST_PROMPT), request.beams)
    kinds.setdefault(kind, []).append(i)
  for _, members in sorted(kinds.items()):
    members = sorted(members, key=lambda i: requests[i].settings.guidance == 1)
    for first in range(0, len(members), batch_size):
      chosen = members[first : first + batch_size]
      yield padded_length([requests[i] for i in chosen]), chosen


def generate(
  side: Serving,
  requests: Sequence[Request],
  vectors: Vectors,
  batch_size: int,
) -> list[list[Reply]]:
  """Replies of each request: one, or the beams of a search.

  Args:
    side: the model; call inside `jax.set_mesh` of its mesh.
    requests: any mixture.
    vectors: makes the vectors of prompts.
    batch_size: most requests per batch.
  """
  replies: list[list[Reply]] = [[] for _ in requests]
  for length, members in groups(requests, batch_size):
    batch = [requests[i] for i in members]
    run = _search if batch[0].beams else _sample
    for i, reply in zip(members, run(side, batch, members, vectors, length)):
      replies[i] = reply
  return replies


def stream(side: Serving, request: Request, vectors: Vectors) -> Iterator[np.ndarray]:
  """The ids int32[n] of one sampled or greedy request so far, again and again."""
  if request.beams:
    raise ValueError("a search has no text before its end; ask without beams")
  length = padded_length([request])
  state, rows, keys, shape = _start(side, [request], [0], vectors, length)
  while True:
    yield _replies(state, [request])[0][0].ids
    if bool(np.asarray(state.finished)[0]):
      return
    limit = jnp.int32(int(state.step) + STREAM_STEPS)
    state = decode.advance(side, state, rows, keys, limit, shape)


def _sample(side, batch: list[Request], members, vectors: Vectors, length: int):
  state, rows, keys, shape = _start(side, batch, members, vectors, length)
  limit = jnp.int32(max(request.settings.max_new for request in batch))
  state = decode.advance(side, state, rows, keys, limit, shape)
  return _replies(state, batch)


def _start(side, batch: list[Request], members, vectors: Vectors, length: int):
  settings = [request.settings for request in batch]
  guided = sum(own.guidance != 1 for own in settings)
  total = _rows(len(batch))
  guided = min(_rows(guided), total) if guided else 0
  order = [*range(len(batch)), *[len(batch) - 1] * (total - len(batch))]
  asked = [*(batch[i].prompt for i in order), *[_nothing(side)] * guided]
  prompts = _prompts(
    side, asked, [members[i] for i in order] + [-1] * guided, vectors, length
  )
  rows = processors.rows([settings[i] for i in order])
  keys = jax.random.wrap_key_data(
    np.stack([_key_data(batch[i]) for i in order]), impl="threefry2x32"
  )
  shape = shape_of(settings, guided, side.vocabulary.padded_size)
  return decode.start(side, prompts, rows, keys, shape), rows, keys, shape


def shape_of(settings: Sequence[Settings], guided: int, size: int) -> decode.Shape:
  """What the program of a batch is compiled for.

  Args:
    settings: of its requests.
    guided: rows with an unconditional stream.
    size: V, padded ids.
  """
  return decode.Shape(
    max_new=bucket(max(own.max_new for own in settings), LEAST_NEW),
    guided=guided,
    candidates=_candidates(settings, size),
    penalized=any(own.repetition_penalty != 1 for own in settings),
  )


def _search(side, batch: list[Request], members, vectors: Vectors, length: int):
  order = [*range(len(batch)), *[len(batch) - 1] * (_rows(len(batch)) - len(batch))]
  asked = [batch[i].prompt for i in order]
  prompts = _prompts(side, asked, [members[i] for i in order], vectors, length)
  rows = beam.beam_rows([batch[i].how for i in order])
  settings = [request.settings for request in batch]
  shape = beam.Shape(
    max_new=bucket(max(own.max_new for own in settings), LEAST_NEW),
    count=batch[0].beams,
    penalized=any(own.repetition_penalty != 1 for own in settings),
  )
  state = beam.start(side, prompts, rows, shape)
  found = beam.advance(side, state, rows, shape).bank
  ids, lengths = np.asarray(found.ids), np.asarray(found.lengths)
  scores, steps = np.asarray(found.scores), [own.max_new for own in settings]
  pick = lambda i, q: Reply(
    ids[i, q, : lengths[i, q]], float(scores[i, q]), bool(lengths[i, q] < steps[i])
  )
  return [[pick(i, q) for q in range(shape.count)] for i in range(len(batch))]


def _replies(state: decode.State, batch: list[Request]) -> list[list[Reply]]:
  ids, scores = np.asarray(state.ids), np.asarray(state.scores)
  replies = []
  for own, score, request in zip(ids, scores, batch):
    settings = request.settings
    length = min(int(state.step), settings.max_new)
    ends = np.flatnonzero(own[:length] == settings.end)
    length = int(ends[0]) if len(ends) else length
    replies.append([Reply(own[:length], float(score.sum()), len(ends) > 0)])
  return replies


def _prompts(side, asked, members, vectors: Vectors, length: int) -> decode.Prompts:
  batch = left_padded(asked, length, side.vocabulary.pad)
  inputs = vectors(batch, members)
  return decode.Prompts(inputs, batch.segment_ids, batch.positions)


def _nothing(side: Serving) -> Prompt:
  """The unconditional prompt: the mark that starts an image, at position 0."""
  return Prompt(np.array([side.vocabulary.image_start], np.int32), np.array([-1]))


def _rows(count: int) -> int:
  """Rows of a batch: a power of two that the mesh divides."""
  step = sharding.axis_size("act_batch")
  return step << (-(-count // step) - 1).bit_length()


def _candidates(settings: Sequence[Settings], size: int) -> int:
  drawn = [own.top_k or size for own in settings if own.temperature]
  return min(bucket(max(drawn), LEAST_CANDIDATES), size) if drawn else 1


def _key_data(request: Request) -> np.ndarray:
  return np.zeros(2, np.uint32) if request.key is None else request.key
