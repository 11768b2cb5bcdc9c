"""Names what patches show, with the word heads of stage 0 on the toy world."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lavit_jax.core import sharding
from lavit_jax.inference import api
from lavit_jax.layers import linear, norm
from lavit_jax.toy import scenes, world
from lavit_jax.weights import model_directory

BACKGROUND = "background"
BACKGROUND_RGB = (128, 128, 128)
CELL = 16  # pixels per patch in pictures of what was read
WORDS = {"color": (*world.COLORS, BACKGROUND), "shape": world.SHAPES}


def load(folder: str, embed_dim: int, mesh: Mesh) -> Any:
  """Reads the word heads of the part clip.

  Args:
    folder: model directory.
    embed_dim: D, width of the patch features.
    mesh: where to put them.
  """
  leaf = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  tree = {"word_norm": {"scale": leaf(embed_dim), "bias": leaf(embed_dim)}}
  for kind, entry in model_directory.part_config(folder, "clip")["words"].items():
    classes = entry["classes"]
    tree[f"word_{kind}"] = {"kernel": leaf(embed_dim, classes), "bias": leaf(classes)}
  whole = sharding.replicated(mesh)
  return model_directory.load(folder, "clip", tree, whole, below=tuple(tree))


@jax.jit
def most_probable(heads: Any, features: jax.Array) -> dict[str, jax.Array]:
  """Index int32[n, P] of the best word of each kind for float[n, P, D] features."""
  normed = norm.LayerNorm(1e-5).apply({"params": heads["word_norm"]}, features)
  found = {}
  for kind in WORDS:
    params = heads[f"word_{kind}"]
    head = linear.dense(*params["kernel"].shape, ("embed", None), dtype="float32")
    found[kind] = head.apply({"params": params}, normed).argmax(-1)
  return found


def names(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Words str[n, P] of indices; a patch of background has no shape ("")."""
  color, shape = (np.array(WORDS[kind])[found[kind]] for kind in ("color", "shape"))
  return {"color": color, "shape": np.where(color == BACKGROUND, "", shape)}


def read(model: api.LaVIT, features: np.ndarray) -> dict[str, np.ndarray]:
  """Names what patches show, with the word heads of stage 0.

  Args:
    model: a model that has them (`model.has_words`).
    features: float[n, P, D] raw or reconstructed patch features.

  Returns:
    "color" str[n, P], "background" where nothing is, and "shape" str[n, P], empty
    there.
  """
  heads = load(model.folder, model.coder.tower.embed_dim, model.mesh)
  run = functools.partial(most_probable, heads)
  return names(model.in_chunks(run, np.asarray(features)))


def paint(model: api.LaVIT, features: np.ndarray) -> list[np.ndarray]:
  """What patches show as pictures uint8[H, W, 3]: of each patch its color."""
  return [patch_picture(colors) for colors in read(model, features)["color"]]


def patch_picture(colors: np.ndarray) -> np.ndarray:
  """Paints color words str[P] of a square grid: uint8[H, W, 3], background grey."""
  side = round(len(colors) ** 0.5)
  cells = [scenes.RGB.get(str(color), BACKGROUND_RGB) for color in colors]
  grid = np.array(cells, np.uint8).reshape(side, side, 3)
  return grid.repeat(CELL, axis=0).repeat(CELL, axis=1)
