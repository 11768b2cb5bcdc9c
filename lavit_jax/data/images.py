"""Pictures on the host: encoded bytes -> u8[size, size, 3], exactly as LaVIT sees them.

The reference squashes every picture to a square with Pillow's bicubic filter, without
crop and without keeping the aspect ratio. Normalization happens on the device.
"""

import io

import numpy as np
from PIL import Image, ImageOps

RESIZE_VERSION = "pillow-bicubic-squash-1"
MAX_PIXELS = 100_000_000
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


def decode_full(data: bytes) -> np.ndarray:
  """Decodes an encoded picture at its own size.

  Args:
    data: encoded picture (JPEG, PNG, WebP, GIF, BMP, TIFF or PPM).

  Returns:
    u8[H, W, 3], upright (EXIF orientation applied), first frame only.

  Raises:
    ValueError: the bytes are no such picture, are cut short, or are too large.
  """
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
      width, height = image.size
      if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} exceeds {MAX_PIXELS} pixels")
      return np.asarray(to_rgb(ImageOps.exif_transpose(image)))
  except Exception as error:  # Pillow raises many types, all mean an unreadable file
    raise ValueError(
      f"expected an encoded picture, got {len(data)} bytes that do not decode "
      f"({error}); replace or drop this record"
    ) from error


def decode(data: bytes, size: int) -> np.ndarray:
  """Decodes and squashes a picture.

  Args:
    data: encoded picture.
    size: edge of the result.

  Returns:
    u8[size, size, 3].
  """
  return resize(decode_full(data), size)


def encode(array: np.ndarray) -> bytes:
  """Encodes u8[H, W, 3] as PNG, without loss."""
  buffer = io.BytesIO()
  Image.fromarray(array).save(buffer, format="PNG")
  return buffer.getvalue()
