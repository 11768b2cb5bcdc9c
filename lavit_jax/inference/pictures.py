"""Pictures as callers give them, squashed as `prepare` and `tokenize` see them."""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from lavit_jax.data import images

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
    return images.decode(path.read_bytes(), size)
  if isinstance(picture, Image.Image):
    picture = np.asarray(images.to_rgb(images.upright(picture)))
  return images.resize(np.asarray(picture), size)


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
