"""Names what patches show, with the word heads of stage 0 on the toy world."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lavit_jax.core import sharding
from lavit_jax.layers import linear, norm
from lavit_jax.toy import world
from lavit_jax.weights import model_directory

BACKGROUND = "background"
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
