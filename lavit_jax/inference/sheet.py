"""A labelled sheet of pictures, as one picture."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw

TILE = 192  # longest side of a picture on the sheet
LINE = 13  # pixels per line of text
LETTERS = 28  # per line
GAP = 10


def make(pictures: Sequence[Image.Image], labels: Sequence[str], across: int):
  """Lays pictures out in rows, each with its label below.

  Args:
    pictures: any sizes; small ones are enlarged with sharp pixels.
    labels: one per picture.
    across: pictures per row.

  Returns:
    The sheet, an RGB Pillow image.
  """
  lines = [textwrap.wrap(label, LETTERS)[:3] or [""] for label in labels]
  tiles = [_fit(picture) for picture in pictures]
  width = max(tile.width for tile in tiles) + GAP
  height = max(tile.height for tile in tiles) + 3 * LINE + GAP
  rows = -(-len(tiles) // across)
  sheet = Image.new("RGB", (GAP + width * across, GAP + height * rows), "white")
  pen = ImageDraw.Draw(sheet)
  for i, (tile, words) in enumerate(zip(tiles, lines, strict=True)):
    left, top = GAP + width * (i % across), GAP + height * (i // across)
    sheet.paste(tile, (left, top))
    for number, line in enumerate(words):
      pen.text((left, top + tile.height + LINE * number), line, fill="black")
  return sheet


def _fit(picture: Image.Image) -> Image.Image:
  scale = TILE / max(picture.size)
  size = tuple(max(round(side * scale), 1) for side in picture.size)
  sharp = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
  return picture.convert("RGB").resize(size, sharp)
