"""FLOPs of the matrix products of a compiled program.

On a TPU every product is a convolution, often with windows padded far beyond the data:
only positions that fall on data are counted. A multiply and an add are two FLOPs.
"""

import math

from lavit_jax.core import traced_flops
from lavit_jax.planning import program
from lavit_jax.planning.program import Computation, Instruction

# The compiler's own kernels: softmax and the product that follows it, and all of
# attention, which comes without a name. Kernels of ours have other names.
OWN_KERNELS = ("online-softmax", "")


def flops(computation: Computation, instruction: Instruction) -> int:
  """FLOPs of one product, 0 of anything else."""
  if instruction.opcode == "dot":
    return _dot(computation, instruction)
  if instruction.opcode == "convolution":
    return _convolution(computation, instruction)
  target = instruction.attribute(r'custom_call_target="([^"]*)"')
  if target == "tpu_custom_call" and instruction.op_name in OWN_KERNELS:
    return _attention(computation, instruction)
  return 0


def _attention(computation: Computation, kernel: Instruction) -> int:
  """Of scores [.., Q, S] and values [.., S, H]: one product, after the softmax.

  Of queries [.., Q, H], keys and values [.., S, H] two.
  """
  names = range(len(kernel.operands))
  sizes = [_sizes(computation.operand_shape(kernel, i)) for i in names]
  if len(sizes) == 2:
    return 2 * math.prod(sizes[0]) * sizes[1][-1]
  if len(sizes) == 3 and sizes[1] == sizes[2]:
    return 4 * math.prod(sizes[0]) * sizes[1][-2]
  return 0


def _sizes(shape: str) -> tuple[int, ...]:
  return program.dims(shape)[0][1]


def _dot(computation: Computation, dot: Instruction) -> int:
  left = _sizes(computation.operand_shape(dot, 0))
  contracted = dot.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
  depth = math.prod(left[int(i)] for i in contracted.split(",") if i)
  return 2 * math.prod(_sizes(dot.shape)) * depth


def _convolution(computation: Computation, conv: Instruction) -> int:
  labels = conv.attribute(r"dim_labels=(\w+->\w+)").replace("->", "_").split("_")
  left, kernel, out = labels
  inputs = _sizes(computation.operand_shape(conv, 0))
  weights = _sizes(computation.operand_shape(conv, 1))
  outputs = _sizes(conv.shape)
  window = conv.attribute(r"window=\{([^}]*)\}") or ""
  fields = dict(part.split("=") for part in window.split())
  spatial = sorted(c for c in out if c.isdigit())

  def field(name: str, default: str) -> list[str]:
    return fields[name].split("x") if name in fields else [default] * len(spatial)

  steps = zip(
    spatial,
    field("size", "1"),
    field("stride", "1"),
    field("pad", "0_0"),
    field("lhs_dilate", "1"),
    field("rhs_dilate", "1"),
  )
  pairs = 1
  for axis, size, stride, pad, spread, gap in steps:
    pairs *= traced_flops.pairs_on_data(
      int(size),
      outputs[out.index(axis)],
      inputs[left.index(axis)],
      int(stride),
      int(pad.split("_")[0]),
      int(spread),
      int(gap),
    )
  depth = weights[kernel.index("i")]  # already per feature group
  return 2 * pairs * outputs[out.index("b")] * outputs[out.index("f")] * depth
