"""The analytic FLOPs of a function: the matrix products of its trace, by shape.

The trace is taken before any compiler sees it. Loops count as often as they turn, named
rematerialization counts as what it recomputes, and what no result needs counts nothing.
The whole mesh does this work once: a device's share is the sum over its devices, and
what a compiled program does beyond that share was replicated or recomputed.
"""

import math
from typing import Any

from jax.interpreters import partial_eval

from lavit_jax.planning import products


def flops(closed_jaxpr: Any) -> float:
  """FLOPs of a traced function (`jax.jit(f).trace(...).jaxpr`), kernels left out."""
  jaxpr = closed_jaxpr.jaxpr
  live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return _walk(live)


def _walk(jaxpr: Any) -> float:
  return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> float:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    depth = math.prod(left[i] for i in contracted)
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * depth
  if name == "conv_general_dilated":
    return _convolution(equation)
  if name == "pallas_call":
    return 0.0
  inner = [_walk(jaxpr) for jaxpr in _inner(params)]
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
  pairs = math.prod(products.pairs_on_data(*step) for step in steps)
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
