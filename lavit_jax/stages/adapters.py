"""Low-rank adapters (LoRA, arXiv 2106.09685): what of a model trains, and how it joins.

    kernel W [in, out], frozen;  a [in, r] normal, b [r, out] zero, trained
    training  x W + scale (x a) b        afterwards  W + scale a b

Trees are flat here: "llama/blocks/attention/query/kernel" -> array. An adapter stands
beside its kernel as `lora_a` and `lora_b`, where `layers.linear.Einsum` finds it.

The product stays apart in training: added to a kernel that is stored in bfloat16, small
changes would be rounded away, and the gradient of a whole kernel would be computed.
qwix, the library for this in Flax, recognizes a weight where it reaches `jnp.einsum` or
`dot_general` as it is; ours are cast and, on one device, reshaped before.
"""

import dataclasses
import math
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.tree_util import DictKey

from lavit_jax.layers import linear
from lavit_jax.training import optimizer
from lavit_jax.weights import part
from lavit_jax.weights.tensors import Stack, Tensor

ROOT = "adapters"  # of the trained tree, beside the names of the model's modules


@dataclasses.dataclass(frozen=True)
class Choice:
  """What trains; everything else is frozen.

  Attributes:
    adapted: kernels that get an adapter.
    trained: parameters that train themselves.
    rank: r.
    scale: factor of the product, alpha / r.
  """

  adapted: tuple[str, ...]
  trained: tuple[str, ...]
  rank: int
  scale: float


def flat(tree: Any) -> dict[str, Any]:
  """Leaves by path, joined by "/"."""
  return traverse_util.flatten_dict(tree, sep="/")


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """The tree of `flat`."""
  return traverse_util.unflatten_dict(dict(leaves), sep="/")


def choose(
  names: Iterable[str], adapted: str, trained: str, rank: int, alpha: float
) -> Choice:
  """Finds the parameters that two patterns name.

  Args:
    names: paths of all parameters.
    adapted: regular expression that the path of an adapted kernel begins with; "" for
      no adapters.
    trained: the same for parameters that train themselves.
    rank: r.
    alpha: scale of the adapters times r.

  Raises:
    ValueError: a pattern names nothing, or both name the same, or nothing trains.
  """
  names = sorted(names)
  if rank < 1:
    raise ValueError(f"expected lora.rank of at least 1, got {rank}; set for example 8")
  of = lambda pattern: tuple(n for n in names if pattern and re.match(pattern, n))
  kernels = tuple(n for n in of(adapted) if n.endswith("/kernel"))
  whole = of(trained)
  for field, pattern, found in (
    ("lora.pattern", adapted, kernels),
    ("trained", trained, whole),
  ):
    if pattern and not found:
      raise ValueError(
        f"{field} {pattern!r} names no {'kernel' if 'lora' in field else 'parameter'};"
        f" choose among {names}"
      )
  both = sorted(set(kernels) & set(whole))
  if both:
    raise ValueError(
      f"lora.pattern and trained both name {both}; a kernel trains itself or has an"
      " adapter, so narrow one of them"
    )
  if not kernels and not whole:
    raise ValueError("nothing trains; set lora.pattern, trained, or both")
  return Choice(kernels, whole, rank, alpha / rank)


def init_function(everything: Callable, choice: Choice) -> Callable:
  """key -> boxed variables of what trains, from the same of the whole model."""

  def init(key):
    boxes = flat(everything(key)["params"])
    own = {name: boxes[name] for name in choice.trained}
    for name in choice.adapted:
      # A key of its own, whatever else is adapted.
      own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
      own |= _adapter(name, boxes[name], choice.rank, own_key)
    return {"params": nested(own)}

  return init


def _adapter(name: str, box: linear.Named, rank: int, key: jax.Array) -> dict:
  """Boxed a and b of one kernel, with the kernel's axes and their names."""
  dims = optimizer.matrix_axes([DictKey(k) for k in name.split("/")], box.value)
  if dims is None:
    raise ValueError(
      f"expected kernels of linear maps for lora.pattern, got {name}; name it in"
      " `trained` instead"
    )
  shape, layers = box.value.shape, int(part.STACKED in name.split("/"))
  inputs = dims.reduction_axis
  outputs = [i for i in range(layers, len(shape)) if i not in inputs]
  of = lambda values, axes: tuple(values[i] for i in axes)
  first, stacked = shape[:layers], box.names[:layers]
  fan_in = math.prod(of(shape, inputs))
  a = jax.random.normal(key, (*first, *of(shape, inputs), rank)) * fan_in**-0.5
  b = jnp.zeros((*first, rank, *of(shape, outputs)))
  where = f"{ROOT}/{name.removesuffix('/kernel')}"
  return {
    f"{where}/lora_a": linear.Named(a, (*stacked, *of(box.names, inputs), None)),
    f"{where}/lora_b": linear.Named(b, (*stacked, None, *of(box.names, outputs))),
  }


def whole(params: Any, frozen: Any, scale: float) -> Any:
  """The model's parameters, adapters beside their kernels.

  Args:
    params: what trains.
    frozen: the rest of the model's parameters, as "base", among other frozen parts.
    scale: factor of the adapters.
  """
  own = dict(params)
  adapters = flat(own.pop(ROOT, {}))
  scaled = {
    name: leaf * scale if name.endswith("lora_b") else leaf
    for name, leaf in adapters.items()
  }
  return nested(flat(frozen["base"]) | flat(own) | scaled)


def merged(tree: Any, params: Mapping[str, Any], scale: float) -> tuple[Any, bool]:
  """Puts what was trained into the tensors of a part.

  Args:
    tree: tree of `Tensor` and `Stack`, unread.
    params: what trained, below the part's place, on the host.
    scale: factor of the adapters.

  Returns:
    The tree with changed tensors, which are made when they are read and stored in
    float32; and whether any changed.
  """
  leaves, own = flat(tree), dict(params)
  adapters = flat(own.pop(ROOT, {}))
  changed = flat(own)
  for name in adapters:
    kernel, which = name.rsplit("/", 1)
    if which == "lora_a":
      pair = adapters[name], adapters[f"{kernel}/lora_b"]
      changed[f"{kernel}/kernel"] = _with_product(
        leaves[f"{kernel}/kernel"], *pair, scale
      )
  return nested(leaves | changed), bool(changed)


def _with_product(kernel: Any, a: np.ndarray, b: np.ndarray, scale: float) -> Any:
  """Tensor or Stack of W + scale a b."""
  if isinstance(kernel, Stack):
    layers = zip(kernel.layers, a, b, strict=True)
    return Stack(tuple(_with_product(*layer, scale) for layer in layers))
  rank = a.shape[-1]

  def read() -> np.ndarray:
    product = a.reshape(-1, rank) @ (scale * b.reshape(rank, -1))
    return kernel.read().astype(np.float32) + product.reshape(kernel.shape)

  return Tensor(kernel.shape, np.dtype(np.float32), read)
