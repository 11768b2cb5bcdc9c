import io
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from lavit_jax.data import images

GOLDEN = pathlib.Path(
  os.environ.get("LAVIT_GOLDEN", pathlib.Path(__file__).parent / "golden")
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


def test_bad_bytes_are_one_value_error(monkeypatch):
  data = images.encode(noise(32, 32))
  for bad in (b"", b"nonsense", data[: len(data) // 2]):
    with pytest.raises(ValueError, match="expected an encoded picture"):
      images.decode(bad, 8)
  monkeypatch.setattr(images, "MAX_PIXELS", 100)
  with pytest.raises(ValueError, match="exceeds 100 pixels"):
    images.decode(data, 8)


def test_resize_refuses_other_arrays():
  with pytest.raises(ValueError, match="u8"):
    images.resize(np.zeros((4, 4, 3)), 2)
