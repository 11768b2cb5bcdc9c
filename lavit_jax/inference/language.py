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
from lavit_jax.models import lavit, llama, vit
from lavit_jax.weights import model_directory

STORED = ("kernel", "embedding")  # parameters that are read in the compute dtype
# Fields of the part that the model takes from the vocabulary, or not at all.
VOCABULARY_FIELDS = (
  *("vocab_size", "padded_size", "text_size", "published"),
  *("begin", "end", "pad", "holes"),
)


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
  tokenizer = frozen_parts.text_tokenizer(folder)
  trained = sizes["text_size"] - sum(b - a for a, b in sizes.get("holes", ()))
  holes = sum(after - first for first, after in tokenizer.definition.holes)
  if tokenizer.text_size - holes != trained:
    raise ValueError(
      f"the text tokenizer in {folder} has {tokenizer.text_size - holes} ids, its"
      f" language model expects {trained}; restore the tokenizer of its training"
    )
  vocabulary = tokenizer.vocabulary(visual["num_codes"], sizes["text_size"])
  fields = {
    name: tuple(n) if isinstance(n, list) else n  # JSON knows no tuples
    for name, n in sizes.items()
    if name not in VOCABULARY_FIELDS
  }
  model = lavit.build(fields, visual, vocabulary, dtype)
  init = lavit.init_function(model, visual["num_patches"])
  abstract, axes = linear.abstract_params(init)
  shardings = sharding.parameter_shardings(abstract, axes, mesh)
  part = lambda tree: {name: tree[name] for name in ("merger", "vit_proj")}
  params = model_directory.load(
    folder, "understanding", part(abstract), part(shardings)
  )
  weights = load_weights(folder, model.llama, abstract["llama"], axes["llama"], mesh)
  side = serving.Serving(model.llama, vocabulary, weights)
  return _with_embedding(model, params, side, tokenizer)


def load_weights(
  folder: str, model: llama.Llama, abstract: Any, axes: Any, mesh: Mesh
) -> serving.Weights:
  """Reads a language model as it is served: no more is held than it and one block.

  Args:
    folder: model directory with the part llama.
    model: its sizes and compute dtype; kernels and tables are read in it.
    abstract: its abstract parameters, blocks stacked.
    axes: logical names of their axes.
    mesh: where to spread them.
  """
  stored = jax.tree_util.tree_map_with_path(
    lambda path, leaf: jax.ShapeDtypeStruct(
      leaf.shape, model.dtype if path[-1].key in STORED else leaf.dtype
    ),
    abstract,
  )
  blocks = stored.pop("blocks")
  places = sharding.parameter_shardings(stored, serving.END_AXES, mesh)
  ends = model_directory.load(folder, "llama", stored, places, below=tuple(stored))
  one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), blocks)
  is_names = lambda node: isinstance(node, tuple)
  named = jax.tree.map(lambda names: names[1:], axes["blocks"], is_leaf=is_names)
  places = sharding.parameter_shardings(one, named, mesh)
  lay_out, layers = serving.block_arranger(model.fields, model.dtype, mesh), []
  with jax.set_mesh(mesh):
    for block in model_directory.load_blocks(folder, "llama", blocks, places):
      layers.append(jax.block_until_ready(lay_out(block)))
      # Before the next is read. Donated to the program its arrays would not be used:
      # what it makes of them has other shapes.
      del block
  return serving.Weights(ends, tuple(layers))


def make(
  model: lavit.LaVIT,
  params: dict[str, Any],
  vocabulary: Vocabulary,
  tokenizer: text.TextTokenizer,
  mesh: Mesh,
) -> Language:
  """The language side of the parameters of `models.lavit.LaVIT`."""
  side = serving.prepare(model.llama, params["llama"], vocabulary, mesh)
  return _with_embedding(model, params, side, tokenizer)


def _with_embedding(model, params, side: serving.Serving, tokenizer) -> Language:
  """The language side whose prompts are made of the table that is served."""
  params = params | {"llama": {"embedding": side.weights.ends["embedding"]}}
  return Language(model, params, side, side.vocabulary, tokenizer)


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
  of_rows = [array[np.maximum(members, 0)] for array in shown]
  parts = (language, coder.tower, coder.frozen)
  return picture_inputs(*parts, *of_rows, batch.tokens, batch.feature_index)


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
