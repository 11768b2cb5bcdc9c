"""Mesh and shardings: one table from logical axis names to mesh axes.

Parameters name their logical axes where they are made (`layers.linear.param`);
activations name theirs at block borders (`constrain`). `RULES` is the only place
where a name meets a mesh axis, so that changing the parallelism changes no model; an
experiment may change rows of it (`rules`).
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MESH_AXES = ("data", "fsdp", "sequence", "tensor")

# The embedding table is split on one axis only: split on both, its gather makes XLA
# rematerialize the whole table. Pictures have no length to split: what encodes or draws
# them spreads them over `sequence` too, else its devices would repeat the work.
RULES: dict[str, tuple[str, ...]] = {
  "embed": ("fsdp",),
  "mlp": ("tensor",),
  "heads": ("tensor",),
  "kv_heads": ("tensor",),
  "vocab": ("tensor",),
  # The embedding table of a model that is served: only looked up, it may be split on.
  "served_embed": ("fsdp", "tensor"),
  "act_batch": ("data", "fsdp"),
  "act_data_batch": ("data",),
  "act_images": ("data", "fsdp", "sequence"),
  "act_length": ("sequence",),
  "act_heads": ("tensor",),
  "act_mlp": ("tensor",),
  "act_vocab": ("tensor",),
}


@contextlib.contextmanager
def rules(rows: Mapping[str, str]) -> Iterator[None]:
  """Rows of the table that hold inside, for programs that are traced there.

  Args:
    rows: mesh axes joined by "+" by logical name, as in "data+fsdp"; "none" keeps the
      dimension whole, "" leaves the row as it is.

  Raises:
    ValueError: a name or an axis that does not exist.
  """
  changed = {name: _row(name, row) for name, row in rows.items() if row}
  before = {name: RULES[name] for name in changed}
  RULES.update(changed)
  try:
    yield
  finally:
    RULES.update(before)


def _row(name: str, row: str) -> tuple[str, ...]:
  axes = () if row == "none" else tuple(row.split("+"))
  if name not in RULES or not set(axes) <= set(MESH_AXES):
    raise ValueError(
      f"expected config.rules to give one of {sorted(RULES)} some of {list(MESH_AXES)},"
      f" joined by +, or none; got {name} = {row!r}"
    )
  return axes


def resolve_mesh_shape(
  sizes: Mapping[str, int], num_devices: int, widths: Sequence[int] = ()
) -> dict[str, int]:
  """Fills the one -1 of a mesh request and checks it against the devices.

  An open `fsdp` takes the largest size that divides every width, and `data` what then
  is left: a width that fsdp does not divide would be whole on every device.

  Args:
    sizes: size by mesh axis; missing axes are 1, at most one is -1 ("the rest").
    num_devices: devices to spread over.
    widths: dimensions of the model that fsdp splits.

  Returns:
    Size of each axis in `MESH_AXES`, their product equal to `num_devices`.
  """
  unknown = sorted(set(sizes) - set(MESH_AXES))
  if unknown:
    raise ValueError(f"unknown mesh axes {unknown}; the axes are {list(MESH_AXES)}")
  shape = {axis: int(sizes.get(axis, 1)) for axis in MESH_AXES}
  open_axes = [axis for axis, size in shape.items() if size == -1]
  if len(open_axes) > 1 or any(size < 1 and size != -1 for size in shape.values()):
    raise ValueError(
      f"mesh {shape}: sizes must be positive, with at most one -1 for the rest"
    )
  fixed = math.prod(size for size in shape.values() if size != -1)
  divisors = [d for d in range(1, num_devices + 1) if num_devices % d == 0]
  if num_devices % fixed or (not open_axes and fixed != num_devices):
    raise ValueError(
      f"mesh {shape} needs {'a multiple of ' if open_axes else ''}{fixed} devices but"
      f" there are {num_devices}; axis sizes must multiply to {num_devices}, so choose"
      f" from {divisors} or set one axis to -1"
    )
  if open_axes:
    rest = num_devices // fixed
    taken = math.gcd(rest, *widths) if open_axes == ["fsdp"] else rest
    shape[open_axes[0]] = taken
    shape["data"] *= rest // taken
  return shape


def make_mesh(
  sizes: Mapping[str, int],
  devices: Sequence[Any] | None = None,
  widths: Sequence[int] = (),
) -> Mesh:
  """Builds the device mesh with axes `MESH_AXES` from sizes such as {"fsdp": -1}.

  Where the devices are those of several slices, `data` spans the slices: between them
  there is only the network, and gradients cross it once per micro-batch.
  """
  devices = jax.devices() if devices is None else devices
  shape = resolve_mesh_shape(sizes, len(devices), widths)
  slices = len({getattr(device, "slice_index", None) for device in devices})
  if slices > 1:
    return _mesh_of_slices(shape, slices, devices)
  kinds, sizes = (AxisType.Auto,) * len(MESH_AXES), tuple(shape.values())
  try:
    return jax.make_mesh(sizes, MESH_AXES, axis_types=kinds, devices=devices)
  except NotImplementedError:  # of v5e alone does it give an axis a part of a side
    arranged = mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
    return Mesh(arranged, MESH_AXES, axis_types=kinds)


def _mesh_of_slices(shape: dict[str, int], slices: int, devices: Sequence[Any]) -> Mesh:
  if shape["data"] % slices:
    raise ValueError(
      f"mesh axis data = {shape['data']} must be a multiple of the {slices} slices;"
      f" set --config.mesh.data={slices}"
    )
  inside = shape | {"data": shape["data"] // slices}
  between = dict.fromkeys(shape, 1) | {"data": slices}
  # An axis may take a part of a side of the torus, as on one slice: fsdp 64 of 16 x 16.
  arranged = mesh_utils.create_hybrid_device_mesh(
    tuple(inside.values()),
    tuple(between.values()),
    devices,
    allow_split_physical_axes=True,
  )
  return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def check_divides(mesh: Mesh, **counts: tuple[int, tuple[str, ...]]) -> None:
  """Checks that counts split evenly, e.g. `heads=(32, ("tensor",))`.

  Raises:
    ValueError: names the count, the mesh axes and the sizes that would divide.
  """
  for name, (count, axes) in counts.items():
    size = math.prod(mesh.shape[axis] for axis in axes)
    if count % size:
      sizes = [d for d in range(1, count + 1) if count % d == 0]
      raise ValueError(
        f"mesh axes {'*'.join(axes)} = {size} do not divide {name} = {count}; use a"
        f" mesh whose size is one of {sizes}, or change {name}"
      )


def partition_spec(axes: Sequence[str | None]) -> P:
  """The mesh axes of logically named dimensions, e.g. ("act_batch", None)."""
  return P(*(RULES.get(axis) if axis else None for axis in axes))


def is_partitioned() -> bool:
  """True inside `jax.set_mesh` of more than one device."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.size > 1


def platform() -> str:
  """What the devices of the mesh in use are, "tpu" or "cpu"; "" without a mesh.

  They need not be those of this process: programs are compiled for absent chips too.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device is not None else ""


def axis_size(name: str) -> int:
  """Devices that a logically named dimension is spread over; 1 without a mesh."""
  if not is_partitioned():
    return 1
  shape = jax.sharding.get_abstract_mesh().shape
  return math.prod(shape[axis] for axis in RULES[name])


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
  """Pins the sharding of an activation by logical names; identity without a mesh."""
  if not is_partitioned():
    return x
  return jax.lax.with_sharding_constraint(x, partition_spec(axes))


def dividing_spec(
  shape: Sequence[int], axes: Sequence[str | None], mesh: Any = None
) -> P:
  """As `partition_spec`, leaving whole what the mesh does not divide.

  Args:
    shape: of the array.
    axes: logical name of each dimension.
    mesh: the mesh; that of `jax.set_mesh` when None.
  """
  mesh = jax.sharding.get_abstract_mesh() if mesh is None else mesh
  entries = []
  for dim, axis in zip(shape, axes, strict=True):
    mesh_axes = RULES.get(axis, ()) if axis else ()
    size = math.prod(mesh.shape[a] for a in mesh_axes)
    entries.append(mesh_axes if mesh_axes and dim % size == 0 else None)
  return P(*entries)


def parameter_shardings(abstract: Any, axes: Any, mesh: Mesh) -> Any:
  """Shardings of a parameter tree.

  Args:
    abstract: tree of arrays or ShapeDtypeStructs.
    axes: the same tree with a tuple of logical names at each leaf
      (`layers.linear.split_boxes`).
    mesh: the mesh to spread over.

  Returns:
    The tree with a NamedSharding at each leaf.
  """
  return jax.tree.map(
    lambda leaf, names: NamedSharding(mesh, dividing_spec(leaf.shape, names, mesh)),
    abstract,
    axes,
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding that keeps a whole copy on each device."""
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over data and fsdp; later dimensions whole."""
  return NamedSharding(mesh, partition_spec(["act_batch"]))


def optimizer_shardings(abstract_state: Any, params: Any, shardings: Any) -> Any:
  """Shards optimizer state with its parameters.

  A leaf whose path ends with a parameter's path and that has its shape (moments, EMA,
  accumulators of any wrapped optimizer) takes that parameter's sharding; the rest is
  replicated.

  Args:
    abstract_state: `jax.eval_shape(tx.init, params)`.
    params: abstract parameter tree.
    shardings: NamedSharding tree of the parameters.

  Returns:
    A tree like `abstract_state` of NamedShardings.
  """
  shapes = {
    path: leaf.shape for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
  }
  by_path = dict(zip(shapes, jax.tree.leaves(shardings), strict=True))
  whole = replicated(next(iter(by_path.values())).mesh)

  def choose(path, leaf):
    for start in range(len(path)):
      if shapes.get(path[start:]) == leaf.shape:
        return by_path[path[start:]]
    return whole

  return jax.tree_util.tree_map_with_path(choose, abstract_state)


def to_host(x: Any) -> np.ndarray:
  """A whole copy of an array on every host; on several, all must ask together."""
  if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
    x = multihost_utils.process_allgather(x, tiled=True)
  return np.asarray(x)


def bytes_per_device(abstract: Any, shardings: Any) -> int:
  """Bytes that one device holds of a tree, counted from its shardings."""
  sizes = jax.tree.map(
    lambda leaf, s: (
      math.prod(s.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
    ),
    abstract,
    shardings,
  )
  return sum(jax.tree.leaves(sizes))


def replicated_arrays(abstract: Any, shardings: Any, over: int) -> dict[str, int]:
  """Paths and bytes of arrays above `over` bytes that every device holds whole."""
  leaves = jax.tree_util.tree_flatten_with_path(abstract)[0]
  found = {}
  for (path, leaf), s in zip(leaves, jax.tree.leaves(shardings), strict=True):
    size = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    if size > over and s.is_fully_replicated:
      found[jax.tree_util.keystr(path, simple=True, separator="/")] = size
  return found
