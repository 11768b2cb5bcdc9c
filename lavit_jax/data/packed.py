"""Codes, keep masks and text ids as bytes, the same on every machine.

Codes are little-endian u16 and ids i32; keep bits have the first patch in the highest.
"""

import numpy as np


def pack_codes(codes: np.ndarray) -> bytes:
  """Codes [T] below 65,536 as little-endian u16 bytes."""
  return np.asarray(codes, "<u2").tobytes()


def unpack_codes(data: bytes) -> np.ndarray:
  """Little-endian u16 bytes as codes i32[T]."""
  return np.frombuffer(data, "<u2").astype(np.int32)


def pack_keep(keep: np.ndarray) -> bytes:
  """Keep mask bool[P] as ceil(P / 8) bytes, first patch in the highest bit."""
  return np.packbits(np.asarray(keep, bool), bitorder="big").tobytes()


def unpack_keep(data: bytes, patches: int) -> np.ndarray:
  """Inverse of `pack_keep`: bool[patches]; no bytes mean no picture."""
  bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="big")
  return np.resize(bits[:patches], patches).astype(bool)


def pack_ids(ids: np.ndarray) -> bytes:
  """Text ids [n] as little-endian i32 bytes."""
  return np.asarray(ids, "<i4").tobytes()


def unpack_ids(data: bytes) -> np.ndarray:
  """Little-endian i32 bytes as text ids i32[n]."""
  return np.frombuffer(data, "<i4").astype(np.int32)
