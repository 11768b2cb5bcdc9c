"""Hugging Face `LlamaForCausalLM` folders: table, configuration, in and out.

Our side is the parameter tree of `models.llama.Llama`. Its vocabulary is padded:
padded rows are zero when imported, never predicted or looked up, and cut on export.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax.core.vocabulary import PADDING_MULTIPLE, Vocabulary
from lavit_jax.models.llama import Llama
from lavit_jax.weights import files, rules
from lavit_jax.weights.part import Part, abstract_params
from lavit_jax.weights.rules import Rule, Transform
from lavit_jax.weights.tensors import Tensor

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
# Buffers of old files that follow from the configuration.
OPTIONAL = ("*.rotary_emb.inv_freq",)
# What our module computes; a config that asks for something else is refused.
FIXED = {
  "hidden_act": "silu",
  "attention_bias": False,
  "mlp_bias": False,
}
# What each family has that its config.json does not say, as fields of `Llama`; and the
# class that transformers loads it with.
FAMILIES = {
  "llama": {},
  "qwen2": {"qkv_bias": True},
  "qwen3": {"qk_norm": "rms"},
}
CLASSES = {
  "llama": "LlamaForCausalLM",
  "qwen2": "Qwen2ForCausalLM",
  "qwen3": "Qwen3ForCausalLM",
}
KEPT = (
  "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
  "tie_word_embeddings",
)  # fmt: skip
# What a llama3 rope scaling states, in the order of `position.frequencies`.
ROPE_KEYS = (
  "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
)  # fmt: skip
GENERATION = "generation_config.json"
QKV = ("query", "key", "value")


def table(vocab_size: int, qkv_bias: bool = False, qk_norm: str = "none") -> list[Rule]:
  """The table of a model with `vocab_size` real ids.

  Args:
    vocab_size: rows of the published embedding and head, without our padding.
    qkv_bias: see `models.block.Fields`; this and the next.
    qk_norm: "rms" or "none".
  """
  layer, ours = "model.layers.{i}.", "blocks/"
  maps = {f"self_attn.{name[0]}_proj": f"attention/{name}" for name in QKV}
  maps |= {f"mlp.{name}_proj": f"mlp/{name}" for name in ("gate", "up", "down")}
  out = f"{layer}self_attn.o_proj.weight"
  more = []
  if qkv_bias:
    more += [
      Rule(
        f"{layer}self_attn.{n[0]}_proj.bias", f"{ours}attention/{n}/bias", rules.vector
      )
      for n in QKV
    ]
  if qk_norm != "none":
    more += [
      Rule(f"{layer}self_attn.{n[0]}_norm.weight", f"{ours}attention/{n}_norm/scale")
      for n in ("query", "key")
    ]
  return [
    *more,
    Rule(EMBEDDING, "embedding/embedding", _padded_rows(vocab_size)),
    Rule(f"{layer}input_layernorm.weight", f"{ours}attention_norm/scale"),
    *(
      Rule(f"{layer}{name}.weight", f"{ours}{path}/kernel", rules.linear)
      for name, path in maps.items()
    ),
    Rule(out, f"{ours}attention/out/kernel", rules.linear_from_heads),
    Rule(f"{layer}post_attention_layernorm.weight", f"{ours}mlp_norm/scale"),
    Rule("model.norm.weight", "norm/scale"),
    Rule(HEAD, "head/kernel", _padded_columns(vocab_size)),
  ]


def table_of(fields: Mapping[str, Any], vocab_size: int) -> list[Rule]:
  """The table of a model with such fields."""
  return table(vocab_size, fields.get("qkv_bias", False), fields.get("qk_norm", "none"))


def _padded_rows(vocab_size: int) -> Transform:
  """The embedding: rows beyond the real ids are zero."""

  def forward(array, shape):
    out = np.zeros(shape, array.dtype)
    out[: len(array)] = array
    return out

  return Transform(forward, lambda array: array[:vocab_size])


def _padded_columns(vocab_size: int) -> Transform:
  """The head, transposed: columns beyond the real ids are zero."""

  def forward(array, shape):
    out = np.zeros(shape, array.dtype)
    out[:, : len(array)] = rules.linear.forward(array, (shape[0], len(array)))
    return out

  return Transform(
    forward,
    lambda array: rules.linear.inverse(array[:, :vocab_size]),
    lambda shape: (vocab_size, shape[0]),
  )


def sizes_of(config: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of `Llama` that a config.json states.

  Raises:
    ValueError: the config asks for what our module does not compute.
  """
  wrong = {k: config[k] for k, v in FIXED.items() if config.get(k, v) != v}
  family = config.get("model_type", "llama")
  if family not in FAMILIES:
    wrong["model_type"] = family
  if config.get("use_sliding_window"):
    wrong["use_sliding_window"] = True
  rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind not in ("default", None, "llama3"):
    wrong["rope_scaling"] = rope
  if wrong:
    raise ValueError(
      f"expected a model of {', '.join(FAMILIES)} with {FIXED} and plain or llama3"
      f" rotary positions, got {wrong}; use a LLaMA, Llama-2, Llama-3, Qwen2 or Qwen3"
    )
  try:
    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    sizes = {
      "embed_dim": width,
      "num_layers": int(config["num_hidden_layers"]),
      "num_heads": heads,
      "num_kv_heads": int(config.get("num_key_value_heads") or heads),
      "head_dim": int(config.get("head_dim") or width // heads),
      "mlp_dim": int(config["intermediate_size"]),
      "rope_base": float(rope.get("rope_theta") or config.get("rope_theta") or 1e4),
      "norm_eps": float(config["rms_norm_eps"]),
      **FAMILIES[family],
    }
    if kind == "llama3":
      sizes["rope_scaling"] = tuple(float(rope[key]) for key in ROPE_KEYS)
    return sizes
  except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
    raise ValueError(
      f"expected the sizes of a LLaMA in config.json, got none that can be used for"
      f" {error}; download it again"
    ) from error


def text_size(folder: str | os.PathLike) -> int | None:
  """Number of text ids of the tokenizer in a folder; None without a tokenizer."""
  folder = pathlib.Path(folder)
  if (folder / "tokenizer.model").is_file():
    pieces = _count_pieces((folder / "tokenizer.model").read_bytes())
    if not pieces:
      raise ValueError(
        f"expected a SentencePiece model in {folder / 'tokenizer.model'}, got a file"
        " without pieces; download it again"
      )
    return pieces
  if (folder / "tokenizer.json").is_file():
    try:
      return len(files.read_json(folder / "tokenizer.json")["model"]["vocab"])
    except (KeyError, TypeError) as error:
      raise ValueError(
        f"expected a text tokenizer in {folder / 'tokenizer.json'}, got one without a"
        " vocabulary; download it again"
      ) from error
  return None


def _count_pieces(proto: bytes) -> int:
  """Pieces of a SentencePiece model: the repeated field 1 of its protocol buffer."""
  count = at = 0
  while at < len(proto):
    tag, at = _varint(proto, at)
    if tag & 7 != 2:  # every top-level field is a message
      break
    size, at = _varint(proto, at)
    count += tag >> 3 == 1
    at += size
  return count


def _varint(data: bytes, at: int) -> tuple[int, int]:
  value = shift = 0
  while at < len(data):
    byte = data[at]
    value |= (byte & 127) << shift
    shift, at = shift + 7, at + 1
    if byte < 128:
      break
  return value, at


def read(folder: str | os.PathLike, words: Vocabulary | None = None) -> Part:
  """Opens a Hugging Face folder as a part; its tensors stay unread.

  Args:
    folder: holds config.json and weights.
    words: the joint vocabulary when the model is part of a LaVIT: rows beyond it (made
      to fill a multiple) are left out. None keeps all rows.
  """
  folder = pathlib.Path(folder)
  config = files.read_json(folder / "config.json")
  sizes = sizes_of(config)
  source, _ = rules.without(files.open_folder(folder), OPTIONAL)
  if config.get("tie_word_embeddings") and EMBEDDING in source:
    # Our head is a parameter of its own: it starts as a copy.
    source[HEAD] = source[EMBEDDING]
  rows = source[EMBEDDING].shape[0] if EMBEDDING in source else 0
  rows = rows or int(config.get("vocab_size", 0))
  layers = rules.count_layers(source, "model.layers.")
  if layers != sizes["num_layers"]:
    raise ValueError(
      f"expected {sizes['num_layers']} layers in {folder}, as its config.json says, got"
      f" {layers}; download the folder again"
    )
  used = words.size if words is not None else rows
  if rows < used:
    raise ValueError(
      f"expected {used} ids in {folder} (text, marks and codes), got {rows}; use the"
      " language model that belongs to the visual tokenizer"
    )
  if rows > used:
    source |= {key: _first_rows(source[key], used) for key in (EMBEDDING, HEAD)}
  padding = PADDING_MULTIPLE
  fields = {"vocab_size": used, "padded_size": -(-used // padding) * padding}
  ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
  model = Llama(**sizes, **fields)
  target = abstract_params(model, ids, ids, ids, method="everything")
  params = rules.import_tensors(table_of(sizes, used), source, target)
  known = text_size(folder) if words is None else words.text_size
  fields["text_size"] = min(known or used, used)
  fields["published"] = {key: config[key] for key in KEPT if key in config}
  if (folder / GENERATION).is_file():
    fields["published"]["generation"] = files.read_json(folder / GENERATION)
  return Part(params, sizes | fields)


def _first_rows(tensor: Tensor, rows: int) -> Tensor:
  read = lambda: tensor.read()[:rows]
  return Tensor((rows, *tensor.shape[1:]), tensor.dtype, read)


def write(part: Part, folder: pathlib.Path, suffix: str, dtype: str | None) -> None:
  """Writes weights, index, config and generation config into an existing folder.

  Args:
    part: the language model.
    folder: where to write.
    suffix: ".safetensors" or ".bin".
    dtype: stored dtype, None for that of the part.
  """
  content = rules.export_tensors(
    table_of(part.config, part.config["vocab_size"]), part.params
  )
  tied = bool(part.config.get("published", {}).get("tie_word_embeddings"))
  if tied and np.array_equal(*(content[key].read() for key in (EMBEDDING, HEAD))):
    del content[HEAD]
  content = files.stored_as(content, dtype)
  stem = "model" if suffix == files.SAFETENSORS else "pytorch_model"
  files.write_folder(folder, content, stem, suffix)
  config = config_of(part.config, str(content[EMBEDDING].dtype))
  config["tie_word_embeddings"] = HEAD not in content
  files.write_json(folder / "config.json", config)
  special = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
  special = part.config.get("published", {}).get("generation", special)
  files.write_json(folder / GENERATION, special)


def config_of(fields: Mapping[str, Any], dtype: str) -> dict[str, Any]:
  """The config.json of a part's fields."""
  published = dict(fields.get("published", {}))
  published.pop("generation", None)
  own = {k: fields[k] for k in ("qkv_bias", "qk_norm") if k in fields}
  family = next(name for name, known in FAMILIES.items() if known == own)
  scaling = {}
  if fields.get("rope_scaling"):
    scaling = dict(zip(ROPE_KEYS, fields["rope_scaling"], strict=True))
    scaling[ROPE_KEYS[3]] = int(scaling[ROPE_KEYS[3]])
    scaling = {"rope_scaling": {"rope_type": "llama3"} | scaling}
  return {
    "architectures": [CLASSES[family]],
    "model_type": family,
    **FIXED,
    "hidden_size": fields["embed_dim"],
    "intermediate_size": fields["mlp_dim"],
    "num_hidden_layers": fields["num_layers"],
    "num_attention_heads": fields["num_heads"],
    "num_key_value_heads": fields["num_kv_heads"],
    "head_dim": fields["head_dim"],
    "rms_norm_eps": fields["norm_eps"],
    "rope_theta": fields["rope_base"],
    "vocab_size": fields["vocab_size"],
    "tie_word_embeddings": False,
    "torch_dtype": dtype,
    "max_position_embeddings": 4096,
    "bos_token_id": fields.get("begin", Vocabulary.begin),
    "eos_token_id": fields.get("end", Vocabulary.end),
    **scaling,
    **published,
  }
