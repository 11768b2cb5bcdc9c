"""Every kind of picture that people have, sound and broken, with what becomes of it."""

import dataclasses
import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 40, 30
KEPT = "kept"


@dataclasses.dataclass(frozen=True)
class Case:
  """One picture.

  Attributes:
    data: its bytes.
    outcome: "kept", or the reason why it is not.
    size: width and height, upright.
    values: what the first row must be, None for anything.
  """

  data: bytes
  outcome: str = KEPT
  size: tuple[int, int] = (WIDTH, HEIGHT)
  values: tuple[int, ...] | None = None


def save(image: Image.Image, form: str, **options) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, form, **options)
  return buffer.getvalue()


def smooth() -> Image.Image:
  coarse = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
  resample = Image.Resampling.BICUBIC
  return Image.fromarray(coarse).resize((WIDTH, HEIGHT), resample)


def exif(orientation: int) -> Image.Exif:
  found = Image.Exif()
  found[0x0112] = orientation
  return found


def png_chunk(data: bytes, kind: bytes, content: bytes) -> bytes:
  """Puts a chunk behind a PNG's header."""
  check = struct.pack(">I", zlib.crc32(kind + content))
  chunk = struct.pack(">I", len(content)) + kind + content + check
  return data[:33] + chunk + data[33:]


def ramp(dtype, values) -> np.ndarray:
  return np.repeat(np.array([values], dtype), 20, 0).repeat(4, 1)


RAMP = (0, 65, 130, 190, 255)  # each four pixels wide
RAMP_SIZE = (20, 20)


def pgm(most: int, values: tuple[int, ...]) -> bytes:
  form = ">u2" if most > 255 else "u1"
  return f"P5\n20 20\n{most}\n".encode() + ramp(form, values).tobytes()


def of_ramp(data: bytes) -> Case:
  return Case(data, KEPT, RAMP_SIZE, RAMP)


def deep() -> dict[str, Case]:
  """Pictures of more than eight bits."""
  wide = tuple(v * 257 for v in RAMP)
  tiff = lambda dtype, values: save(Image.fromarray(ramp(dtype, values)), "TIFF")
  unknown = lambda data: Case(data, "a picture of unknown depth", RAMP_SIZE)
  rgb16 = np.repeat(ramp(">u2", wide)[..., None], 3, 2)
  return {
    "16-bit PNG": of_ramp(save(Image.fromarray(ramp(np.uint16, wide)), "PNG")),
    "16-bit TIFF": of_ramp(tiff(np.uint16, wide)),
    "16-bit PGM": of_ramp(pgm(65535, wide)),
    "PGM of 1000 steps": of_ramp(pgm(1000, (0, 255, 510, 745, 1000))),
    "PGM of 8 bits": of_ramp(pgm(255, RAMP)),
    "16-bit PPM": of_ramp(b"P6 20 20 65535\n" + rgb16.tobytes()),
    "ASCII PGM": of_ramp(
      b"P2 20 20 255\n" + b" ".join(b"%d" % v for v in ramp(int, RAMP).ravel())
    ),
    "float TIFF to 1": of_ramp(tiff(np.float32, tuple(v / 255 for v in RAMP))),
    "float TIFF to 255": of_ramp(tiff(np.float32, RAMP)),
    "float TIFF to 65535": of_ramp(tiff(np.float32, wide)),
    "integer TIFF to 255": of_ramp(tiff(np.int32, RAMP)),
    "integer TIFF to 65535": of_ramp(tiff(np.int32, wide)),
    "float TIFF, not numbers": unknown(tiff(np.float32, (0, 1, np.nan, 2, 3))),
    "float TIFF, below zero": unknown(tiff(np.float32, (-9, 1, 2, 3, 4))),
    "integer TIFF to millions": unknown(tiff(np.int32, (0, 1, 2, 3, 9_000_000))),
    "PFM": of_ramp(
      b"Pf\n20 20\n-1.0\n" + (ramp("<f4", RAMP) / np.float32(255)).tobytes()
    ),
  }


def turned() -> dict[str, Case]:
  """Pictures with EXIF tags, sound and broken."""
  image, junk = smooth(), b"Exif\0\0II*\0\xff\xff\xff\xffnonsense"
  png, upright = save(image, "PNG"), (HEIGHT, WIDTH)
  found = {
    f"{form} turned by {n}": Case(
      save(image, form, exif=exif(n)), KEPT, upright if n > 4 else (WIDTH, HEIGHT)
    )
    for form in ("JPEG", "PNG", "WEBP")
    for n in (3, 6)
  }
  return found | {
    "JPEG turned by 5": Case(save(image, "JPEG", exif=exif(5)), KEPT, upright),
    "TIFF turned by 8": Case(save(image, "TIFF", exif=exif(8)), KEPT, upright),
    "JPEG turned by 99": Case(save(image, "JPEG", exif=exif(99))),
    "JPEG with broken EXIF": Case(save(image, "JPEG", exif=junk)),
    "PNG with broken EXIF": Case(png_chunk(png, b"eXIf", junk[6:])),
    "PNG with empty EXIF": Case(png_chunk(png, b"eXIf", b"")),
    "PNG with EXIF of text": Case(png_chunk(png, b"eXIf", b"II*\0no tags at all")),
    "WebP with broken EXIF": Case(save(image, "WEBP", exif=junk)),
  }


def formats() -> dict[str, Case]:
  """Sound pictures of many formats and modes."""
  image = smooth()
  frames = {"save_all": True, "append_images": [Image.new("RGB", image.size)]}
  plain = ("BMP", "DIB", "PPM", "TIFF", "JPEG2000", "PCX", "TGA", "SGI", "QOI", "DDS")
  found = {form: Case(save(image, form)) for form in (*plain, "AVIF", "ICO")}
  found["ICO"] = Case(save(image, "ICO", sizes=[(40, 30)]))
  return found | {
    "JPEG": Case(save(image, "JPEG")),
    "JPEG of gray": Case(save(image.convert("L"), "JPEG")),
    "JPEG of CMYK": Case(save(image.convert("CMYK"), "JPEG")),
    "JPEG, progressive": Case(save(image, "JPEG", progressive=True)),
    "JPEG with bytes behind": Case(save(image, "JPEG") + b"\0" * 99 + b"more"),
    "JPEG with a comment": Case(save(image, "JPEG", comment=b"\xff\xfe\0")),
    "several JPEGs": Case(save(image, "MPO", save_all=True, append_images=[image])),
    "PNG of a palette": Case(save(image.convert("P"), "PNG")),
    "PNG, palette clear": Case(save(image.convert("P"), "PNG", transparency=3)),
    "PNG with alpha": Case(save(image.convert("RGBA"), "PNG")),
    "PNG, gray and alpha": Case(save(image.convert("LA"), "PNG")),
    "PNG of one bit": Case(save(image.convert("1"), "PNG")),
    "PNG, animated": Case(save(image, "PNG", **frames)),
    "GIF": Case(save(image, "GIF")),
    "GIF, animated": Case(save(image, "GIF", **frames)),
    "WebP": Case(save(image, "WEBP")),
    "WebP without loss": Case(save(image, "WEBP", lossless=True)),
    "WebP, animated": Case(save(image, "WEBP", lossless=True, **frames)),
    "TIFF of LZW": Case(save(image, "TIFF", compression="tiff_lzw")),
    "TIFF of pages": Case(save(image, "TIFF", **frames)),
    "TIFF of CMYK": Case(save(image.convert("CMYK"), "TIFF")),
    "PBM": Case(save(image.convert("1"), "PPM")),
  }


def broken() -> dict[str, Case]:
  """What is no picture, or one that nobody can use."""
  noise = Image.fromarray(
    np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
  )
  jpeg, png = save(noise, "JPEG"), save(noise, "PNG")
  flipped = bytearray(png)
  flipped[len(png) // 2] ^= 255
  bomb = bytearray(save(Image.new("1", (8, 8)), "PNG"))
  bomb[16:24] = struct.pack(">II", 60_000, 60_000)
  bomb[29:33] = struct.pack(">I", zlib.crc32(bytes(bomb[12:29])))
  damaged, unknown = "a damaged picture", "no known picture format"
  return {
    "nothing": Case(b"", "a picture of zero bytes"),
    "a JPEG cut in half": Case(jpeg[: len(jpeg) // 2], damaged),
    "a PNG cut in half": Case(png[: len(png) // 2], damaged),
    "a PNG with a flipped byte": Case(bytes(flipped), damaged),
    "a GIF cut to its header": Case(save(smooth(), "GIF")[:20], unknown),
    "a JPEG of its first bytes": Case(jpeg[:12], damaged),
    "a web page": Case(b"<!DOCTYPE html><html>404</html>", unknown),
    "an SVG": Case(b"<svg xmlns='http://www.w3.org/2000/svg'/>", unknown),
    "an address": Case(b"https://example.com/a.jpg", unknown),
    "zeros": Case(bytes(5000), unknown),
    "a bomb": Case(bytes(bomb), "a picture too large", (60_000, 60_000)),
    "a pixel": Case(
      save(Image.new("RGB", (1, 1)), "PNG"), "a picture too small", (1, 1)
    ),
    "a line": Case(
      save(Image.new("RGB", (90, 13)), "JPEG"), "a picture too small", (90, 13)
    ),
  }


def cases() -> dict[str, Case]:
  return deep() | turned() | formats() | broken()


def pillow(data: bytes) -> str:
  """What Pillow does alone: "reads", or the name of its error."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
      with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB").load()
      return "reads"
    except Exception as error:  # whatever it raises is the answer
      return type(error).__name__
