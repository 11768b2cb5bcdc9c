"""Parameters with named axes, and the linear maps made of them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lavit_jax.core.contraction import contract
from lavit_jax.layers import lookup


@flax.struct.dataclass
class Named(nn.meta.AxisMetadata):
  """A parameter boxed with the logical names of its axes, inside `init` only."""

  value: Any
  names: tuple[str | None, ...] = flax.struct.field(pytree_node=False)

  def unbox(self):
    """The bare array."""
    return self.value

  def replace_boxed(self, val):
    """The same names around another value."""
    return self.replace(value=val)

  def add_axis(self, index, params):
    """Adds the layer axis that `nn.scan` stacks on."""
    names = list(self.names)
    names.insert(index, params[nn.meta.PARTITION_NAME])
    return self.replace(names=tuple(names))

  def remove_axis(self, index, params):
    """Removes the layer axis inside `nn.scan`."""
    names = list(self.names)
    del names[index]
    return self.replace(names=tuple(names))


def param(
  module: nn.Module,
  name: str,
  init: Callable,
  shape: Sequence[int],
  axes: Sequence[str | None],
) -> jax.Array:
  """Makes a float32 parameter whose axes carry logical names."""

  def boxed(key):
    return Named(init(key, tuple(shape), jnp.float32), tuple(axes))

  return module.param(name, boxed)


def split_boxes(boxed: Any) -> tuple[Any, Any]:
  """Splits an initialized (or abstract) tree into bare arrays and axis names."""
  is_box = lambda leaf: isinstance(leaf, Named)
  values = jax.tree.map(lambda box: box.value, boxed, is_leaf=is_box)
  axes = jax.tree.map(lambda box: box.names, boxed, is_leaf=is_box)
  return values, axes


def abstract_params(init: Callable, *args: Any) -> tuple[Any, Any]:
  """Evaluates `init(key, *args)` without memory: abstract arrays and axis names.

  Must run outside `jax.set_mesh`.
  """
  boxed = jax.eval_shape(init, jax.random.key(0), *args)["params"]
  return split_boxes(boxed)


def fan_in(num_inputs: int) -> Callable:
  """Normal with variance 1 / fan-in: about 0.02 at full width, trainable when tiny."""
  return nn.initializers.normal(num_inputs**-0.5)


def low_rank(equation: str, x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
  """The map of a kernel `a @ b`, without making it.

  Args:
    equation: as in `Einsum`, without the letter r.
    x: dtype[...] input.
    a: dtype[*inputs, r], the kernel's contracted axes first.
    b: dtype[r, *outputs].

  Returns:
    dtype[...] as the equation's output.
  """
  operands, output = equation.split("->")
  x_axes, kernel_axes = operands.split(",")
  inputs = "".join(axis for axis in kernel_axes if axis in x_axes)
  outputs = kernel_axes.removeprefix(inputs)
  kept = x_axes.removesuffix(inputs)
  between = contract(f"{x_axes},{inputs}r->{kept}r", x, a)
  return contract(f"{kept}r,r{outputs}->{output}", between, b)


def add_shared(x: jax.Array, shared: jax.Array) -> jax.Array:
  """Adds to every row what all of them share: a bias, positions, a time.

  The sum is rounded once, and the gradient of what is shared, a sum over thousands of
  rows, is added up in float32: in bfloat16 it would stand still after a few hundred.

  Args:
    x: dtype[..., D].
    shared: float[..., D], broadcast to the shape of `x`.

  Returns:
    dtype[..., D].
  """
  return (x.astype(jnp.float32) + shared).astype(x.dtype)


class Einsum(nn.Module):
  """A linear map written as its einsum equation.

  Beside its kernel there may be the low-rank adapter that finetuning adds
  (`stages.adapters`): lora_a [*inputs, r] and lora_b [r, *outputs].

  Attributes:
    equation: e.g. "btd,dnh->btnh"; the kernel's contracted axes come first.
    shape: kernel shape.
    axes: logical name of each kernel axis.
    use_bias: adds a bias over the kernel's output axes.
    dtype: compute dtype.
  """

  equation: str
  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  use_bias: bool = False
  dtype: str = "bfloat16"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Applies the map: the shapes are those of the equation."""
    operands, output = self.equation.split("->")
    x_axes, kernel_axes = operands.split(",")
    inputs = [i for i, a in enumerate(kernel_axes) if a in x_axes]
    init = fan_in(math.prod([self.shape[i] for i in inputs]))
    kernel = param(self, "kernel", init, self.shape, self.axes)
    y = contract(self.equation, x.astype(self.dtype), kernel.astype(self.dtype))
    if self.has_variable("params", "lora_a"):
      pair = [self.get_variable("params", name) for name in ("lora_a", "lora_b")]
      y = y + low_rank(self.equation, *(z.astype(self.dtype) for z in (x, *pair)))
    if self.use_bias:
      outputs = [i for i in range(len(kernel_axes)) if i not in inputs]
      shape = [self.shape[i] for i in outputs]
      axes = [self.axes[i] for i in outputs]
      bias = param(self, "bias", nn.initializers.zeros, shape, axes)
      y = add_shared(y, bias)
    return y


def dense(
  num_inputs: int,
  num_outputs: int,
  axes: tuple[str | None, str | None] = ("embed", "mlp"),
  *,
  use_bias: bool = True,
  dtype: str = "bfloat16",
  name: str | None = None,
) -> Einsum:
  """The plain linear layer of a sequence, [B, T, D] to [B, T, F]."""
  return Einsum(
    "btd,df->btf", (num_inputs, num_outputs), axes, use_bias, dtype, name=name
  )


class Embed(nn.Module):
  """A table of vectors, split over fsdp along its vectors.

  Attributes:
    num_embeddings: rows.
    embed_dim: D.
    dtype: dtype of the looked-up vectors.
  """

  num_embeddings: int
  embed_dim: int
  dtype: str = "bfloat16"

  @nn.compact
  def __call__(self, ids: jax.Array) -> jax.Array:
    """Looks up int32[B, T] ids, giving dtype[B, T, D]."""
    table = param(
      self,
      "embedding",
      fan_in(self.embed_dim),
      (self.num_embeddings, self.embed_dim),
      lookup.TABLE_AXES,
    )
    return lookup.lookup(table, ids, self.dtype)
