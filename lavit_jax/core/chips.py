"""TPU chips: what each kind computes, holds and moves.

Figures are Google's published ones for bfloat16; links one way. Memory is what libtpu
0.0.42.1 lets a program use ("exceeds available HBM (15.75G)").
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of chip.

  Attributes:
    name: e.g. "v5e".
    flops: peak bfloat16 FLOP/s.
    memory: bytes of HBM that a program may use.
    bandwidth: HBM bytes/s.
    link: bytes/s of one inter-chip link, one way.
    dims: dimensions of the torus.
    wrap: a ring closes along an axis whose size is a multiple of this; in a 3-D torus
      only where every axis is, since optical switches join whole cubes.
    clock: Hz, to read the compiler's cycles.
    cores: TensorCores that its product name counts per chip.
    product: product name, e.g. "v5litepod".
    software: runtime version of its virtual machines.
    layouts: shape that a number of chips has by default.
  """

  name: str
  flops: float
  memory: float
  bandwidth: float
  link: float
  dims: int
  wrap: int
  clock: float
  cores: int
  product: str
  software: str
  layouts: dict[int, tuple[int, ...]]


CUBES = {
  4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4),
  128: (4, 4, 8), 256: (4, 8, 8), 512: (8, 8, 8), 1024: (8, 8, 16), 2048: (8, 16, 16),
}  # fmt: skip
SQUARES = {
  1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8),
  128: (8, 16), 256: (16, 16),
}  # fmt: skip

CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      "v4", 275e12, 30.75 * 2**30, 1.2e12, 45e9, 3, 4, 1.05e9, 2, "v4",
      "tpu-ubuntu2204-base", CUBES,
    ),
    Chip(
      "v5e", 197e12, 15.75 * 2**30, 0.81e12, 50e9, 2, 16, 1.5e9, 1, "v5litepod",
      "v2-alpha-tpuv5-lite", SQUARES,
    ),
    Chip(
      "v5p", 459e12, 95.74 * 2**30, 2.8e12, 100e9, 3, 4, 1.75e9, 2, "v5p",
      "v2-alpha-tpuv5", CUBES,
    ),
    Chip(
      "v6e", 918e12, 31.25 * 2**30, 1.6e12, 100e9, 2, 16, 1.75e9, 1, "v6e",
      "v2-alpha-tpuv6e", SQUARES,
    ),
  )
}  # fmt: skip
