"""The language side of a finished model directory, and the vectors of its prompts.

ids i32[B, T] -> f[B, T, D]
pictures u8[B, H, W, 3], keep bool[B, P] -> ViT -> merger (stage 2) -> vit_proj
-> f[B, T, D] with the features in their places
"""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lavit_jax.core import sharding
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.data import text
from lavit_jax.generate import serving
from lavit_jax.inference import frozen_parts, tokenizing
from lavit_jax.layers import linear
from lavit_jax.models import lavit, vit
from lavit_jax.weights import model_directory

# Fields of the part that the model takes from the vocabulary, or not at all.
VOCABULARY_FIELDS = ("vocab_size", "padded_size", "text_size", "published")


@dataclasses.dataclass(frozen=True)
class Language:
  """What stage 2 trained.

  Attributes:
    model: language model, stage-2 merger and projection.
    params: the parameters that make vectors: merger, vit_proj, and of llama the
      embedding.
    serving: the language model, laid out for generation.
    vocabulary: the joint vocabulary.
    tokenizer: the text tokenizer.
  """

  model: lavit.LaVIT
  params: dict[str, Any]
  serving: serving.Serving
  vocabulary: Vocabulary
  tokenizer: text.TextTokenizer


def load(folder: str, mesh: Mesh, dtype: str) -> Language:
  """Reads the parts llama and understanding, and the text tokenizer.

  Args:
    folder: model directory.
    mesh: where to spread the weights.
    dtype: compute dtype; the language model is also stored in it.
  """
  sizes = model_directory.part_config(folder, "llama")
  visual = model_directory.part_config(folder, "visual_tokenizer")
  model_directory.part_config(folder, "understanding")
  vocabulary = Vocabulary(sizes["text_size"], visual["num_codes"])
  tokenizer = frozen_parts.text_tokenizer(folder)
  if tokenizer.text_size != vocabulary.text_size:
    raise ValueError(
      f"the text tokenizer in {folder} has {tokenizer.text_size} ids, its language"
      f" model expects {vocabulary.text_size}; restore the tokenizer of its training"
    )
  own = {
    name: tuple(n) if isinstance(n, list) else n  # JSON knows no tuples
    for name, n in sizes.items()
    if name not in VOCABULARY_FIELDS
  }
  model = lavit.build(own, visual, vocabulary, dtype)
  init = lavit.init_function(model, visual["num_patches"])
  abstract, axes = linear.abstract_params(init)
  spread = sharding.parameter_shardings(abstract, axes, mesh)
  part = lambda tree: {name: tree[name] for name in ("merger", "vit_proj")}
  params = model_directory.load(folder, "understanding", part(abstract), part(spread))
  words = model_directory.load(
    folder, "llama", abstract["llama"], spread["llama"], dtype
  )
  return make(model, params | {"llama": words}, vocabulary, tokenizer, mesh)


def make(
  model: lavit.LaVIT,
  params: dict[str, Any],
  vocabulary: Vocabulary,
  tokenizer: text.TextTokenizer,
  mesh: Mesh,
) -> Language:
  """The language side of the parameters of `models.lavit.LaVIT`."""
  side = serving.prepare(model.llama, params["llama"], vocabulary, mesh)
  params = params | {"llama": {"embedding": side.weights.ends["embedding"]}}
  return Language(model, params, side, vocabulary, tokenizer)


def vectors(
  language: Language, coder: tokenizing.PictureCoder, shown, batch, members
) -> jax.Array:
  """Vectors dtype[B, T, D] of prompts: of their text, and of pictures if any.

  Args:
    language: the language side.
    coder: the vision side.
    shown: uint8[n, H, W, 3] pictures and bool[n, P] keep masks, or None.
    batch: `generate.prompts.PromptBatch`.
    members: B numbers of pictures, below 0 where a row shows none.
  """
  if shown is None or (batch.feature_index < 0).all():
    return text_inputs(language, batch.tokens)
  own = [array[np.maximum(members, 0)] for array in shown]
  parts = (language, coder.tower, coder.frozen)
  return picture_inputs(*parts, *own, batch.tokens, batch.feature_index)


def text_inputs(language: Language, tokens: jax.Array) -> jax.Array:
  """Vectors dtype[B, T, D] of int32[B, T] ids."""
  return _text_inputs(language.model, language.params, tokens)


@functools.partial(jax.jit, static_argnames="model")
def _text_inputs(model, params, tokens):
  return model.llama.apply({"params": params["llama"]}, tokens, method="embed")


def picture_inputs(
  language: Language,
  tower: vit.VisionTransformer,
  frozen: Any,
  images: jax.Array,
  keep: jax.Array,
  tokens: jax.Array,
  feature_index: jax.Array,
) -> jax.Array:
  """Vectors of prompts that show one picture each, as stage 2 makes them.

  Args:
    language: the language side.
    tower: the vision encoder.
    frozen: its parameters and whitening.
    images: uint8[B, H, W, 3].
    keep: bool[B, P].
    tokens: int32[B, T].
    feature_index: int32[B, T] patch whose feature stands at a place, or -1.

  Returns:
    dtype[B, T, D].
  """
  row = (images, keep, tokens, feature_index)
  return _picture_inputs(language.model, tower, language.params, frozen, *row)


@functools.partial(jax.jit, static_argnames=("model", "tower"))
def _picture_inputs(model, tower, params, frozen, images, keep, tokens, index):
  features = frozen_parts.merger_inputs(tower, frozen, images[:, None])
  variables = {"params": params}
  merged = model.apply(variables, features, keep[:, None], method="merge")
  return model.apply(variables, tokens, merged, index, method="embed_row")
