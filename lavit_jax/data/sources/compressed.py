"""Compressed files, read as the plain ones that they hold."""

import bz2
import gzip
import importlib.util
import io
import lzma
import os
import tempfile
from typing import BinaryIO

from lavit_jax.data import bad

SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".tgz")
CHUNK = 1 << 20


def packed(path: str) -> bool:
  """Whether a file is compressed, by its name."""
  return path.lower().endswith(SUFFIXES)


def plain(path: str, raw: BinaryIO) -> BinaryIO:
  """Opens what a compressed file holds, to be read in order."""
  suffix = os.path.splitext(path.lower())[1]
  if suffix == ".zst":
    return _zstandard(raw)
  if suffix == ".bz2":
    return bz2.BZ2File(raw)
  if suffix == ".xz":
    return lzma.LZMAFile(raw)
  return gzip.GzipFile(fileobj=raw)


def _zstandard(raw: BinaryIO) -> BinaryIO:
  if importlib.util.find_spec("pyarrow") is None:
    raise ValueError(
      "expected the package pyarrow, which reads .zst files, got none; install it or"
      " unpack them with zstd -d"
    )
  import pyarrow

  source = pyarrow.PythonFile(raw, mode="r")
  return io.BufferedReader(_Readable(pyarrow.CompressedInputStream(source, "zstd")))


class _Readable(io.RawIOBase):
  """An Arrow stream as a raw stream of Python."""

  def __init__(self, stream):
    self.stream = stream

  def readable(self) -> bool:
    """Always."""
    return True

  def readinto(self, buffer) -> int:
    """Fills a buffer as far as it goes."""
    data = self.stream.read(len(buffer))
    buffer[: len(data)] = data
    return len(data)


def failure(error: Exception, where: str) -> tuple[bad.BadRecord, str]:
  """What a reading error means: the bad record, and whether the file was cut."""
  short = isinstance(error, EOFError) or "runcated" in str(error)
  return bad.BadRecord("a damaged compressed file", f"{where}: {error}"), (
    "surely" if short else ""
  )


def unpacked(path: str, raw: BinaryIO) -> tuple[BinaryIO, Exception | None]:
  """Unpacks a file to a temporary one that can be read at any place.

  Returns:
    The temporary file, and what went wrong behind its last byte, if anything.
  """
  file, source = tempfile.TemporaryFile(), plain(path, raw)
  try:
    while (
      data := source.read1(CHUNK) if hasattr(source, "read1") else source.read(CHUNK)
    ):
      file.write(data)
  except (OSError, EOFError, lzma.LZMAError, ValueError) as error:
    file.flush()
    file.seek(0)
    return file, error
  file.seek(0)
  return file, None
