"""The analytic FLOPs of a function: the matrix products of its trace, by shape.

The trace is taken before any compiler sees it. Loops count as often as they turn and
what no result needs counts nothing. The whole mesh does this work once: a device's
share is the sum over its devices, and what a compiled program does beyond that share
was replicated.

There are two counts. `flops` is comparable to what a compiler counts: named
rematerialization counts as what it recomputes, and kernels are left out. `model_flops`
is what MFU means, of a plan as of a run: nothing is counted twice because it was not
kept, and attention counts in full, without what masks or segments let a kernel skip.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.interpreters import partial_eval

# Where `jax.checkpoint` puts what it computes again.
AGAIN = "rematted_computation"
# Products of queries by keys in each attention kernel, what they recompute left out.
KERNEL_PRODUCTS = {"fwd": 2, "dq": 1, "dkv": 3}


def flops(closed_jaxpr: Any) -> float:
  """FLOPs of a traced function (`jax.jit(f).trace(...).jaxpr`), kernels left out."""
  return _walk(_live(closed_jaxpr), _as_compiled)


def model_flops(closed_jaxpr: Any) -> float:
  """FLOPs of the same without any recomputation, and with attention in full."""
  return _walk(_live(closed_jaxpr), _of_model)


def _live(closed_jaxpr: Any) -> Any:
  jaxpr = closed_jaxpr.jaxpr
  return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def _walk(jaxpr: Any, count: Callable[[Any], float]) -> float:
  return sum(count(equation) for equation in jaxpr.eqns)


def _as_compiled(equation: Any) -> float:
  if equation.primitive.name == "pallas_call":
    return 0.0
  return _equation(equation, _as_compiled)


def _of_model(equation: Any) -> float:
  if AGAIN in str(equation.source_info.name_stack):
    return 0.0
  if equation.primitive.name == "pallas_call":
    return _attention(equation)
  return _equation(equation, _of_model)


def _attention(kernel: Any) -> float:
  """FLOPs of a splash attention kernel as if nothing were masked.

  Queries [.., heads, T, H] and keys [.., heads, S, H] are its first floating operands.
  """
  sizes = [
    variable.aval.shape
    for variable in kernel.invars
    if len(variable.aval.shape) >= 3 and variable.aval.dtype.kind not in "iub"
  ]
  parts = kernel.params["name"].split("_")
  if "splash" not in parts or len(sizes) < 2:
    return 0.0
  passes = next(n for part, n in KERNEL_PRODUCTS.items() if part in parts)
  return 2.0 * passes * math.prod(sizes[0]) * sizes[1][-2]


def _equation(equation: Any, count: Callable[[Any], float]) -> float:
  """FLOPs of an equation, those inside it by `count`."""
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    depth = math.prod(left[i] for i in contracted)
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * depth
  if name == "conv_general_dilated":
    return _convolution(equation)
  inner = [_walk(jaxpr, count) for jaxpr in _inner(params)]
  if name == "cond":
    return max(inner)
  times = params["length"] if name == "scan" else 1
  if name == "shard_map":
    times = math.prod(params["mesh"].shape.values())  # every device runs the body
  return times * sum(inner)


def _convolution(equation: Any) -> float:
  """Taps that fall on data: as of a compiled convolution."""
  params, numbers = equation.params, equation.params["dimension_numbers"]
  left, kernel = (variable.aval.shape for variable in equation.invars)
  out = equation.outvars[0].aval.shape
  # Each spec names two axes, batch and feature or features out and in, then the space.
  steps = zip(
    [kernel[axis] for axis in numbers.rhs_spec[2:]],
    [out[axis] for axis in numbers.out_spec[2:]],
    [left[axis] for axis in numbers.lhs_spec[2:]],
    params["window_strides"],
    [before for before, _ in params["padding"]],
    params["lhs_dilation"],
    params["rhs_dilation"],
  )
  pairs = math.prod(pairs_on_data(*step) for step in steps)
  depth = kernel[numbers.rhs_spec[1]]  # already per feature group
  batch, features = (out[axis] for axis in numbers.out_spec[:2])
  return 2.0 * pairs * batch * features * depth


def _inner(params: dict[str, Any]) -> list[Any]:
  """The jaxprs that an equation calls; rules of differentiation are no calls."""
  found = []
  for name, value in params.items():
    if name.endswith(("_thunk", "jvp_jaxpr_fun", "bwd", "fwd")):
      continue
    for one in value if isinstance(value, (tuple, list)) else (value,):
      one = getattr(one, "jaxpr", one)
      if hasattr(one, "eqns"):
        found.append(one)
  return found


@functools.cache
def pairs_on_data(
  window: int, outputs: int, inputs: int, stride: int, pad: int, spread: int, gap: int
) -> int:
  """Pairs of output position and window tap that fall on data, not on padding."""
  extent = (inputs - 1) * spread + 1
  taps = np.arange(window) * gap - pad
  count = 0
  for start in range(0, outputs, 1024):
    rows = np.arange(start, min(start + 1024, outputs))[:, None] * stride
    place = rows + taps
    count += int(((place >= 0) & (place < extent) & (place % spread == 0)).sum())
  return count
