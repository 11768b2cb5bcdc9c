"""The one contraction that every linear map uses, in the form its hardware prefers."""

import math

import jax
import jax.numpy as jnp

from lavit_jax.core import sharding


def contract(
  equation: str, x: jax.Array, kernel: jax.Array, dtype: str | None = None
) -> jax.Array:
  """`jnp.einsum(equation, x, kernel)` for a kernel whose first axes are contracted.

  On one device it runs as a product of two matrices: with more axes the weight
  gradient contracts two of them and leaves the fast path of XLA on CPU (4 x slower).
  Across devices the einsum stays, since merged axes cannot keep their shardings.

  Args:
    equation: e.g. "btd,dnh->btnh"; shared letters end x and begin the kernel.
    x: dtype[...] input.
    kernel: dtype[...] weights.
    dtype: dtype of the sums and the result; that of `x` when None.

  Returns:
    The product, with the kernel's free axes last. Float32 operands are multiplied in
    full float32, also where the hardware's default would round them.
  """
  precision = "highest" if x.dtype == jnp.float32 else None
  options = dict(precision=precision, preferred_element_type=dtype)
  if sharding.is_partitioned():
    return jnp.einsum(equation, x, kernel, **options)
  operands, _ = equation.split("->")
  x_axes, kernel_axes = operands.split(",")
  shared = "".join(a for a in kernel_axes if a in x_axes)
  if not (x_axes.endswith(shared) and kernel_axes.startswith(shared)):
    raise ValueError(f"contracted axes of {equation} must end x and begin the kernel")
  split = x.ndim - len(shared)
  rows = x.reshape(-1, math.prod(x.shape[split:]))
  matrix = kernel.reshape(rows.shape[1], -1)
  product = jnp.matmul(rows, matrix, **options)
  return product.reshape(x.shape[:split] + kernel.shape[len(shared) :])
