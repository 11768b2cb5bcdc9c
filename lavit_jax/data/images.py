"""Pictures on the host: encoded bytes -> u8[size, size, 3], exactly as LaVIT sees them.

The reference squashes every picture to a square with Pillow's bicubic filter, without
crop and without keeping the aspect ratio. Normalization happens on the device.
"""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

from lavit_jax.data import bad

RESIZE_VERSION = "pillow-bicubic-squash-1"
MAX_PIXELS = 178_956_970  # above it Pillow refuses a picture too
MIN_EDGE = 14  # of a picture worth preparing: one patch of the encoder
# Pillow's formats but those that run other programs; TGA is last: it has no mark.
FORMATS = (
  *("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000"),
  *("ICO", "PCX", "QOI", "SGI", "DDS", "TGA"),
)
ORIENTATION = 0x0112  # EXIF tag
TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
JPEG_QUALITY = 95  # of a picture that is stored smaller than it came


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
  """Converts any Pillow image to RGB; transparency is laid over white.

  Raises:
    BadRecord: a deep or float picture whose white is not known.
  """
  if image.mode == "F" or image.mode.startswith("I"):
    return Image.fromarray(_eight_bits(image)).convert("RGB")
  if "A" in image.getbands() or "transparency" in image.info:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    image = Image.alpha_composite(white, image)
  return image.convert("RGB")


def _eight_bits(image: Image.Image) -> np.ndarray:
  """Scales one deep or float channel to u8[H, W]; Pillow would clip it.

  White is 65535 in 16 bits, or what a TIFF states; of wider integers and floats it is
  the least of 1 (floats only), 255 and 65535 that no value exceeds.
  """
  values = np.asarray(image)
  if image.mode.startswith("I;16") or image.format == "PPM" and image.mode == "I":
    stated = getattr(image, "tag_v2", {}).get(258, (16,))  # bits of a sample
    bits = stated[0] if isinstance(stated, tuple) else stated
    return (values >> (max(bits, 8) - 8 if bits < 16 else 8)).clip(0, 255).astype("u1")
  least, most = float(values.min()), float(values.max())
  whites = (1, 255, 65535) if image.mode == "F" else (255, 65535)
  white = next((w for w in whites if most <= w), None)
  if white is None or not least >= 0:
    detail = f"values from {least:g} to {most:g}; scale them to 0..255 first"
    raise bad.BadRecord("a picture of unknown depth", detail)
  return np.rint(values * (255 / white)).astype(np.uint8)


def upright(image: Image.Image) -> Image.Image:
  """Turns a picture by its EXIF tag; a tag that cannot be read turns nothing."""
  turn = TURNS.get(_orientation(image))
  if turn is None:
    return image
  turned = image.transpose(turn)
  turned.format, turned.tag_v2 = image.format, getattr(image, "tag_v2", {})
  return turned


def _orientation(image: Image.Image) -> int:
  try:
    return int(image.getexif().get(ORIENTATION, 1))
  except Exception:  # broken EXIF raises many types; the pixels may be sound
    return 1


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
  """Opens an encoded picture without decoding it; whatever fails is a BadRecord."""
  if not data:
    raise bad.BadRecord("a picture of zero bytes")
  try:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
      width, height = image.size
      if width * height > MAX_PIXELS:
        raise bad.LeftOut(
          "a picture too large", f"{width}x{height} exceeds {MAX_PIXELS} pixels"
        )
      yield image
  except bad.BadRecord:
    raise
  except Image.DecompressionBombError as error:
    raise bad.LeftOut("a picture too large", str(error)) from error
  except UnidentifiedImageError as error:
    detail = f"expected one of {', '.join(FORMATS)}, got {len(data)} other bytes"
    raise bad.BadRecord("no known picture format", detail) from error
  except Exception as error:  # Pillow raises many types, all mean an unreadable file
    detail = f"{len(data)} bytes do not decode: {error}"
    raise bad.BadRecord("a damaged picture", detail) from error


def _decoded(image: Image.Image) -> Image.Image:
  """Decodes an opened picture: its first frame, turned by its EXIF tag, in RGB."""
  image.load()  # a PNG may hold its EXIF tag behind the pixels
  image = upright(image)
  return image if image.mode == "RGB" else to_rgb(image)


def upright_size(data: bytes) -> tuple[int, int]:
  """Width and height of a picture as `decode_full` returns it, from its header."""
  with _opened(data) as image:
    # Pillow turns a TIFF by itself when it loads it, and states the turned size.
    turned = image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8)
    return image.size[::-1] if turned else image.size


def check(data: bytes, least: int = MIN_EDGE) -> tuple[int, int]:
  """Finds out whether `decode` can read a picture, several times faster.

  A JPEG is decoded at an eighth of its size, which still reads its whole stream.

  Args:
    data: encoded picture.
    least: smallest edge in pixels.

  Returns:
    Width and height, upright.

  Raises:
    BadRecord: the picture cannot be used.
  """
  with _opened(data) as image:
    size = image.size
    if min(size) < least:
      detail = f"{size[0]}x{size[1]}, expected edges of {least} or more"
      raise bad.LeftOut("a picture too small", detail)
    image.draft(None, (1, 1))
    _decoded(image).load()
    return size[::-1] if _orientation(image) in (5, 6, 7, 8) else size


def decode_full(data: bytes) -> np.ndarray:
  """Decodes an encoded picture at its own size.

  Args:
    data: encoded picture, of one of FORMATS.

  Returns:
    u8[H, W, 3], upright (EXIF orientation applied), first frame only.

  Raises:
    BadRecord: the bytes are no such picture, are cut short, or are too large.
  """
  with _opened(data) as image:
    return np.asarray(_decoded(image))


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
    whole = _decoded(image)
    if whole.size != (size, size):
      whole = whole.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(whole)


def encode(array: np.ndarray) -> bytes:
  """Encodes u8[H, W, 3] as PNG, without loss."""
  buffer = io.BytesIO()
  Image.fromarray(array).save(buffer, format="PNG")
  return buffer.getvalue()


def shrink(data: bytes, longest: int) -> bytes:
  """Encodes a picture again whose longer edge exceeds `longest`; others stay as is.

  A JPEG stays one, at a quality that hides the loss; all others become PNG.
  """
  with _opened(data) as image:
    if max(image.size) <= longest:
      return data
    form = "JPEG" if image.format in ("JPEG", "MPO") else "PNG"
    whole = _decoded(image)
    scale = longest / max(whole.size)
    size = [max(1, round(edge * scale)) for edge in whole.size]
    buffer, options = io.BytesIO(), {}
    if form == "JPEG":
      options = {"quality": JPEG_QUALITY, "subsampling": 0}
    small = whole.resize(size, Image.Resampling.BICUBIC)
    small.info = {}  # no EXIF tag may turn it a second time
    small.save(buffer, form, **options)
    return buffer.getvalue()
