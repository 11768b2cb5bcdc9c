import io
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from lavit_jax.data import bad, images

GOLDEN = pathlib.Path(
  os.environ.get("LAVIT_GOLDEN", pathlib.Path(__file__).parents[1] / "golden")
)
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def encoded(image, form="PNG", **options):
  buffer = io.BytesIO()
  image.save(buffer, format=form, **options)
  return buffer.getvalue()


def noise(height, width):
  return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("name", ["0", "1", "2"])
def test_golden_preprocess(name):
  golden = np.load(GOLDEN / "preprocess.npz")
  size = int(golden["image_size"])
  pixels = images.resize(golden["in" + name], size)
  found = ((pixels / np.float32(255) - MEAN) / STD).transpose(2, 0, 1)
  np.testing.assert_allclose(found, golden["out" + name], atol=2e-5)


def test_decode_keeps_pixels_of_the_right_size():
  array = noise(16, 16)
  np.testing.assert_array_equal(images.decode(images.encode(array), 16), array)


def test_decode_squashes_without_crop():
  array = np.zeros((8, 32, 3), np.uint8)
  array[:, 16:] = 255
  pixels = images.decode(images.encode(array), 8)
  assert pixels.shape == (8, 8, 3)
  assert pixels[:, :3].max() < 20 and pixels[:, 5:].min() > 235


def test_transparency_is_white():
  clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
  assert (images.decode(encoded(clear), 4) == 255).all()


def test_gray_16_bit_is_scaled():
  gray = Image.fromarray(np.full((4, 4), 0x8000, np.uint16))
  assert (images.decode(encoded(gray), 4) == 0x80).all()


def test_exif_orientation_is_applied():
  array = np.zeros((4, 8, 3), np.uint8)
  array[:, :4] = 255
  exif = Image.Exif()
  exif[0x0112] = 6  # rotate by 90 degrees clockwise: left becomes top
  data = encoded(Image.fromarray(array), exif=exif)
  upright = images.decode_full(data)
  assert upright.shape == (8, 4, 3)
  assert (upright[:4] == 255).all() and (upright[4:] == 0).all()


@pytest.mark.parametrize(
  "cut,reason",
  [
    (lambda data: b"", "a picture of zero bytes"),
    (lambda data: b"nonsense", "no known picture format"),
    (lambda data: data[: len(data) // 2], "a damaged picture"),
    (lambda data: data[:-60], "a damaged picture"),
  ],
)
def test_bad_bytes_are_one_typed_error_with_its_reason(cut, reason):
  for form in ("PNG", "JPEG"):
    data = cut(encoded(Image.fromarray(noise(32, 32)), form))
    for read in (images.check, images.decode_full, lambda d: images.decode(d, 8)):
      with pytest.raises(bad.BadRecord, match="replace or drop") as caught:
        read(data)
      assert caught.value.reason == reason


def test_bombs_and_specks_are_refused_before_decoding(monkeypatch):
  speck = images.encode(noise(13, 40))
  with pytest.raises(bad.BadRecord, match="40x13"):
    images.check(speck)
  assert images.check(speck, 1) == (40, 13)
  assert images.decode(images.encode(noise(1, 1)), 8).shape == (8, 8, 3)
  monkeypatch.setattr(images, "MAX_PIXELS", 100)
  for read in (images.check, images.decode_full):
    with pytest.raises(bad.BadRecord, match="exceeds 100 pixels"):
      read(speck)
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own limit, twice that
  with pytest.raises(bad.BadRecord) as caught:
    images.check(speck)
  assert caught.value.reason == "a picture too large"


def every_mode():
  """Pictures of unusual kinds, by name."""
  rgb = Image.fromarray(noise(20, 30))
  frames = dict(save_all=True, append_images=[Image.new("RGB", (30, 20))])
  wide = Image.fromarray(np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16))
  return {
    "cmyk": encoded(rgb.convert("CMYK"), "JPEG"),
    "gray": encoded(rgb.convert("L"), "JPEG"),
    "progressive": encoded(rgb, "JPEG", progressive=True),
    "palette": encoded(rgb.convert("P")),
    "clear palette": encoded(rgb.convert("P"), transparency=3),
    "alpha": encoded(rgb.convert("RGBA")),
    "gray alpha": encoded(rgb.convert("LA")),
    "one bit": encoded(rgb.convert("1")),
    "16 bit": encoded(wide),
    "16 bit tiff": encoded(wide, "TIFF"),
    "float tiff": encoded(rgb.convert("F"), "TIFF"),
    "animated gif": encoded(rgb, "GIF", **frames),
    "animated webp": encoded(rgb, "WEBP", lossless=True, **frames),
    "animated png": encoded(rgb, "PNG", **frames),
    "bmp": encoded(rgb, "BMP"),
    "ppm": encoded(rgb, "PPM"),
  }


@pytest.mark.parametrize("kind", list(every_mode()))
def test_every_kind_of_picture_decodes_alike_on_both_ways(kind):
  data = every_mode()[kind]
  assert images.check(data) == (30, 20)
  whole = images.decode_full(data)
  assert whole.shape == (20, 30, 3) and whole.dtype == np.uint8 and whole.std() > 20
  np.testing.assert_array_equal(images.decode(data, 16), images.resize(whole, 16))


def test_first_frame_counts():
  for kind in ("animated webp", "animated png"):
    np.testing.assert_array_equal(images.decode_full(every_mode()[kind]), noise(20, 30))


def test_resize_refuses_other_arrays():
  with pytest.raises(ValueError, match="u8"):
    images.resize(np.zeros((4, 4, 3)), 2)
