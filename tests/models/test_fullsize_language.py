"""The 7B configurations as shapes: counts, bytes per chip, and a program without depth.

Nothing is allocated: states are evaluated abstractly and sharded over a mesh of 64
chips that need not exist.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from configs import pretrain as pretrain_config
from configs import visual_tokenizer as visual_tokenizer_config
from lavit_jax.core import sharding
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.layers import linear
from lavit_jax.models import codebook, lavit, llama, vit
from lavit_jax.models.visual_tokenizer import VARIANTS, VisualTokenizer
from lavit_jax.stages import pretrain
from lavit_jax.training import base, optimizer, train_state

CHIPS = 64
WORDS = Vocabulary(text_size=32_000, num_codes=16_384)
TOKENIZER = VARIANTS["lavit"]
PATCHES, WIDTH = TOKENIZER["num_patches"], TOKENIZER["embed_dim"]


def fsdp_mesh() -> AbstractMesh:
  sizes = (1, CHIPS, 1, 1)
  return AbstractMesh(sizes, sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 4)


def state_of(init, config, book=lambda key: None):
  """Abstract state of a stage and its shardings over 64 chips."""
  tx = optimizer.make(config.optimizer, config.num_steps)
  abstract, spread, _ = base.born_sharded(init, tx, fsdp_mesh(), book)
  return abstract, spread


@functools.cache
def language_state():
  config = pretrain_config.get_config("7b")
  model = pretrain.make_model(config, WORDS, TOKENIZER)
  return state_of(lavit.init_function(model, PATCHES), config)


@functools.cache
def tokenizer_state():
  config = visual_tokenizer_config.get_config("7b")
  model = VisualTokenizer(**TOKENIZER)

  def init(key):
    inputs = jnp.zeros((1, PATCHES, WIDTH))
    return model.init(key, inputs, jnp.ones(inputs.shape[:2], bool))

  def book(key):
    shape = (TOKENIZER["num_codes"], TOKENIZER["code_dim"])
    return codebook.create(jax.random.normal(key, shape))

  return state_of(init, config, book)


def total_bytes(tree) -> int:
  leaves = jax.tree.leaves(tree)
  return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in leaves)


def test_parameter_counts():
  # The published language model has exactly the real ids as rows.
  model = llama.Llama(
    **llama.VARIANTS["7b"], vocab_size=WORDS.size, padded_size=WORDS.size
  )
  ids = jnp.zeros((1, 4), jnp.int32)
  init = lambda key: model.init(key, ids, ids, ids, method="everything")
  params, _ = linear.abstract_params(init)
  assert WORDS.size == 48_386 and WORDS.padded_size == 48_512
  assert train_state.count(params) == 6_872_649_728
  state, _ = language_state()
  assert train_state.count(state.params["vit_proj"]) == 5_771_264
  assert train_state.count(state.params["merger"]) == 398_267_392


def frozen_encoder():
  """The encoder as stages 1 and 2 keep it, in bfloat16."""
  tower = vit.VisionTransformer(**vit.VARIANTS["g14"])
  image = jnp.zeros((1, 224, 224, 3))
  params, axes = linear.abstract_params(lambda key: tower.init(key, image))
  spread = sharding.parameter_shardings(params, axes, fsdp_mesh())
  stored = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16)
  return jax.tree.map(stored, params), spread


def test_language_state_is_spread_evenly_over_64_chips():
  state, spread = language_state()
  held = sharding.bytes_per_device(state, spread)
  assert held <= 1.03 * total_bytes(state) / CHIPS
  # Parameters, two moments, in float32; a few counters besides.
  assert abs(total_bytes(state) - 12 * train_state.count(state.params)) < 100
  assert sharding.replicated_arrays(state, spread, over=1_000_000) == {}


def test_tokenizer_state_is_spread_over_64_chips():
  state, spread = tokenizer_state()
  held = sharding.bytes_per_device(state, spread)
  # Biases, norms and the codebook are whole, and weigh more in a smaller model.
  assert held <= 1.08 * total_bytes(state) / CHIPS
  # Every picture is compared with every code: the codebook is whole everywhere.
  assert sharding.replicated_arrays(state, spread, over=1_000_000) == {
    "codebook/embedding": 2**21,
    "codebook/sums": 2**21,
  }


def test_frozen_encoder_is_spread_over_64_chips():
  params, spread = frozen_encoder()
  held = sharding.bytes_per_device(params, spread)
  assert held <= 1.04 * total_bytes(params) / CHIPS
  assert sharding.replicated_arrays(params, spread, over=1_000_000) == {}


def program_text(num_layers: int) -> str:
  """The lowered loss and gradient of stage 2 with a language model of some depth."""
  config = pretrain_config.get_config("7b")
  config.model.num_layers = num_layers
  model = pretrain.make_model(config, WORDS, TOKENIZER)
  tower = vit.VisionTransformer(**vit.VARIANTS["g14"])
  params, _ = linear.abstract_params(lavit.init_function(model, PATCHES))
  image = jnp.zeros((1, 224, 224, 3))
  encoder, _ = linear.abstract_params(lambda key: tower.init(key, image))
  length, slots = 512, 2
  row = lambda dtype, *rest: jax.ShapeDtypeStruct((1, *rest), dtype)
  batch = {
    name: row(jnp.int32, length)
    for name in ("tokens", "segment_ids", "positions", "feature_index")
  }
  batch |= {
    "loss_mask": row(bool, length),
    "images": row(jnp.uint8, slots, 224, 224, 3),
    "keep": row(bool, slots, PATCHES),
  }

  def loss(params, encoder, batch):
    frozen, chunks = {"vit": encoder}, config.loss_chunks
    found = pretrain.token_loss(model, tower, params, frozen, batch, WORDS, chunks)
    return found.losses.sum()

  return jax.jit(jax.grad(loss)).lower(params, encoder, batch).as_text()


def test_program_does_not_grow_with_depth():
  half, whole = len(program_text(16)), len(program_text(32))
  assert half > 50_000
  assert whole == pytest.approx(half, rel=0.01)
