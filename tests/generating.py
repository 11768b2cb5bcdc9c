"""Generation with the golden language model, from ids or from vectors."""

import functools

import golden_llama
import jax
import numpy as np

from lavit_jax.core import sharding
from lavit_jax.generate import engine, serving
from lavit_jax.generate.prompts import Prompt

golden = functools.cache(golden_llama.load)
embed = jax.jit(serving.embed, static_argnums=0)


@functools.cache
def side() -> serving.Serving:
  """The golden model, laid out on one device."""
  model, params, words, _ = golden()
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  return serving.prepare(model, params, words, mesh)


def key_data(seed: int) -> np.ndarray:
  return np.asarray(jax.random.key_data(jax.random.key(seed)))


def from_ids(prompts, how, seeds=None, batch_size: int = 8) -> list[list[engine.Reply]]:
  """Replies to prompts given as lists of ids; `how` is one setting, or one of each."""
  settings = how if isinstance(how, list) else [how] * len(prompts)
  seeds = range(len(prompts)) if seeds is None else seeds
  requests = [
    engine.Request(text(ids), own, key_data(seed))
    for ids, own, seed in zip(prompts, settings, seeds, strict=True)
  ]
  return engine.generate(side(), requests, vectors, batch_size)


def text(ids) -> Prompt:
  return Prompt(np.array(ids, np.int32), np.full(len(ids), -1, np.int32))


def vectors(batch, members):
  return embed(side().model, side().weights, batch.tokens)


def from_vectors(inputs, mask, how) -> list[list[engine.Reply]]:
  """Replies to left-padded prompts float[B, T, D] with mask [B, T]."""
  own = [inputs[i][np.asarray(mask[i]) > 0] for i in range(len(inputs))]

  def place(batch, members):
    rows = np.asarray(vectors(batch, members)).copy()
    for row, i in enumerate(members):
      if i >= 0:
        rows[row, len(rows[row]) - len(own[i]) :] = own[i]
    return rows

  requests = [engine.Request(text([3] * len(rows)), how) for rows in own]
  return engine.generate(side(), requests, place, len(own))


def padded(replies, end: int, width: int) -> np.ndarray:
  """The best reply of each request as the golden files hold it: end, then padding 2."""
  rows = np.full((len(replies), width), 2)
  for row, (best, *_) in zip(rows, replies):
    ids = [*best.ids, end] if best.ended else best.ids
    row[: len(ids)] = ids[:width]
  return rows
