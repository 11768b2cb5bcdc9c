"""Frozen parts of a model directory: never trained, and stored in few bytes."""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import Mesh

from lavit_jax.core import sharding
from lavit_jax.data import text
from lavit_jax.layers import linear
from lavit_jax.models import vit, whitening
from lavit_jax.weights import model_directory


def encoder(
  folder: str, mesh: Mesh, dtype: str, unroll: int = 1
) -> tuple[vit.VisionTransformer, dict[str, Any], dict[str, str]]:
  """Loads the vision encoder and, when there is one, the whitening buffer.

  Args:
    folder: model directory.
    mesh: where to spread the weights.
    dtype: compute dtype of the tower, and storage dtype of its linear maps.
    unroll: layers per scan step.

  Returns:
    The module, its frozen trees by part name, and the checksum of each part.
  """
  tower = vit.VisionTransformer(
    **model_directory.part_config(folder, "vit"), dtype=dtype, unroll=unroll
  )
  frozen = {"vit": load_vit(folder, tower, mesh, dtype)}
  manifest = model_directory.read_manifest(folder)
  if "whitening" in manifest["parts"]:
    frozen["whitening"] = load_whitening(folder, mesh, tower.embed_dim)
  names = {name: manifest["parts"][name]["checksum"][:16] for name in frozen}
  return tower, frozen, names


def text_tokenizer(folder: str) -> text.TextTokenizer:
  """Loads the text tokenizer of a model directory, ours or a published one."""
  return text.load_text_tokenizer(
    model_directory.text_tokenizer_folder(folder) or folder
  )


def vit_shapes(tower: vit.VisionTransformer, mesh: Mesh) -> tuple[Any, Any]:
  """The encoder's abstract float32 parameters and their shardings."""
  size = tower.image_size
  abstract, axes = linear.abstract_params(
    lambda key: tower.init(key, jnp.zeros((1, size, size, 3)))
  )
  return abstract, sharding.parameter_shardings(abstract, axes, mesh)


def stored(abstract: Any, dtype: str) -> Any:
  """The shapes of a frozen tower in the dtypes that it is stored in.

  Kernels and biases of linear maps are in the compute dtype. Norms, biases of queries
  and values, class token and positions stay in float32, as in the published code: they
  are added and multiplied in float32, and their rounding would reach every patch.

  Args:
    abstract: shapes of its parameters.
    dtype: compute dtype.
  """

  def of(node: Any) -> Any:
    own = ("kernel", "bias") if "kernel" in node else ()
    return {
      name: of(leaf)
      if isinstance(leaf, dict)
      else jax.ShapeDtypeStruct(leaf.shape, dtype if name in own else jnp.float32)
      for name, leaf in node.items()
    }

  return of(abstract)


def load_vit(folder: str, tower: vit.VisionTransformer, mesh: Mesh, dtype: str) -> Any:
  """Reads the encoder's weights onto the mesh."""
  abstract, spread = vit_shapes(tower, mesh)
  return model_directory.load(folder, "vit", stored(abstract, dtype), spread)


def load_whitening(folder: str, mesh: Mesh, dim: int) -> whitening.Whitening:
  """Reads the whitening buffer of a small encoder of width `dim`."""
  shapes = {
    "mean": jax.ShapeDtypeStruct((dim,), jnp.float32),
    "matrix": jax.ShapeDtypeStruct((dim, dim), jnp.float32),
  }
  whole = sharding.replicated(mesh)
  return whitening.Whitening(**model_directory.load(folder, "whitening", shapes, whole))


def patch_features(tower: vit.VisionTransformer, frozen: Any, images: jax.Array):
  """Raw patch features float[B, P, D] of u8[B, H, W, 3] pictures, without gradient."""
  features = tower.apply({"params": frozen["vit"]}, vit.normalize(images))
  return jax.lax.stop_gradient(features[:, 1:])


features = jax.jit(patch_features, static_argnames="tower")


def merger_inputs(
  tower: vit.VisionTransformer, frozen: Any, images: jax.Array
) -> jax.Array:
  """Merger inputs float[B*M, P, C] of u8[B, M, H, W, 3] pictures, without gradient."""
  flat = rearrange(images, "b m h w c -> (b m) h w c")
  features = patch_features(tower, frozen, flat)
  return whitening.whiten(frozen.get("whitening"), features)
