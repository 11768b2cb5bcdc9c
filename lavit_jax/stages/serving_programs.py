"""The programs of a finished model as shapes: tokenize, prefill, and one decode step.

The language model is stored in the compute dtype, as `infer` loads it; the cache is
spread over rows and heads.
"""

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh, NamedSharding

from lavit_jax import sharding, train_state
from lavit_jax.models import llama as llama_model
from lavit_jax.models import visual_tokenizer
from lavit_jax.stages import programs, tokenizing
from lavit_jax.stages.programs import Program
from lavit_jax.vocabulary import Vocabulary


def tokenize(config: ml_collections.ConfigDict, mesh: Mesh, rows: int) -> Program:
  """Pictures to codes, `rows` at a time."""
  sizes = visual_tokenizer.VARIANTS["lavit"]
  tower, frozen = programs.encoder("g14", config, mesh)
  model = visual_tokenizer.VisualTokenizer(**sizes, dtype=config.dtype)

  def init(key):
    features = jnp.zeros((1, model.num_patches, model.embed_dim))
    return model.init(key, features, jnp.ones(features.shape[:2], bool))

  abstract, axes = train_state.abstract_params(init)
  spread = sharding.parameter_shardings(abstract, axes, mesh)
  table = jax.ShapeDtypeStruct((model.num_codes, model.code_dim), jnp.float32)
  frozen |= {
    "visual_tokenizer": programs.placed(abstract, spread),
    "codebook": {"embedding": programs.placed(table, sharding.replicated(mesh))},
  }

  @jax.jit
  def run(frozen, batch):
    coder = tokenizing.PictureCoder(tower, model, frozen)
    return tokenizing.encode_pictures(coder, batch["image"], batch["noise_id"])

  side = tower.image_size
  fields = dict(image=(jnp.uint8, side, side, 3), noise_id=(jnp.uint32,))
  arguments = {"frozen": frozen, "batch": programs.rows_of(mesh, rows, **fields)}
  positions = rows * tower.num_patches
  return Program("tokenize", run, arguments, mesh, rows, positions, rows)


def _language(config: ml_collections.ConfigDict, mesh: Mesh):
  """The language model and its parameters in the compute dtype."""
  words = Vocabulary(programs.TEXT_IDS, visual_tokenizer.VARIANTS["lavit"]["num_codes"])
  model = llama_model.Llama(
    words.size, words.padded_size, **config.model, dtype=config.dtype
  )
  ids = jnp.zeros((1, 8), jnp.int32)
  init = lambda key: model.init(key, ids, ids, ids, method="everything")
  abstract, axes = train_state.abstract_params(init)
  spread = sharding.parameter_shardings(abstract, axes, mesh)
  return model, programs.placed(abstract, spread, config.dtype)


def _cache(model, mesh: Mesh, rows: int, length: int):
  """An abstract cache."""
  cache = jax.eval_shape(lambda: model.empty_cache(rows, length))
  values = sharding.partition_spec((None, "act_batch", None, "act_heads", None))
  specs = {5: values, 2: sharding.partition_spec(("act_batch", None))}
  whole = sharding.replicated(mesh)
  spread = lambda x: NamedSharding(mesh, specs[x.ndim]) if x.ndim in specs else whole
  return programs.placed(cache, jax.tree.map(spread, cache))


def _cached(module, batch, cache):
  """Logits float32[B, V] after the last position, and the grown cache."""
  inputs = module.embed(batch["tokens"])
  hidden, cache = module(inputs, batch["positions"], batch["segment_ids"], cache)
  return module.logits(hidden[:, -1:])[:, 0], cache


def _generation(name: str, config, mesh: Mesh, rows: int, queries: int) -> Program:
  model, params = _language(config, mesh)
  cache = _cache(model, mesh, rows, config.data.row_length)

  def run(params, batch, cache):
    return model.apply({"params": params}, batch, cache, method=_cached)

  names = ("tokens", "positions", "segment_ids")
  fields = {field: (jnp.int32, queries) for field in names}
  batch = programs.rows_of(mesh, rows, **fields)
  arguments = {"parameters": params, "batch": batch, "cache": cache}
  step = jax.jit(run, donate_argnums=2)
  return Program(name, step, arguments, mesh, rows, rows * queries, 0)


def prefill(config: ml_collections.ConfigDict, mesh: Mesh, rows: int) -> Program:
  """Fills the cache with `rows` prompts of half a row each."""
  queries = config.data.row_length // 2
  return _generation("prefill", config, mesh, rows, queries)


def decode(config: ml_collections.ConfigDict, mesh: Mesh, rows: int) -> Program:
  """One new token for each of `rows` sequences, over a cache of a whole row."""
  return _generation("decode", config, mesh, rows, 1)


PROGRAMS = {"tokenize": tokenize, "prefill": prefill, "decode": decode}
STAGE = {"tokenize": "visual_tokenizer", "prefill": "pretrain", "decode": "pretrain"}
