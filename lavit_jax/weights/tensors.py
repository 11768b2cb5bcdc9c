"""Tensors that are read when they are needed, and the safetensors files they lie in.

A `Tensor` knows its shape and dtype and how to read itself; a `Stack` is one tensor per
layer. Trees of them stand where arrays would, so that a model passes through memory
one tensor at a time.

A safetensors file is u64 header length | JSON header | bytes. It is read here, not
mapped into memory: a mapped 5 GB file counts as 5 GB of memory once it is read.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np

from lavit_jax.core import sharding
from lavit_jax.weights import sums

DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "I64": np.dtype(np.int64),
  "I32": np.dtype(np.int32),
  "I16": np.dtype(np.int16),
  "I8": np.dtype(np.int8),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
WEIGHTS = ("float32", "bfloat16", "float16")  # what a weight may be stored as
MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor that is read when asked for.

  Attributes:
    shape: its shape.
    dtype: its dtype.
    read: returns the array.
    read_part: returns array[slices] of a tuple of slices without reading the rest;
      None where that is not possible.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]
  read_part: Callable[[tuple[slice, ...]], np.ndarray] | None = None

  @property
  def nbytes(self) -> int:
    """Its size."""
    return math.prod(self.shape) * self.dtype.itemsize

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    """Reads it, for `np.asarray`."""
    del copy
    array = self.read()
    return array if dtype is None else array.astype(dtype, copy=False)


@dataclasses.dataclass(frozen=True)
class Stack:
  """Tensors of equal shape, one per layer; stands for the stacked array.

  Attributes:
    layers: the tensors.
  """

  layers: tuple[Tensor, ...]

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the stacked array."""
    return (len(self.layers), *self.layers[0].shape)

  @property
  def dtype(self) -> np.dtype:
    """dtype of the first layer."""
    return self.layers[0].dtype

  def __getitem__(self, layer: int) -> Tensor:
    """One layer."""
    return self.layers[layer]

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    """Reads all layers."""
    del copy
    stacked = np.stack([layer.read() for layer in self.layers])
    return stacked if dtype is None else stacked.astype(dtype, copy=False)


def of_array(array: Any) -> Tensor:
  """A Tensor around a numpy or jax array, fetched when it is read."""
  read = lambda: np.asarray(sharding.to_host(array), order="C")
  return Tensor(tuple(array.shape), np.dtype(array.dtype), read)


def layer_of(leaf: Any, layer: int | None) -> Tensor:
  """One layer of a leaf, or the whole leaf when `layer` is None, as a Tensor.

  A jax array is sliced when it is read, so that one layer at a time leaves the device.
  """
  if isinstance(leaf, Stack) and layer is not None:
    return leaf.layers[layer]
  if isinstance(leaf, Stack):
    return Tensor(leaf.shape, leaf.dtype, lambda: np.asarray(leaf))
  if isinstance(leaf, Tensor) and layer is None:
    return leaf
  if layer is None:
    return of_array(leaf)
  read = lambda: np.asarray(sharding.to_host(leaf[layer]), order="C")
  return Tensor(tuple(leaf.shape[1:]), np.dtype(leaf.dtype), read)


def cast(tensor: Tensor, dtype: str | None) -> Tensor:
  """The tensor in another dtype; None leaves it as it is."""
  if dtype is None or tensor.dtype == np.dtype(dtype):
    return tensor
  wanted = np.dtype(dtype)
  return Tensor(tensor.shape, wanted, lambda: tensor.read().astype(wanted))


def open_safetensors(path: str | os.PathLike) -> dict[str, Tensor]:
  """Reads the header of a safetensors file.

  Args:
    path: the file.

  Returns:
    Its tensors by key.

  Raises:
    ValueError: the file is cut short, or its header contradicts itself.
  """
  path = pathlib.Path(path)
  header, start = _header(path)
  end, found = 0, {}
  entries = [(key, entry) for key, entry in header.items() if key != "__metadata__"]
  try:
    entries.sort(key=lambda pair: pair[1]["data_offsets"])
    for key, entry in entries:
      first, last = entry["data_offsets"]
      dtype = DTYPES.get(entry["dtype"])
      if dtype is None:
        raise _broken(path, f"the tensor {key} of dtype {entry['dtype']!r}")
      shape = tuple(int(size) for size in entry["shape"])
      right = min(shape, default=0) >= 0 and first == end
      if not right or last - first != math.prod(shape) * dtype.itemsize:
        raise _broken(path, f"the tensor {key} with bytes that do not fit its shape")
      place = (path, start + first, dtype, shape)
      read_part = functools.partial(_read_part, *place)
      found[key] = Tensor(shape, dtype, functools.partial(_read, *place), read_part)
      end = last
  except (KeyError, TypeError, AttributeError) as error:
    raise _broken(path, "a header that describes no tensors") from error
  size = path.stat().st_size
  if size != start + end:
    raise _broken(path, f"{size} bytes instead of {start + end}")
  return found


def _broken(path: pathlib.Path, got: str) -> ValueError:
  return ValueError(
    f"expected a whole safetensors file {path}, got {got}; download or copy it again"
  )


def _header(path: pathlib.Path) -> tuple[dict[str, Any], int]:
  """The parsed header and where the tensors begin."""
  try:
    with path.open("rb") as stream:
      size = int.from_bytes(stream.read(8), "little")
      if not 2 <= size <= min(MAX_HEADER_BYTES, path.stat().st_size - 8):
        raise _broken(path, "a file that ends inside its header")
      header = json.loads(stream.read(size), object_pairs_hook=_unique)
  except OSError as error:
    raise _broken(path, f"none that can be read ({error.strerror})") from error
  except _Twice as error:
    raise _broken(path, f"the key {error.args[0]} twice") from error
  except (ValueError, RecursionError) as error:
    if "expected a whole" in str(error):
      raise
    raise _broken(path, "a header that is not JSON") from error
  if not isinstance(header, dict):
    raise _broken(path, "a header that describes no tensors")
  return header, 8 + size


class _Twice(Exception):
  """A key that a header or an index holds twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """JSON objects whose keys are unique; json itself would keep the last."""
  found = {}
  for key, value in pairs:
    if key in found:
      raise _Twice(key)
    found[key] = value
  return found


def _read(path, start: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
  size = math.prod(shape) * dtype.itemsize
  flat = np.fromfile(path, np.uint8, size, offset=start)
  if flat.size != size:
    raise _broken(path, f"only {flat.size} of {size} bytes of a tensor")
  return flat.view(dtype).reshape(shape)


def _read_part(path, start: int, dtype, shape, slices) -> np.ndarray:
  if not math.prod(shape):
    return np.zeros(shape, dtype)[slices]
  return np.array(np.memmap(path, dtype, "r", start, shape)[slices])


@dataclasses.dataclass(frozen=True)
class Checksums:
  """Checksums of a file, computed while it was written.

  Attributes:
    sha256: SHA-256 in hexadecimal.
    blocks: its `sums.BlockSum`, which loading compares.
  """

  sha256: str
  blocks: str


def write_safetensors(
  path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Any = None
) -> Checksums:
  """Writes a file tensor by tensor, and flushes it to the disk.

  The next tensor is read and transformed while one is hashed and written.

  Args:
    path: the file.
    tensors: what to write.
    metadata: strings by name for the header, e.g. {"format": "pt"}.

  Returns:
    The file's checksums.
  """
  keys = _in_order(tensors)
  text = _header_of({key: tensors[key] for key in keys}, metadata)
  digest, blocks = hashlib.sha256(), sums.BlockSum()
  with open(path, "wb", buffering=0) as stream, ThreadPoolExecutor(1) as flusher:
    flushing = flusher.submit(int)
    for piece in (len(text).to_bytes(8, "little"), text):
      stream.write(piece)
      digest.update(piece)
      blocks.update(piece)
    for array in read_ahead(tensors[key] for key in keys):
      piece = memoryview(array.reshape(-1).view(np.uint8))
      digest.update(piece)
      blocks.update(piece)
      _write(stream, piece)
      # The disk works while the next tensor is made, not only at the end.
      if flushing.done():
        flushing = flusher.submit(os.fdatasync, stream.fileno())
    flushing.result()
    os.fsync(stream.fileno())
  return Checksums(digest.hexdigest(), blocks.hexdigest())


def _header_of(tensors: Mapping[str, Tensor], metadata: Any) -> bytes:
  """The JSON header of tensors that lie one after the other."""
  header, offset = {"__metadata__": dict(metadata)} if metadata else {}, 0
  for key, tensor in tensors.items():
    name = NAMES.get(tensor.dtype)
    if name is None:
      raise ValueError(f"expected {key} as one of {list(DTYPES)}, got {tensor.dtype}")
    spread = [offset, offset + tensor.nbytes]
    header[key] = {"dtype": name, "shape": list(tensor.shape), "data_offsets": spread}
    offset += tensor.nbytes
  text = json.dumps(header, separators=(",", ":")).encode()
  return text + b" " * (-len(text) % 8)


def _write(stream: Any, piece: memoryview) -> None:
  """Writes all of a piece: one call takes at most 2 GB."""
  while len(piece):
    piece = piece[stream.write(piece) :]


def _in_order(tensors: Mapping[str, Tensor]) -> list[str]:
  """Wide types first: that keeps every tensor of a file aligned to its item size."""
  return sorted(tensors, key=lambda key: -tensors[key].dtype.itemsize)


def read_all(tensors: Mapping[str, Tensor]) -> None:
  """Reads tensors in the order in which another host writes them."""
  for key in _in_order(tensors):
    tensors[key].read()


def read_ahead(tensors: Iterable[Tensor]) -> Iterator[np.ndarray]:
  """Reads tensors in order, one ahead of the consumer."""
  with ThreadPoolExecutor(1) as pool:
    waiting = None
    for tensor in tensors:
      coming = pool.submit(_checked, tensor)
      if waiting is not None:
        yield waiting.result()
      waiting = coming
    if waiting is not None:
      yield waiting.result()


def _checked(tensor: Tensor) -> np.ndarray:
  """Reads a tensor and makes sure that it is what was announced."""
  array = np.asarray(tensor.read(), order="C")
  if array.shape != tensor.shape or array.dtype != tensor.dtype:
    raise ValueError(
      f"expected a tensor {tensor.dtype}{list(tensor.shape)}, got"
      f" {array.dtype}{list(array.shape)}; the file changed while it was read"
    )
  return array
