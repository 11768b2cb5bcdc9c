"""Starts a stage from the weights of a model directory instead of random ones.

Stage 0 takes the part vit, stage 1 visual_tokenizer and codebook, stage 2 llama and,
where it is there, understanding. A plain LLaMA gets rows for marks and codes.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.data.text import TextTokenizer
from lavit_jax.models import codebook
from lavit_jax.training.train_state import TrainState
from lavit_jax.weights import model_directory

TABLES = ("embedding", "head")
RANDOM = "random"  # in place of a folder: start from random weights


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses a config that says neither which weights to start from nor "random"."""
  if "warm_start" in config and not (config.warm_start or config.parameters_from):
    raise ValueError(
      "config.warm_start is empty; give the model directory whose weights to start from"
      f" with --config.warm_start=FOLDER, or --config.warm_start={RANDOM} to train from"
      " random ones"
    )


def folder_of(config: ml_collections.ConfigDict) -> str:
  """The model directory to start from, "" for random weights."""
  return "" if config.warm_start == RANDOM else config.warm_start


def encoder(state: TrainState, shardings: TrainState, config) -> TrainState:
  """Stage 0: the vision encoder of `config.warm_start`; the rest stays random."""
  folder = config.warm_start
  check_sizes(folder, "vit", config.model.vit)
  loaded = model_directory.load(
    folder, "vit", state.params["vit"], shardings.params["vit"]
  )
  return state.replace(params=state.params | {"vit": loaded})


def visual_tokenizer(state: TrainState, shardings: TrainState, config) -> TrainState:
  """Stage 1: all that trains, and the codebook."""
  folder = config.warm_start
  check_sizes(folder, "visual_tokenizer", config.model, selector_input="whitened")
  params = model_directory.load(
    folder, "visual_tokenizer", state.params, shardings.params
  )
  table = {"embedding": state.codebook.embedding}
  spread = {"embedding": shardings.codebook.embedding}
  found = model_directory.load(folder, "codebook", table, spread)
  book = codebook.create(found["embedding"])
  book = jax.device_put(book, shardings.codebook)
  return state.replace(params=params, codebook=book)


def language(
  state: TrainState, shardings: TrainState, config, words: Vocabulary
) -> TrainState:
  """Stage 2: the language model, and merger and vit_proj of an earlier stage 2.

  A model over the joint vocabulary is taken as it is. Of a plain one the text rows are
  kept, and each new row of embedding and head is drawn from a normal distribution with
  the mean and the deviation of the text rows, column by column; key: `config.seed`.

  Args:
    state: state of step 0.
    shardings: its shardings.
    config: stage config.
    words: the joint vocabulary.
  """
  folder = config.warm_start
  check_sizes(folder, "llama", config.model)
  sizes = model_directory.part_config(folder, "llama")
  params = dict(state.params)
  whole, spread = params["llama"], shardings.params["llama"]
  if sizes["vocab_size"] == words.size and sizes["text_size"] == words.text_size:
    params["llama"] = model_directory.load(folder, "llama", whole, spread)
  else:
    params["llama"] = _extended(folder, sizes, whole, spread, words, config.seed)
  if "understanding" in model_directory.read_manifest(folder)["parts"]:
    own = {name: params[name] for name in ("merger", "vit_proj")}
    places = {name: shardings.params[name] for name in own}
    params |= model_directory.load(folder, "understanding", own, places)
  return state.replace(params=params)


def vocabulary(folder: str, tokenizer: TextTokenizer, num_codes: int) -> Vocabulary:
  """The joint vocabulary of a stage: text has the rows of the model it starts from.

  Args:
    folder: `config.warm_start`, empty for none.
    tokenizer: the text tokenizer; rows beyond its ids are holes.
    num_codes: K.
  """
  if not folder:
    return tokenizer.vocabulary(num_codes)
  sizes = model_directory.part_config(folder, "llama")
  text, rows = sizes["text_size"], sizes["vocab_size"]
  joint = Vocabulary(text, num_codes).size == rows
  return tokenizer.vocabulary(num_codes, text if joint else rows)


def check_sizes(
  folder: str, part: str, config: ml_collections.ConfigDict, **unnamed: Any
) -> None:
  """Compares sizes that shapes do not show, too, such as heads and epsilons.

  Args:
    folder: model directory of the weights.
    part: its part.
    config: fields of the module to be trained.
    **unnamed: what fields mean that weights stored before them do not name.
  """
  found = unnamed | model_directory.part_config(folder, part)
  wrong = {
    name: (found[name], value)
    for name, value in config.to_dict().items()
    if name in found and _plain(found[name]) != _plain(value)
  }
  if wrong:
    raise ValueError(
      f"the part {part!r} in {folder} does not fit config.model: expected (of the"
      f" weights) and got {wrong}; set these fields to those of the weights"
    )


def _plain(value: Any) -> Any:
  return list(value) if isinstance(value, tuple) else value


def _extended(folder, sizes, whole, shardings, words: Vocabulary, seed: int) -> Any:
  """A plain LLaMA with rows for marks and codes."""
  if sizes["vocab_size"] < words.text_size:
    raise ValueError(
      f"expected at least the {words.text_size} ids of the text tokenizer in {folder},"
      f" got {sizes['vocab_size']}; use the text tokenizer of this language model"
    )
  width, rows = whole["embedding"]["embedding"].shape[1], sizes["padded_size"]
  abstract = whole | {
    "embedding": {"embedding": jax.ShapeDtypeStruct((rows, width), jnp.float32)},
    "head": {"kernel": jax.ShapeDtypeStruct((width, rows), jnp.float32)},
  }
  # The old tables' rows need not divide the mesh as the new ones do.
  table = shardings["embedding"]["embedding"]
  places = shardings | {
    "embedding": {"embedding": table},
    "head": {"kernel": NamedSharding(table.mesh, P(table.spec[1], None))},
  }
  old = model_directory.load(folder, "llama", abstract, places)
  key = jax.random.fold_in(jax.random.key(seed), 2)
  extend = jax.jit(
    functools.partial(_with_new_rows, words=words),
    out_shardings={name: shardings[name] for name in TABLES},
  )
  return old | extend({name: old[name] for name in TABLES}, key)


def _with_new_rows(old: Any, key: jax.Array, words: Vocabulary) -> Any:
  """Tables over the joint vocabulary; filler rows are zero."""
  keys = jax.random.split(key)
  embedding = _rows(old["embedding"]["embedding"], keys[0], words)
  head = _rows(old["head"]["kernel"].T, keys[1], words).T
  return {"embedding": {"embedding": embedding}, "head": {"kernel": head}}


def _rows(table: jax.Array, key: jax.Array, words: Vocabulary) -> jax.Array:
  text = table[: words.text_size]
  shape = (words.padded_size - words.text_size, table.shape[1])
  known = text
  if words.holes:  # rows that were never trained say nothing of what rows are like
    known = text[np.flatnonzero(words.is_text(np.arange(words.text_size)))]
  new = known.mean(0) + known.std(0) * jax.random.normal(key, shape)
  used = jnp.arange(words.text_size, words.padded_size) < words.size
  return jnp.concatenate([text, jnp.where(used[:, None], new, 0)])
