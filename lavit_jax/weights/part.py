"""One part of a model: a module's parameters and sizes, as a tree or flat."""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lavit_jax.layers import linear
from lavit_jax.weights import rules, tensors
from lavit_jax.weights.tensors import Stack, Tensor

STACKED = "blocks"  # below this name axis 0 is the layer
_LAYER = re.compile(rf"(^|.*\.){STACKED}\.(\d+)\.(.*)$")


@dataclasses.dataclass(frozen=True)
class Part:
  """One module of a model directory.

  Attributes:
    params: tree of arrays, of `Tensor` or of `Stack`.
    config: the module's sizes, enough to build it again.
  """

  params: Any
  config: Mapping[str, Any]


def named_tensors(params: Any) -> Iterator[tuple[str, Tensor]]:
  """Names and tensors of a tree, layers apart: "blocks.0.mlp.kernel"."""
  is_leaf = lambda leaf: isinstance(leaf, (Tensor, Stack))
  for path, leaf in jax.tree_util.tree_flatten_with_path(params, is_leaf)[0]:
    keys = [entry.key for entry in path]
    if STACKED in keys:
      for layer in range(leaf.shape[0]):
        yield layer_name(keys, layer), tensors.layer_of(leaf, layer)
    else:
      yield ".".join(keys), tensors.layer_of(leaf, None)


def layer_name(keys: list[str], layer: int) -> str:
  """The name of one layer of a stacked parameter."""
  split = keys.index(STACKED) + 1
  return ".".join([*keys[:split], str(layer), *keys[split:]])


def tree_of(named: Mapping[str, Tensor]) -> dict[str, Any]:
  """The tree that `named_tensors` took apart, with a `Stack` for stacked leaves."""
  flat: dict[str, Any] = {}
  stacked: dict[str, dict[int, Tensor]] = {}
  for name, tensor in named.items():
    match = _LAYER.match(name)
    if match is None:
      flat[name.replace(".", "/")] = tensor
    else:
      before, layer, after = match.groups()
      path = f"{before}{STACKED}.{after}".replace(".", "/")
      stacked.setdefault(path, {})[int(layer)] = tensor
  for path, layers in stacked.items():
    flat[path] = Stack(tuple(layers[i] for i in sorted(layers)))
  return rules.unflatten(flat)


def abstract_params(module: nn.Module, *inputs: Any, **options: Any) -> dict[str, Any]:
  """The parameter tree that a module makes for such inputs, as shapes.

  Args:
    module: the module.
    inputs: arrays, or `jax.ShapeDtypeStruct` for large ones.
    options: e.g. `method`.
  """
  init = functools.partial(module.init, **options)
  return linear.abstract_params(init, *inputs)[0]


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
  """An abstract float32 array."""
  return jax.ShapeDtypeStruct(sizes, jnp.float32)
