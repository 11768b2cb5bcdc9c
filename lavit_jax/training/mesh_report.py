"""What a mesh does to a run, said before its first step: layout, bytes, copies."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

from lavit_jax.core import sharding

LARGE = 1 << 20  # bytes above which a whole copy on every device is named
VOCABULARY = 48_512  # ids of the published model, for the estimate of the logits
LANGUAGE = ("pretrain", "finetune")  # stages that train the language model
UNITS = ("B", "kB", "MB", "GB", "TB")


def without_devices(
  sizes: Mapping[str, int], count: int, widths: Sequence[int] = ()
) -> AbstractMesh:
  """The mesh of so many devices, none of which need exist.

  Args:
    sizes: size by mesh axis.
    count: devices.
    widths: what an open fsdp has to divide.
  """
  shape = sharding.resolve_mesh_shape(sizes, count, widths)
  types = (AxisType.Auto,) * len(shape)
  return AbstractMesh(tuple(shape.values()), tuple(shape), axis_types=types)


def lines(
  mesh: Mesh | AbstractMesh, groups: Mapping[str, Any], activations: int
) -> list[str]:
  """Describes a run on a mesh.

  Args:
    mesh: the resolved mesh.
    groups: trees by name whose leaves have shape, dtype and sharding: arrays, or
      shapes of arrays.
    activations: estimated bytes of activations per device.

  Returns:
    Lines of text.
  """
  axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
  held = {name: _bytes(tree) for name, tree in groups.items()}
  held = {name: size for name, size in held.items() if size}
  named = [f"{name} {_text(size)}" for name, size in held.items()]
  if activations:
    named.append(f"activations about {_text(activations)}")
  total = _text(sum(held.values()) + activations)
  made = [
    f"mesh: {axes} = {mesh.size} devices",
    f"per device: {', '.join(named)}; together about {total}",
  ]
  if mesh.size == 1:
    return made
  whole = {
    f"{name}/{path}": size
    for name, tree in groups.items()
    for path, size in _whole(tree).items()
  }
  if not whole:
    return [*made, f"whole on every device, above {_text(LARGE)}: nothing"]
  made.append(f"whole on every device, above {_text(LARGE)}:")
  ordered = sorted(whole.items(), key=lambda item: -item[1])
  return made + [f"  {_text(size):>8}  {path}" for path, size in ordered]


def groups_of(state: Any, frozen: Any) -> dict[str, Any]:
  """The groups of a train state and of what stays frozen beside it."""
  return {
    "parameters": state.params,
    "optimizer": state.opt_state,
    "codebook": state.codebook,
    "frozen": frozen,
  }


def total_bytes(groups: Mapping[str, Any]) -> int:
  """Bytes that one device holds of all groups."""
  return sum(_bytes(tree) for tree in groups.values())


def _bytes(tree: Any) -> int:
  leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "sharding")]
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
    for leaf in leaves
  )


def _whole(tree: Any) -> dict[str, int]:
  """Paths and bytes of large arrays that every device holds."""
  found = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    if not hasattr(leaf, "sharding"):
      continue  # an array of the host
    size = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    if size > LARGE and leaf.sharding.is_fully_replicated:
      found[jax.tree_util.keystr(path, simple=True, separator="/")] = size
  return found


def _text(size: float) -> str:
  for unit in UNITS:
    if size < 1000 or unit == UNITS[-1]:
      return f"{size:.3g} {unit}"
    size /= 1000
  raise AssertionError


def activation_bytes(
  config: ml_collections.ConfigDict, mesh: Mesh | AbstractMesh
) -> int:
  """Estimates what the backward pass of one micro-batch keeps on a device.

  Counted are the trained stack of the stage, one layer of it while it is computed
  again, and the logits of one vocabulary chunk. An estimate within a factor of two:
  `plan` compiles the step and reads the true figure.

  Args:
    config: stage config.
    mesh: the mesh.

  Returns:
    Bytes; 0 for a stage without a stack of equal layers.
  """
  if config.stage not in ("contrastive", "visual_tokenizer", *LANGUAGE):
    return 0
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  rows = max(config.batch_size // config.accumulate // ways, 1)
  sizes, logits = config.model, 0
  if config.stage in LANGUAGE:
    length = config.data.row_length
    vocabulary = VOCABULARY // mesh.shape["tensor"] // config.loss_chunks
    logits = 2 * 4 * rows * length * vocabulary
  elif config.stage == "contrastive":
    sizes = config.model.vit
    length = (sizes.image_size // sizes.patch_size) ** 2 + 1
  else:
    length = sizes.num_patches
  between, inside = _layer_bytes(sizes, config.dtype, rows, length, mesh)
  kept = {"full": between, "dots": between + inside / 2, "none": between + inside}
  layers = sizes.num_layers * kept[config.remat]
  return int(layers + (inside if config.remat != "none" else 0) + logits)


def _layer_bytes(
  sizes, dtype: str, rows: int, length: int, mesh
) -> tuple[float, float]:
  """Bytes of one layer: at its border, and inside (attention scores included)."""
  tensor, item = mesh.shape["tensor"], np.dtype(jax.numpy.dtype(dtype)).itemsize
  heads = sizes.num_heads / tensor
  border = rows * length / mesh.shape["sequence"] * sizes.embed_dim * item
  products = 4 * heads * sizes.head_dim + 3 * sizes.mlp_dim / tensor
  scores = 2 * rows * heads * length**2 * 4  # float32, before and after the softmax
  return border, rows * length * products * item + scores
