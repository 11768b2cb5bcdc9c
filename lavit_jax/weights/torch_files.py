"""PyTorch `.bin` files: read without running anything they hold, and written.

This is the only module that imports torch, and only when a `.bin` is asked for.
"""

import os
import pathlib
import pickle
import tempfile
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from lavit_jax.weights import stand_ins
from lavit_jax.weights.tensors import Tensor, read_ahead

# What training programs wrap a state dict in.
WRAPPERS = ("state_dict", "model", "module")
NUMPY_NAMES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8")


def _torch(path: pathlib.Path) -> Any:
  try:
    import torch
  except ImportError as error:
    raise ValueError(
      f"{path} is a PyTorch file, which only torch reads and writes, and it is not"
      " installed; install it (pip install torch) or use safetensors files"
    ) from error
  return torch


def open_torch(path: str | os.PathLike) -> dict[str, Tensor]:
  """Opens a `.bin` of tensors; code inside the pickle is refused, not run.

  Args:
    path: the file; its tensors stay on the disk until they are read.

  Returns:
    Its tensors by key; a file that is one bare tensor has the key "".

  Raises:
    ValueError: torch is absent, or the file is damaged or holds more than tensors.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f"expected a file at {path}, found none; check the path")
  stand_ins.refuse(path)
  torch = _torch(path)
  loaded = _load(torch, path)
  if isinstance(loaded, torch.Tensor):
    return {"": _lazy(torch, path, "", loaded)}
  if isinstance(loaded, (list, tuple)) and len(loaded):
    return {"": _lazy(torch, path, "0", loaded[0])}
  for name in WRAPPERS:
    if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
      loaded = loaded[name]
  if not isinstance(loaded, Mapping):
    raise ValueError(
      f"expected tensors by name in {path}, got a {type(loaded).__name__}; give a file"
      " that holds a state dict"
    )
  return {str(key): _lazy(torch, path, key, value) for key, value in loaded.items()}


def _load(torch, path: pathlib.Path) -> Any:
  with path.open("rb") as stream:
    is_zip = stream.read(4) == b"PK\x03\x04"
  if is_zip and _is_program(path):
    raise ValueError(
      f"expected only tensors in {path}, got a TorchScript program, which is code;"
      " nothing of it was run; where you trust it, save its tensors by"
      " torch.save(torch.jit.load(FILE).state_dict(), OTHER), or get safetensors"
    )
  try:
    # Only the zip format of torch 1.6 and later can stay on the disk.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
  except pickle.UnpicklingError as error:
    raise ValueError(
      f"expected only tensors in {path}, got a pickle that asks for more and could run"
      " code; nothing of it was run; get the weights as safetensors"
    ) from error
  except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"expected a whole PyTorch file {path}, got one that cannot be read; download or"
      " copy it again"
    ) from error


def _is_program(path: pathlib.Path) -> bool:
  """True for an archive of `torch.jit.save`, such as OpenAI's own `ViT-L-14.pt`."""
  try:
    with zipfile.ZipFile(path) as archive:
      return any(name.endswith("/constants.pkl") for name in archive.namelist())
  except zipfile.BadZipFile:
    return False  # cut short: torch's own complaint follows


def _lazy(torch, path, key, value) -> Tensor:
  if not isinstance(value, torch.Tensor):
    raise ValueError(
      f"expected a tensor for {key!r} in {path}, got a {type(value).__name__}; give a"
      " file that holds a state dict"
    )
  if value.layout != torch.strided or value.is_quantized:
    raise ValueError(
      f"expected a dense tensor for {key!r} in {path}, got a {value.layout} one of"
      f" {value.dtype}; use plain weights in float32, float16 or bfloat16"
    )
  value = value.detach()  # an nn.Parameter asks for gradients
  name = str(value.dtype).removeprefix("torch.")
  if name == "bfloat16":
    dtype = np.dtype(ml_dtypes.bfloat16)
    read = lambda: value.contiguous().view(torch.int16).numpy().view(dtype)
  elif name in NUMPY_NAMES:
    dtype = np.dtype(name)
    read = lambda: value.contiguous().numpy()
  else:
    raise ValueError(
      f"expected plain numbers for {key!r} in {path}, got {value.dtype}; use weights in"
      " float32, float16 or bfloat16"
    )
  return Tensor(tuple(value.shape), dtype, read)


def write_torch(path: str | os.PathLike, tensors: Mapping[str, Tensor]) -> None:
  """Writes a `.bin`; the single key "" writes a bare tensor.

  torch.save wants all tensors at once: they go through a scratch file beside the
  target that is mapped into memory, so that the system may drop what is written.

  Args:
    path: the file.
    tensors: what to write.
  """
  path = pathlib.Path(path)
  torch = _torch(path)
  with tempfile.TemporaryFile(dir=path.parent) as scratch:
    for array in read_ahead(tensors.values()):
      scratch.write(memoryview(array.reshape(-1).view(np.uint8)))
    scratch.flush()
    offset, state = 0, {}
    for key, tensor in tensors.items():
      state[key] = _mapped(torch, scratch, offset, tensor)
      offset += tensor.nbytes
    with path.open("wb") as stream:
      torch.save(state[""] if set(state) == {""} else state, stream)
      stream.flush()
      os.fsync(stream.fileno())


def _mapped(torch, scratch, offset: int, tensor: Tensor) -> Any:
  """A torch tensor over bytes of the scratch file."""
  if not tensor.nbytes:
    array = np.zeros(tensor.shape, tensor.dtype)
  else:
    array = np.memmap(scratch, tensor.dtype, "c", offset, tensor.shape)
  if tensor.dtype == np.dtype(ml_dtypes.bfloat16):
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
  return torch.from_numpy(np.asarray(array))
