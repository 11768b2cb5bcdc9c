"""Pictures on the host: encoded bytes -> u8[size, size, 3], exactly as LaVIT sees them.

The reference squashes every picture to a square with Pillow's bicubic filter, without
crop and without keeping the aspect ratio. Normalization happens on the device.
"""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lavit_jax.data import bad

RESIZE_VERSION = "pillow-bicubic-squash-1"
MAX_PIXELS = 100_000_000
MIN_EDGE = 14  # of a picture worth preparing: one patch of the encoder
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


def resize(array: np.ndarray, size: int) -> np.ndarray:
  """Squashes a picture to a square with the bicubic filter.

  Args:
    array: u8[H, W, 3].
    size: edge of the result; a picture of that size is returned unchanged.

  Returns:
    u8[size, size, 3].
  """
  if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
    raise ValueError(
      f"expected a picture u8[H, W, 3], got {array.dtype}{list(array.shape)}; "
      "convert it to 8-bit RGB first"
    )
  if array.shape[:2] == (size, size):
    return array
  image = Image.fromarray(array).resize((size, size), Image.Resampling.BICUBIC)
  return np.asarray(image)


def to_rgb(image: Image.Image) -> Image.Image:
  """Converts any Pillow image to RGB; transparency is laid over white."""
  if image.mode in ("I;16", "I;16L", "I;16B"):  # Pillow would clip, not scale
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
  if "A" in image.getbands() or "transparency" in image.info:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    image = Image.alpha_composite(white, image)
  return image.convert("RGB")


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
  """Opens an encoded picture without decoding it; whatever fails is a BadRecord."""
  if not data:
    raise bad.BadRecord("a picture of zero bytes")
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
      width, height = image.size
      if width * height > MAX_PIXELS:
        raise bad.BadRecord(
          "a picture too large", f"{width}x{height} exceeds {MAX_PIXELS} pixels"
        )
      yield image
  except bad.BadRecord:
    raise
  except Image.DecompressionBombError as error:
    raise bad.BadRecord("a picture too large", str(error)) from error
  except UnidentifiedImageError as error:
    detail = f"expected one of {', '.join(FORMATS)}, got {len(data)} other bytes"
    raise bad.BadRecord("no known picture format", detail) from error
  except Exception as error:  # Pillow raises many types, all mean an unreadable file
    detail = f"{len(data)} bytes do not decode: {error}"
    raise bad.BadRecord("a damaged picture", detail) from error


def _upright(image: Image.Image) -> Image.Image:
  """Decodes an opened picture: its first frame, turned by its EXIF tag, in RGB."""
  ImageOps.exif_transpose(image, in_place=True)
  return image if image.mode == "RGB" else to_rgb(image)


def check(data: bytes, least: int = MIN_EDGE) -> tuple[int, int]:
  """Finds out whether `decode` can read a picture, several times faster.

  A JPEG is decoded at an eighth of its size, which still reads its whole stream.

  Args:
    data: encoded picture.
    least: smallest edge in pixels.

  Returns:
    Width and height, before any EXIF rotation.

  Raises:
    BadRecord: the picture cannot be used.
  """
  with _opened(data) as image:
    size = image.size
    if min(size) < least:
      detail = f"{size[0]}x{size[1]}, expected edges of {least} or more"
      raise bad.BadRecord("a picture too small", detail)
    image.draft(None, (1, 1))
    _upright(image).load()
  return size


def decode_full(data: bytes) -> np.ndarray:
  """Decodes an encoded picture at its own size.

  Args:
    data: encoded picture (JPEG, PNG, WebP, GIF, BMP, TIFF or PPM).

  Returns:
    u8[H, W, 3], upright (EXIF orientation applied), first frame only.

  Raises:
    BadRecord: the bytes are no such picture, are cut short, or are too large.
  """
  with _opened(data) as image:
    return np.asarray(_upright(image))


def decode(data: bytes, size: int) -> np.ndarray:
  """Decodes and squashes a picture; equal to `resize(decode_full(data), size)`.

  Args:
    data: encoded picture.
    size: edge of the result.

  Returns:
    u8[size, size, 3].

  Raises:
    BadRecord: as `decode_full`.
  """
  with _opened(data) as image:
    whole = _upright(image)
    if whole.size != (size, size):
      whole = whole.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(whole)


def encode(array: np.ndarray) -> bytes:
  """Encodes u8[H, W, 3] as PNG, without loss."""
  buffer = io.BytesIO()
  Image.fromarray(array).save(buffer, format="PNG")
  return buffer.getvalue()
