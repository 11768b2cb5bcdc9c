"""TPU chips and pod slices: what they hold, how they are named, how they are created.

Figures are Google's published ones for bfloat16; links one way. Memory is what libtpu
0.0.42.1 lets a program use ("exceeds available HBM (15.75G)"). Two spellings are
accepted: the shape, "v5p:4x4x4", and the product name, where v4 and v5p count
TensorCores ("v5p-128" has 64 chips) and v5e and v6e count chips ("v5e-64").
"""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax


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
# Between slices: 200 Gbit/s of network for each virtual machine of four chips.
NETWORK = 200e9 / 8 / 4


@dataclasses.dataclass(frozen=True)
class Topology:
  """A number of equal slices.

  Attributes:
    chip: the kind of chip.
    shape: chips along each dimension of one slice.
    slices: number of slices.
  """

  chip: Chip
  shape: tuple[int, ...]
  slices: int = 1

  @property
  def chips(self) -> int:
    """Chips of all slices."""
    return math.prod(self.shape) * self.slices

  @property
  def rings(self) -> tuple[bool, ...]:
    """Along which dimensions of a slice the links close to a ring."""
    closed = tuple(size % self.chip.wrap == 0 for size in self.shape)
    return closed if self.chip.dims == 2 else (all(closed),) * self.chip.dims

  def __str__(self) -> str:
    shape = f"{self.chip.name}:{'x'.join(map(str, self.shape))}"
    return shape if self.slices == 1 else f"{self.slices} slices of {shape}"


def parse(name: str, slices: int = 1) -> Topology:
  """Reads "v5p:4x4x4", "v5p-128", "v5e-64" or "v5litepod-64".

  Raises:
    ValueError: says which names exist.
  """
  kinds = {chip.product: chip for chip in CHIPS.values()} | CHIPS
  found = re.fullmatch(r"(\w+)(?::([\dx]+)|-(\d+))", name)
  if not found or found.group(1) not in kinds:
    raise ValueError(
      f"unknown topology {name!r}; expected a chip of {sorted(CHIPS)} and a shape or"
      " size, such as v5p:4x4x4, v5p-128 (64 chips) or v5e-64"
    )
  chip = kinds[found.group(1)]
  if slices < 1:
    raise ValueError(f"expected at least one slice, got {slices}; set --slices=1")
  if found.group(2):
    shape = tuple(int(n) for n in found.group(2).split("x") if n)
    if len(shape) != chip.dims:
      raise ValueError(
        f"topology {name!r} has {len(shape)} dimensions but {chip.name} is a"
        f" {chip.dims}-D torus; write it like"
        f" {chip.name}:{'x'.join('4' * chip.dims)}"
      )
    return Topology(chip, shape, slices)
  chips, rest = divmod(int(found.group(3)), chip.cores)
  if rest or chips not in chip.layouts:
    sizes = [count * chip.cores for count in chip.layouts]
    raise ValueError(
      f"{chip.name} has no slice of size {found.group(3)}; sizes are {sizes}"
      f"{' (TensorCores, two per chip)' if chip.cores == 2 else ' (chips)'}"
    )
  return Topology(chip, chip.layouts[chips], slices)


def devices(topology: Topology) -> list[Any]:
  """Descriptions of the devices of a pod that need not exist.

  Raises:
    ValueError: libtpu is missing, or knows no such slice.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      "planning needs libtpu, the TPU compiler, and it is not installed; run"
      " enter_environment tpu of launch/environment.sh, or in the repository's root"
      " pip install --editable '.[tpu]' (Linux x86-64, no TPU needed)"
    )
  from jax.experimental import topologies

  shape = "x".join(map(str, topology.shape))
  # The compiler assumes open ends unless told; without rings it cannot gather along a
  # whole cube and adds up padded copies instead.
  options: dict[str, Any] = {"wrap": (*topology.rings, False)[:3]}
  if topology.slices > 1:
    options["num_slices"] = topology.slices
  if topology.chip.name == "v4":
    options["chip_config_name"] = "megacore"  # one device per chip, as on the pod
  try:
    described = topologies.get_topology_desc(
      platform="tpu", topology_name=f"{topology.chip.name}:{shape}", **options
    )
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).split(": ", 1)[-1].splitlines()[0]
    raise ValueError(
      f"libtpu knows no slice {topology} ({reason}); choose one of"
      f" {['x'.join(map(str, s)) for s in topology.chip.layouts.values()]}"
    ) from error
  return list(described.devices)


def without_chips() -> None:
  """Sets the process up to compile for chips that are not there.

  Must run before jax touches a backend.
  """
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server to ask
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # plans may run side by side
  jax.config.update("jax_platforms", "cpu")


def create_command(topology: Topology, name: str = "lavit") -> str:
  """The command that asks Google Cloud for the pod."""
  chip, size = topology.chip, math.prod(topology.shape)
  if topology.shape == chip.layouts.get(size):
    kind = f"--accelerator-type={chip.product}-{size * chip.cores}"
  else:
    shape = "x".join(map(str, topology.shape))
    kind = f"--type={chip.product} --topology={shape}"
  nodes = f"--node-id={name}"
  if topology.slices > 1:
    nodes = f"--node-count={topology.slices} --node-prefix={name}"
  return (
    f"gcloud compute tpus queued-resources create {name} {nodes} --zone=$ZONE"
    f" --project=$PROJECT {kind} --runtime-version={chip.software}"
  )


def bandwidth(topology: Topology, places: list[tuple[int, ...]]) -> float:
  """Bytes/s that a chip can send inside a group of chips.

  Every dimension that the group spans gives one link, or two where its ring closes;
  between slices there is the network alone.

  Args:
    topology: the pod.
    places: (slice, *coordinates) of each member.
  """
  spans = [len(set(axis)) for axis in zip(*places)]
  if spans[0] > 1:
    return NETWORK
  chip, links = topology.chip, 0
  for span, size, closed in zip(spans[1:], topology.shape, topology.rings):
    if span > 1:
      links += 2 if span == size and closed else 1
  return chip.link * max(links, 1)
