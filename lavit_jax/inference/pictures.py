"""Pictures as callers give them, squashed as `prepare` and `tokenize` see them."""

import os
import pathlib
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from lavit_jax.data import images

SAMPLE = 65_536  # bytes of each end of a file that tell it from another
Picture = Image.Image | np.ndarray | str | pathlib.Path


def stack(given: Picture | Sequence[Picture], size: int) -> np.ndarray:
  """Squashes one or many pictures to uint8[n, size, size, 3]."""
  bare = isinstance(given, (Image.Image, str, pathlib.Path))
  if bare or (isinstance(given, np.ndarray) and given.ndim == 3):
    given = [given]
  pixels = [_squash(picture, size) for picture in given]
  return np.stack(pixels) if pixels else np.zeros((0, size, size, 3), np.uint8)


def _squash(picture: Picture, size: int) -> np.ndarray:
  if isinstance(picture, (str, pathlib.Path)):
    path = pathlib.Path(picture)
    if not path.is_file():
      raise ValueError(f"expected a picture at {path}, found no file; check the path")
    try:
      return images.decode(path.read_bytes(), size)
    except (ValueError, OSError) as error:
      raise ValueError(
        f"expected a picture at {path}, got one that cannot be read ({error});"
        " replace it or leave it out"
      ) from error
  if isinstance(picture, Image.Image):
    picture = np.asarray(images.to_rgb(images.upright(picture)))
  return images.resize(np.asarray(picture), size)


def stamp(path: str | pathlib.Path) -> str:
  """Tells a picture file from another by its size and a sample; "" if it is not there.

  Reading every byte again would double the traffic of a run that is resumed.
  """
  try:
    with open(path, "rb") as file:
      head = file.read(SAMPLE)
      size = file.seek(0, os.SEEK_END)
      file.seek(max(size - SAMPLE, 0))
      return f"{zlib.crc32(file.read(SAMPLE), zlib.crc32(head)):08x}-{size}"
  except (OSError, ValueError):
    return ""


def blanked(
  drawn: np.ndarray, checker: Callable[[np.ndarray], np.ndarray] | None
) -> np.ndarray:
  """Makes black what an image checker flags; without one nothing is checked.

  Args:
    drawn: uint8[n, H, W, 3].
    checker: tells of uint8[n, H, W, 3] which to blank, bool[n].

  Returns:
    uint8[n, H, W, 3].
  """
  if checker is None:
    return drawn
  flagged = np.asarray(checker(drawn), bool)
  if flagged.shape != (len(drawn),):
    raise ValueError(
      f"expected one flag for each of {len(drawn)} pictures from the image checker, got"
      f" {list(flagged.shape)}; return bool[n]"
    )
  return np.where(flagged[:, None, None, None], np.uint8(0), drawn)
