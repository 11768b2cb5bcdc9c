"""What the tasks make of new ids: captions, answers and codes, and keys to sample them.

Facts: reference sections 7, 8 and 10; how ids are chosen is `generate.decoding`.
"""

import zlib
from collections.abc import Sequence

import jax
import numpy as np

from lavit_jax.core.vocabulary import Vocabulary


def codes_of(ids: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
  """The codes among new ids."""
  ids = np.asarray(ids)
  return ids[vocabulary.is_code(ids)] - vocabulary.code_start


def drawing_keys(seed: int, prompts: Sequence[Sequence[int]], n: int) -> np.ndarray:
  """Key data uint32[len(prompts), n, 2]: each of seed, prompt ids and number alone."""
  names = [zlib.crc32(np.asarray(own, np.int32).tobytes()) for own in prompts]
  every = np.repeat(np.array(names, np.uint32), n)
  keys = fold_keys(jax.random.key(seed), every, np.tile(np.arange(n), len(names)))
  return np.asarray(jax.random.key_data(keys)).reshape(len(names), n, 2)


@jax.jit
def fold_keys(key: jax.Array, names: jax.Array, numbers: jax.Array) -> jax.Array:
  """One key per drawing, key[B], from its name and number uint32[B] alone."""
  own = lambda name, number: jax.random.fold_in(jax.random.fold_in(key, name), number)
  return jax.vmap(own)(names, numbers)


def cut_caption(text: str) -> str:
  """A caption is what stands before the first period."""
  return text.strip().split(".")[0]


def cut_answer(text: str) -> str:
  """An answer is what stands before a line end, another question, a comma or period."""
  text = text.strip()
  for mark in ("\n", "question:", "Long answer:", ",", "."):
    text = text.split(mark)[0]
  return text.strip()
