"""The language model of the golden files, ready to run."""

import golden_data
import jax.numpy as jnp

from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.models import llama
from lavit_jax.weights import llama as table


def load():
  """Model, parameters (checked to export bit by bit), vocabulary and the arrays."""
  state, dims, arrays = golden_data.load("llm.npz")
  words = Vocabulary(dims["text"], dims["K"])
  model = llama.Llama(
    vocab_size=words.size,
    padded_size=words.padded_size,
    embed_dim=dims["d"],
    num_layers=dims["L"],
    num_heads=dims["H"],
    num_kv_heads=dims["H"],
    head_dim=dims["d"] // dims["H"],
    mlp_dim=dims["ff"],
    rope_base=10000.0,
    norm_eps=dims["eps"],
    dtype="float32",
  )
  ids = jnp.zeros((1, 4), jnp.int32)
  everything = lambda *inputs: golden_data.abstract_params(
    model, *inputs, method="everything"
  )
  rules = table.table(words.size)
  params = golden_data.import_checked(rules, state, everything(ids, ids, ids))
  return model, params, words, arrays
