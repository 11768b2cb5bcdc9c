"""Best of n: draws a prompt several times and keeps the picture that fits it best."""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from lavit_jax.inference import batching, pictures, reranking
from lavit_jax.inference.api import LaVIT

# float[n] of n pictures and n texts, larger where they fit better.
Scorer = Callable[[Sequence[Image.Image], Sequence[str]], np.ndarray]


def scorer_of(model: LaVIT, folder: str = "") -> Scorer:
  """How a contrastive model scores drawings.

  Args:
    model: gives mesh, dtype and batch size.
    folder: model directory with the contrastive model: OpenAI's CLIP as imported by
      `convert`, or one of stage 0; that of the model itself when empty.
  """
  if folder:
    ranker = reranking.load(folder, model.mesh, model.dtype)
  else:
    coder = model.coder
    ranker = reranking.beside(
      model.folder, coder.tower, coder.frozen["vit"], model.mesh
    )

  def score(made, texts):
    ids, lengths = reranking.tokens(ranker, list(texts))
    pixels = pictures.stack(list(made), ranker.tower.image_size)
    run = functools.partial(reranking.cosines, ranker)
    return batching.in_batches(run, model.batch_size, pixels, ids, lengths)

  return score


def keep_best(
  made: Sequence[Image.Image], prompts: Sequence[str], scorer: Scorer
) -> list[tuple[Image.Image, float]]:
  """The best drawing of each prompt, and its score.

  Args:
    made: n drawings of the first prompt, then n of the next (`LaVIT.draw`).
    prompts: their texts.
    scorer: `scorer_of`.
  """
  n = len(made) // max(len(prompts), 1)
  if not n or len(made) != n * len(prompts):
    raise ValueError(
      f"expected equally many drawings of each of {len(prompts)} prompts, got"
      f" {len(made)}; draw with n of 1 or more"
    )
  scores = np.asarray(scorer(made, [prompt for prompt in prompts for _ in range(n)]))
  chosen = np.arange(len(prompts)) * n + scores.reshape(-1, n).argmax(axis=1)
  return [(made[i], float(scores[i])) for i in chosen]
