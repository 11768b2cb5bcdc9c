"""Files that data name by a path: found below their folder, or where a flag says."""

import base64
import binascii
import os
from typing import Any, BinaryIO

from etils import epath

from lavit_jax.data import bad

MAX_BYTES = 100_000_000  # of one picture or line
ENCODED = ("/9j/", "iVBOR", "R0lGOD", "UklGR", "Qk")  # base64 of JPEG, PNG, GIF, WebP


def open_input(path: str) -> BinaryIO:
  """Opens a file of the source, from a bucket too; a vanished file is a user error."""
  try:
    return epath.Path(path).open("rb")
  except OSError as error:
    raise ValueError(
      f"expected the input file {path}, got {error.strerror or error}; check the input"
      " and run the same command again"
    ) from error


def picture(root: str, image_root: str, value: Any) -> bytes:
  """Reads the picture that a value of JSON names or holds.

  Args:
    root: folder of the data file.
    image_root: folder given for the pictures, or "".
    value: a path, a data URL, base64, or a list or object with one of them.

  Raises:
    BadRecord: there is none, or it cannot be read.
  """
  if isinstance(value, (list, tuple)):
    if len(value) > 1:
      raise bad.LeftOut("a row of several pictures", f"{len(value)}")
    value = value[0] if value else None
  if isinstance(value, dict):
    names = ("bytes", "path", "url", "image", "image_url", "file_name")
    value = next((value[name] for name in names if value.get(name)), None)
    if isinstance(value, dict):
      value = value.get("url")
  if value is None or value == "":
    raise bad.LeftOut("a row without picture", "its field is empty")
  if not isinstance(value, str):
    raise bad.BadRecord("a row without picture", f"got {str(value)[:50]!r} as path")
  if value.startswith("data:"):
    return _decoded(value.partition(",")[2])
  if len(value) > 200 and value.startswith(ENCODED):
    return _decoded(value)
  if value.startswith(("http://", "https://")):
    raise bad.LeftOut("a picture by its address only", value)
  if image_root:
    return _below(image_root, value.removeprefix("file://"))
  return read_below(root, value.removeprefix("file://"))


def _decoded(text: str) -> bytes:
  try:
    return base64.b64decode("".join(text.split()), validate=True)
  except (binascii.Error, ValueError) as error:
    raise bad.BadRecord("a broken line", f"base64: {error}") from error


def _below(image_root: str, name: str) -> bytes:
  """Reads a path below a folder; its first steps may be another machine's."""
  steps = [step for step in name.replace("\\", "/").split("/") if step not in ("", ".")]
  if steps and steps[0].endswith(":"):
    steps = steps[1:]
  for first in range(len(steps)):
    below = "/".join(steps[first:])
    if not escapes(below) and (epath.Path(image_root) / below).exists():
      return read_below(image_root, below)
  raise bad.BadRecord("a missing file", f"{name}: not below {image_root}")


def read_below(root: str, name: str) -> bytes:
  """Reads a file that data names.

  Args:
    root: folder that must hold the file.
    name: path relative to it, or an absolute one inside it.

  Raises:
    BadRecord: the path leaves the folder, is missing, or holds too much.
  """
  inside = os.path.abspath(root or ".") + "/"
  if name.startswith(inside) and ".." not in name.split("/"):
    name = name[len(inside) :]
  if escapes(name):
    detail = f"{name}; --image_root names the folder of the pictures"
    raise bad.BadRecord("a path outside its folder", detail)
  path = epath.Path(root) / name
  try:
    size = path.stat().length
    if size > MAX_BYTES:
      raise bad.LeftOut("a file too large", f"{name} of {size} bytes")
    return path.read_bytes()
  except OSError as error:
    raise bad.BadRecord("a missing file", f"{name}: {error.strerror}") from error
  except ValueError as error:
    if isinstance(error, bad.BadRecord):
      raise
    raise bad.BadRecord("a missing file", f"{name!r}: {error}") from error


def escapes(name: str) -> bool:
  """Whether a path inside data would leave the folder it is relative to."""
  steps = name.replace("\\", "/").split("/")
  return name.startswith(("/", "\\", "~")) or ".." in steps or ":" in steps[0]
