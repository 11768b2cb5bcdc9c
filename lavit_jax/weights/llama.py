"""Table of Hugging Face `LlamaForCausalLM` weights.

Our side is the parameter tree of `models.llama.Llama`. Its vocabulary is padded:
padded rows are zero when imported, never predicted or looked up, and cut on export.
"""

import numpy as np

from lavit_jax.weights import rules
from lavit_jax.weights.rules import Rule, Transform


def _pad_rows(array, shape):
  return np.pad(array, ((0, shape[0] - array.shape[0]), (0, 0)))


def _pad_columns(array, shape):
  return np.pad(array.T, ((0, 0), (0, shape[1] - array.shape[0])))


def table(vocab_size: int) -> list[Rule]:
  """The table of a model with `vocab_size` real ids.

  Args:
    vocab_size: rows of the published embedding and head, without our padding.
  """
  embedding = Transform(_pad_rows, lambda array: array[:vocab_size])
  head = Transform(_pad_columns, lambda array: array[:, :vocab_size].T)
  layer, linear = "model.layers.{i}.", rules.linear
  return [
    Rule("model.embed_tokens.weight", "embedding/embedding", embedding),
    Rule(f"{layer}input_layernorm.weight", "blocks/attention_norm/scale"),
    *(
      Rule(
        f"{layer}self_attn.{name[0]}_proj.weight",
        f"blocks/attention/{name}/kernel",
        linear,
      )
      for name in ("query", "key", "value")
    ),
    Rule(
      f"{layer}self_attn.o_proj.weight",
      "blocks/attention/out/kernel",
      rules.linear_from_heads,
    ),
    Rule(f"{layer}post_attention_layernorm.weight", "blocks/mlp_norm/scale"),
    *(
      Rule(f"{layer}mlp.{name}_proj.weight", f"blocks/mlp/{name}/kernel", linear)
      for name in ("gate", "up", "down")
    ),
    Rule("model.norm.weight", "norm/scale"),
    Rule("lm_head.weight", "head/kernel", head),
  ]
