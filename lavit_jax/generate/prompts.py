"""Prompts on the host: ids and image patches of a request, left padded in a batch.

understanding   [IMG] v1..vT [/IMG] prompt
drawing         prompt [IMG]

There is no begin mark (reference facts, section 7). Padding (the end id in LLaMA) has
segment 0 and stands all of it on the left, as in the reference's question answering.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from lavit_jax.core.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One request.

  Attributes:
    tokens: int32[n] ids; a code's place holds code ids or anything.
    patches: int32[n] the patch whose feature replaces the token's vector, or -1.
  """

  tokens: np.ndarray
  patches: np.ndarray

  def __len__(self) -> int:
    return len(self.tokens)


@dataclasses.dataclass(frozen=True)
class PromptBatch:
  """Prompts side by side.

  Attributes:
    tokens: int32[B, T].
    segment_ids: int32[B, T] 1, and 0 on padding.
    positions: int32[B, T] from 0 at the first true token.
    feature_index: int32[B, T] patch of each token, or -1.
  """

  tokens: np.ndarray
  segment_ids: np.ndarray
  positions: np.ndarray
  feature_index: np.ndarray


def understanding(
  keep: np.ndarray, text_ids: Sequence[int], vocabulary: Vocabulary
) -> Prompt:
  """An image's kept patches (bool[P]) in their marks, then text ids."""
  kept = np.flatnonzero(keep)
  code = vocabulary.code_start  # replaced by the feature
  tokens = [vocabulary.image_start, *[code] * len(kept), vocabulary.image_end]
  patches = np.full(len(tokens) + len(text_ids), -1, np.int32)
  patches[1 : 1 + len(kept)] = kept
  return Prompt(np.array([*tokens, *text_ids], np.int32), patches)


def drawing(text_ids: Sequence[int], vocabulary: Vocabulary) -> Prompt:
  """Text ids, then the mark that starts an image."""
  tokens = np.array([*text_ids, vocabulary.image_start], np.int32)
  return Prompt(tokens, np.full(len(tokens), -1, np.int32))


def left_padded(prompts: Sequence[Prompt], length: int, pad: int) -> PromptBatch:
  """Lays prompts of at most `length` tokens side by side, `pad` on their left."""
  longest = max(map(len, prompts))
  if longest > length:
    raise ValueError(
      f"expected prompts of at most {length} tokens, got {longest}; shorten the text"
    )
  shape = (len(prompts), length)
  tokens, patches = np.full(shape, pad, np.int32), np.full(shape, -1, np.int32)
  segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
  for row, prompt in enumerate(prompts):
    used = slice(length - len(prompt), length)
    tokens[row, used], patches[row, used] = prompt.tokens, prompt.patches
    segments[row, used], positions[row, used] = 1, np.arange(len(prompt))
  return PromptBatch(tokens, segments, positions, patches)
