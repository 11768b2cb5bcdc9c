"""What the tasks ask of the decoder: the reference's settings as defaults.

Facts: reference sections 7, 8 and 10. Two things differ on purpose: drawing may choose
codes and [/IMG] only, where the reference also lets some text ids pass that it drops
later; and a drawing of a prompt with pictures may be as long as any other, where the
reference overwrites its length by that of the prompt.
"""

import zlib
from collections.abc import Sequence

import jax
import numpy as np

from lavit_jax.core.vocabulary import END, Vocabulary
from lavit_jax.generate.beam import Beams
from lavit_jax.generate.logits import Settings


def caption(
  beams: int = 2,
  max_new: int = 36,
  min_new: int = 8,
  length_penalty: float = 1.0,
  repetition_penalty: float = 1.0,
) -> Settings | Beams:
  """A description; one beam is greedy."""
  settings = _text(max_new, min_new, repetition_penalty)
  return settings if beams == 1 else Beams(settings, beams, length_penalty)


def answer(
  beams: int = 5,
  max_new: int = 10,
  min_new: int = 2,
  length_penalty: float = 0.0,
  repetition_penalty: float = 1.0,
) -> Settings | Beams:
  """A short answer; the search stops as soon as it has enough; one beam is greedy."""
  settings = _text(max_new, min_new, repetition_penalty)
  if beams == 1:
    return settings
  return Beams(settings, beams, length_penalty, early_stopping=True)


def _text(max_new: int, min_new: int, repetition_penalty: float) -> Settings:
  return Settings(
    end=END,
    allowed="text",
    max_new=max_new,
    min_new=min_new,
    repetition_penalty=repetition_penalty,
  )


def drawing(
  vocabulary: Vocabulary,
  max_new: int,
  min_new: int = 1,
  guidance: float = 4.0,
  temperature: float = 1.0,
  top_k: int = 50,
  top_p: float = 1.0,
) -> Settings:
  """The codes of a picture, at most `max_new` with the end.

  Args:
    vocabulary: the joint vocabulary.
    max_new: P of the visual tokenizer, or fewer.
    min_new: codes at least.
    guidance: weight of the prompt; 1 is none.
    temperature: of sampling; 0 takes the likeliest code.
    top_k: codes to sample from, 0 for all.
    top_p: probability of the codes to sample from.
  """
  return Settings(
    end=vocabulary.image_end,
    allowed="codes",
    max_new=max_new,
    min_new=min_new,
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
    guidance=guidance,
  )


def reference_drawing(
  vocabulary: Vocabulary,
  max_new: int = 200,
  min_new: int = 20,
  guidance: float = 4.0,
  temperature: float = 1.0,
  top_k: int = 50,
  top_p: float = 1.0,
) -> Settings:
  """As the reference draws, with its lengths; `codes_of` drops what is no code."""
  return Settings(
    end=vocabulary.image_end,
    allowed="reference",
    max_new=max_new,
    min_new=min_new,
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
    guidance=guidance,
  )


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


# Greedy, for the short texts of the toy world.
PLAIN_CAPTION = caption(beams=1, max_new=64, min_new=0)
PLAIN_ANSWER = answer(beams=1, max_new=16, min_new=0)
