"""The devices that a finished model is spread over.

Weights that are read once per step want the memory of all devices at once: so `tensor`
takes as many as every head count allows, and `data` what is left.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from lavit_jax.core import sharding
from lavit_jax.weights import model_directory

# Which parts have heads that `tensor` must divide, and the fields that count them.
HEADS = {
  "vit": ("num_heads",),
  "visual_tokenizer": ("num_heads",),
  "llama": ("num_heads", "num_kv_heads"),
}


def parse(axes: Sequence[str]) -> dict[str, int]:
  """Reads mesh sizes such as ["data=-1", "tensor=2"]; what is left goes to data."""
  try:
    sizes = {name: int(size) for name, size in (axis.split("=") for axis in axes)}
  except ValueError as error:
    raise ValueError(
      f"expected a mesh such as data=-1,tensor=2, got {','.join(axes)}; name each axis"
      " with a number"
    ) from error
  return _filled(sizes)


def _filled(sizes: Mapping[str, int]) -> dict[str, int]:
  """The same with what is left on data, unless another axis takes it."""
  return {"data": -1} | dict(sizes) if -1 not in sizes.values() else dict(sizes)


def heads_of(folder: str) -> dict[str, int]:
  """The head counts of a model directory, as "part_field"."""
  parts = model_directory.read_manifest(folder)["parts"]
  return {
    f"{part}_{field}": parts[part]["config"][field]
    for part, fields in HEADS.items()
    if part in parts
    for field in fields
  }


def sizes_for(
  heads: Mapping[str, int], batch_size: int, devices: int
) -> dict[str, int]:
  """Mesh sizes for so many devices: all, unless the batch does not divide the rest.

  Args:
    heads: head counts by name.
    batch_size: requests per program call.
    devices: how many there are.
  """
  tensor = math.gcd(devices, *heads.values())
  return {"data": math.gcd(devices // tensor, batch_size), "tensor": tensor}


def make(folder: str, batch_size: int, sizes: Mapping[str, int] | None = None) -> Mesh:
  """The mesh of this host's devices for a model directory.

  Args:
    folder: model directory.
    batch_size: requests per program call.
    sizes: as asked for, what is left goes to data; None spreads over all devices, but
      those of a CPU share one processor and its memory, so that one is taken.

  Raises:
    ValueError: the mesh does not divide the heads or the batch.
  """
  devices: Sequence[Any] = jax.local_devices()
  if sizes is None:
    if devices[0].platform == "cpu":
      devices = devices[:1]
    sizes = sizes_for(heads_of(folder), batch_size, len(devices))
    devices = devices[: math.prod(sizes.values())]
  mesh = sharding.make_mesh(_filled(sizes), devices)
  return checked(mesh, folder, batch_size)


def checked(mesh: Mesh, folder: str, batch_size: int) -> Mesh:
  """The mesh, if it divides the heads of a model directory and the batch."""
  heads = {name: (count, ("tensor",)) for name, count in heads_of(folder).items()}
  sharding.check_divides(mesh, batch_size=(batch_size, ("data", "fsdp")), **heads)
  return mesh
