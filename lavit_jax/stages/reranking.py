"""How well pictures fit texts: the cosine of the contrastive model of stage 0."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lavit_jax import sharding, train_state
from lavit_jax.data.text import TextTokenizer
from lavit_jax.models import clip, vit
from lavit_jax.weights import model_directory


@dataclasses.dataclass(frozen=True)
class Ranker:
  """Both towers.

  Attributes:
    tower: the vision encoder.
    words: the text tower.
    params: their parameters, "vit" and "text".
  """

  tower: vit.VisionTransformer
  words: clip.TextTower
  params: dict[str, Any]


def load(folder: str, tower: vit.VisionTransformer, seen: Any, mesh: Mesh) -> Ranker:
  """Reads the text tower beside a loaded vision encoder.

  Args:
    folder: model directory with a part clip.
    tower: the vision encoder.
    seen: its parameters.
    mesh: where to put the text tower.
  """
  sizes = model_directory.part_config(folder, "clip")["text"]
  if "embed_dim" not in sizes:
    raise ValueError(
      f"expected a text tower in the part clip of {folder}, got none; drawings are"
      " ranked by a model whose stage 0 was trained here"
    )
  words = clip.TextTower(**sizes, output_dim=tower.clip_dim, dtype=tower.dtype)
  ids = jnp.zeros((1, 1), jnp.int32)
  abstract, _ = train_state.abstract_params(
    lambda key: words.init(key, ids, jnp.ones(1, jnp.int32))
  )
  whole = sharding.replicated(mesh)
  read = {"text": abstract}
  found = model_directory.load(folder, "clip", read, whole, below=("text",))
  return Ranker(tower, words, {"vit": seen, **found})


def tokens(ranker: Ranker, tokenizer: TextTokenizer, texts: list[str]):
  """Ids int32[n, T] and lengths int32[n]; texts beyond T are cut."""
  most = ranker.words.max_length
  ids = [tokenizer.encode(text)[:most] for text in texts]
  rows = np.zeros((len(texts), most), np.int32)
  for row, own in zip(rows, ids):
    row[: len(own)] = own
  return rows, np.array([len(own) for own in ids], np.int32)


def cosines(ranker: Ranker, images, ids, lengths) -> jax.Array:
  """float32[n] of uint8[n, H, W, 3] pictures and their texts."""
  towers = (ranker.tower, ranker.words)
  return _cosines(*towers, ranker.params, images, ids, lengths)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _cosines(tower, words, params, images, ids, lengths):
  features = tower.apply({"params": params["vit"]}, vit.normalize(images))
  image = tower.apply({"params": params["vit"]}, features, method="clip_embedding")
  text = words.apply({"params": params["text"]}, ids, lengths)
  unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
  both = [unit(x.astype(jnp.float32)) for x in (image, text)]
  return (both[0] * both[1]).sum(-1)
