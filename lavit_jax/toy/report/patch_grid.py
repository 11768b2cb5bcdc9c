"""What patches were read as, as a small picture."""

import numpy as np

from lavit_jax.toy import scenes, world

# One object shape in a 10 x 10 box, drawn in white on its patch.
GLYPHS = {
  "circle": '<circle cx="5" cy="5" r="3.2"/>',
  "square": '<rect x="2.1" y="2.1" width="5.8" height="5.8"/>',
  "triangle": '<path d="M5 1.6 8.6 8H1.4z"/>',
  "cross": '<path d="M4 1.5h2V4h2.5v2H6v2.5H4V6H1.5V4H4z"/>',
  "ring": '<circle cx="5" cy="5" r="2.6" fill="none" stroke="#fff"/>',
  "star": '<path d="M5 1.2 6 4h2.9L6.6 5.8l.8 2.8L5 7 2.6 8.6l.8-2.8L1.1 4H4z"/>',
}


def patch_grid(color: np.ndarray, shape: np.ndarray, width: int) -> str:
  """Draws what patches were read as: colored squares with the shape's sign.

  Args:
    color: int[P] index into COLORS; beyond is background.
    shape: int[P] index into SHAPES.
    width: in px.
  """
  cells = []
  for patch, (c, s) in enumerate(zip(color.tolist(), shape.tolist())):
    y, x = divmod(patch, scenes.GRID)
    if c == scenes.BACKGROUND_COLOR:
      cells.append(f'<rect x="{10 * x}" y="{10 * y}" width="9.4" height="9.4"/>')
      continue
    fill = "#{:02x}{:02x}{:02x}".format(*scenes.RGB[world.COLORS[c]])
    cells.append(
      f'<g transform="translate({10 * x} {10 * y})"><rect width="9.4" height="9.4"'
      f' fill="{fill}"/><g fill="#fff">{GLYPHS[world.SHAPES[s]]}</g></g>'
    )
  side = 10 * scenes.GRID
  return (
    f'<svg viewBox="0 0 {side} {side}" width="{width}" height="{width}"'
    f' fill="#8d95a333" role="img" aria-label="read-out">{"".join(cells)}</svg>'
  )
