"""How well pictures fit texts: the cosine of a contrastive model.

That is the one of stage 0, or OpenAI's CLIP as `convert import openai_clip` stores it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lavit_jax.core import sharding
from lavit_jax.data import clip_text
from lavit_jax.inference import frozen_parts
from lavit_jax.layers import linear
from lavit_jax.models import clip, openai_clip, vit
from lavit_jax.weights import model_directory
from lavit_jax.weights.openai_clip import PART


@dataclasses.dataclass(frozen=True)
class Ranker:
  """Both towers.

  Attributes:
    tower: embeds pictures.
    words: the text tower.
    params: their parameters, "vision" and "text".
    encode: a text to at most `words.max_length` ids.
  """

  tower: vit.VisionTransformer | openai_clip.VisionTower
  words: clip.TextTower
  params: dict[str, Any]
  encode: Callable[[str], list[int]]


def load(folder: str, mesh: Mesh, dtype: str) -> Ranker:
  """Loads the contrastive model of a model directory, imported or of stage 0."""
  if PART in model_directory.read_manifest(folder)["parts"]:
    return _openai(folder, mesh, dtype)
  tower, frozen, _ = frozen_parts.encoder(folder, mesh, dtype)
  return beside(folder, tower, frozen["vit"], mesh)


def beside(folder: str, tower: vit.VisionTransformer, seen: Any, mesh: Mesh) -> Ranker:
  """Reads the text tower beside a loaded vision encoder.

  Args:
    folder: model directory with a part clip.
    tower: the vision encoder.
    seen: its parameters.
    mesh: where to put the text tower.
  """
  parts = model_directory.read_manifest(folder)["parts"]
  sizes = parts["clip"]["config"]["text"] if "clip" in parts else {}
  if "embed_dim" not in sizes:
    raise ValueError(
      f"expected a text tower in the part clip of {folder}, got none; rank by a model"
      " whose stage 0 was trained here, or by an imported CLIP (--ranker)"
    )
  words = clip.TextTower(**sizes, output_dim=tower.clip_dim, dtype=tower.dtype)
  ids = jnp.zeros((1, 1), jnp.int32)
  abstract, _ = linear.abstract_params(
    lambda key: words.init(key, ids, jnp.ones(1, jnp.int32))
  )
  whole = sharding.replicated(mesh)
  found = model_directory.load(
    folder, "clip", {"text": abstract}, whole, None, ("text",)
  )
  tokenizer = frozen_parts.text_tokenizer(folder)
  encode = lambda text: tokenizer.encode(text)[: words.max_length]
  return Ranker(tower, words, {"vision": seen, **found}, encode)


def _openai(folder: str, mesh: Mesh, dtype: str) -> Ranker:
  sizes = model_directory.part_config(folder, PART)
  tower, words = openai_clip.towers(**sizes, dtype=dtype)
  text = sizes["text"]
  encode = clip_text.load(
    model_directory.text_tokenizer_folder(folder),
    text["vocab_size"],
    text["max_length"],
  )
  side = tower.image_size
  inputs = (
    jnp.zeros((1, side, side, 3)),
    jnp.zeros((1, 1), jnp.int32),
    jnp.ones(1, int),
  )
  model = openai_clip.OpenaiClip(**sizes, dtype=dtype)
  abstract, axes = linear.abstract_params(lambda key: model.init(key, *inputs))
  spread = sharding.parameter_shardings(abstract, axes, mesh)
  found = model_directory.load(folder, PART, abstract, spread, dtype)
  params = {"vision": found["vision_tower"], "text": found["text_tower"]}
  return Ranker(tower, words, params, encode)


def tokens(ranker: Ranker, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
  """Ids int32[n, T] and lengths int32[n]; texts beyond T are cut."""
  ids = [ranker.encode(text) for text in texts]
  rows = np.zeros((len(texts), ranker.words.max_length), np.int32)
  for row, own in zip(rows, ids):
    row[: len(own)] = own
  return rows, np.array([len(own) for own in ids], np.int32)


def cosines(ranker: Ranker, images, ids, lengths) -> jax.Array:
  """float32[n] of uint8[n, H, W, 3] pictures and their texts."""
  towers = (ranker.tower, ranker.words)
  return _cosines(*towers, ranker.params, images, ids, lengths)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _cosines(tower, words, params, images, ids, lengths):
  pixels = vit.normalize(images)
  image = tower.apply({"params": params["vision"]}, pixels, method="embed")
  text = words.apply({"params": params["text"]}, ids, lengths)
  unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
  both = [unit(x.astype(jnp.float32)) for x in (image, text)]
  return (both[0] * both[1]).sum(-1)
