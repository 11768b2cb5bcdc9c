"""The embedding of an empty text, from Stable Diffusion 1.5's own text encoder folder.

It is the unconditional condition of the low-resolution U-Net. LaVIT's folder has it
ready made (`uncond_embeddings.bin`); a plain Stable Diffusion folder has the CLIP text
encoder instead, which is run here once, on the host.
"""

import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from lavit_jax.weights import files

FOLDER = "text_encoder"
PREFIX = "text_model."  # of every key, in files of the usual layout


def embedding(folder: pathlib.Path) -> np.ndarray:
  """The final hidden states of an empty text.

  Args:
    folder: text_encoder/ with config.json and the weights of `CLIPTextModel`.

  Returns:
    float32[77, 768] (whatever sizes the config states): begin mark, then end marks.
  """
  config = files.read_json(folder / "config.json")
  source = files.open_folder(folder)
  prefix = PREFIX if any(key.startswith(PREFIX) for key in source) else ""
  read = lambda name: source[prefix + name].read().astype(np.float32)
  try:
    return _run(config, read)
  except KeyError as error:
    raise ValueError(
      f"expected a CLIP text encoder in {folder}, got one without {error}; give the"
      " text_encoder folder of Stable Diffusion 1.5"
    ) from error


def _run(config: dict[str, Any], read: Callable[[str], np.ndarray]) -> np.ndarray:
  tokens = read("embeddings.token_embedding.weight")
  positions = read("embeddings.position_embedding.weight")
  # The vocabulary ends with the two marks; old configs name other ids for them.
  begin, end = len(tokens) - 2, len(tokens) - 1
  ids = [begin, *[end] * (len(positions) - 1)]
  x = tokens[ids] + positions
  eps, heads = config["layer_norm_eps"], config["num_attention_heads"]
  activate = _ACTIVATIONS[config["hidden_act"]]

  def linear(name, x):
    return x @ read(f"{name}.weight").T + read(f"{name}.bias")

  def norm(name, x):
    centered = x - x.mean(-1, keepdims=True)
    spread = np.sqrt(np.square(centered).mean(-1, keepdims=True) + eps)
    return centered / spread * read(f"{name}.weight") + read(f"{name}.bias")

  for i in range(config["num_hidden_layers"]):
    layer = f"encoder.layers.{i}"
    attention, normed = f"{layer}.self_attn", norm(f"{layer}.layer_norm1", x)
    query, key, value = (linear(f"{attention}.{n}_proj", normed) for n in "qkv")
    x = x + linear(f"{attention}.out_proj", _attend(query, key, value, heads))
    hidden = linear(f"{layer}.mlp.fc1", norm(f"{layer}.layer_norm2", x))
    x = x + linear(f"{layer}.mlp.fc2", activate(hidden))
  return norm("final_layer_norm", x).astype(np.float32)


def _attend(query, key, value, heads: int) -> np.ndarray:
  """Causal attention of float32[T, N H] rows."""
  split = lambda x: x.reshape(len(x), heads, -1).transpose(1, 0, 2)
  query, key, value = split(query), split(key), split(value)
  scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
  scores = np.where(np.tri(scores.shape[-1], dtype=bool), scores, -np.inf)
  powers = np.exp(scores - scores.max(-1, keepdims=True))
  mixed = (powers / powers.sum(-1, keepdims=True)) @ value
  return mixed.transpose(1, 0, 2).reshape(mixed.shape[1], -1)


def _quick_gelu(x: np.ndarray) -> np.ndarray:
  return x / (1 + np.exp(-1.702 * x))


def _gelu(x: np.ndarray) -> np.ndarray:
  return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


_ACTIVATIONS = {"quick_gelu": _quick_gelu, "gelu": _gelu}
