"""Pieces of a self-contained HTML page: text, tables, pictures, patch grids."""

import base64
import html
from collections.abc import Sequence

import numpy as np

from lavit_jax.data import images
from lavit_jax.toy import scenes, world

STYLE = """
:root { --ink: #1d2330; --soft: #667085; --line: #e4e7ec; --wash: #f7f8fa;
  --good: #18794e; --bad: #b42318; --accent: #2f5bd7; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial,
    sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 48px 28px 96px; }
h1 { font-size: 34px; line-height: 1.15; letter-spacing: -0.02em; margin: 0 0 8px; }
h2 { font-size: 22px; letter-spacing: -0.01em; margin: 56px 0 6px; padding-top: 20px;
  border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 28px 0 8px; }
p { max-width: 760px; margin: 6px 0 14px; }
.lead { font-size: 19px; color: #344054; max-width: 820px; }
.soft, figcaption, .chance { color: var(--soft); }
.note { background: var(--wash); border-left: 3px solid var(--accent);
  padding: 12px 18px; margin: 20px 0; max-width: 860px; font-size: 15px; }
.note p { margin: 4px 0; max-width: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 15px; margin: 10px 0 4px; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px;
  padding: 6px 14px 6px 0; border-bottom: 1px solid #c9ced8; vertical-align: bottom; }
td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; padding-left: 10px; }
tr.group td { font-weight: 650; padding-top: 20px; border-bottom-color: #c9ced8; }
img.plot { width: 100%; height: auto; display: block; margin: 12px 0; }
img.pixels { image-rendering: pixelated; display: block; border-radius: 3px; }
.row { display: flex; flex-wrap: wrap; gap: 18px; margin: 14px 0; }
.row figure { margin: 0; }
figcaption { font-size: 13px; line-height: 1.35; margin-top: 5px; }
.cards { display: grid; gap: 16px 22px; margin: 14px 0;
  grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); }
.card { display: flex; gap: 14px; align-items: flex-start; font-size: 14.5px;
  line-height: 1.4; }
.card > * { flex: none; } .card > div { flex: 1; min-width: 0; }
.card .question { font-weight: 600; }
.right { color: var(--good); } .wrong { color: var(--bad); }
.pair { display: flex; gap: 6px; }
.strip { display: grid; gap: 10px 26px; margin: 14px 0;
  grid-template-columns: repeat(auto-fill, minmax(480px, 1fr)); }
.strip div { display: flex; align-items: center; gap: 3px; }
.strip span { width: 84px; font-size: 13px; color: var(--soft); flex: none;
  font-variant-numeric: tabular-nums; }
details { margin: 10px 0; } summary { cursor: pointer; font-weight: 600; }
pre { background: var(--wash); padding: 14px 16px; overflow-x: auto; font-size: 13px;
  line-height: 1.45; border-radius: 4px; }
"""

# One object shape in a 10 x 10 box, drawn in white on its patch.
GLYPHS = {
  "circle": '<circle cx="5" cy="5" r="3.2"/>',
  "square": '<rect x="2.1" y="2.1" width="5.8" height="5.8"/>',
  "triangle": '<path d="M5 1.6 8.6 8H1.4z"/>',
  "cross": '<path d="M4 1.5h2V4h2.5v2H6v2.5H4V6H1.5V4H4z"/>',
  "ring": '<circle cx="5" cy="5" r="2.6" fill="none" stroke="#fff"/>',
  "star": '<path d="M5 1.2 6 4h2.9L6.6 5.8l.8 2.8L5 7 2.6 8.6l.8-2.8L1.1 4H4z"/>',
}


def text(value: object) -> str:
  """Escapes for HTML."""
  return html.escape(str(value))


def data_url(png: bytes) -> str:
  """A PNG inside the page itself."""
  return "data:image/png;base64," + base64.b64encode(png).decode()


def pixels(image: np.ndarray, width: int, label: str = "") -> str:
  """A small picture u8[H, W, 3] with sharp pixels, `width` px wide."""
  url = data_url(images.encode(np.ascontiguousarray(image)))
  size = f'width="{width}" height="{width}"'
  return f'<img class="pixels" {size} alt="{text(label)}" src="{url}">'


def plot(png: bytes, label: str) -> str:
  """A plot over the full width."""
  return f'<img class="plot" alt="{text(label)}" src="{data_url(png)}">'


def figure(content: str, caption: str) -> str:
  """Content with a caption (HTML) below."""
  return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


def row(items: Sequence[str]) -> str:
  """Items side by side."""
  return f'<div class="row">{"".join(items)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: set[int]) -> str:
  """A table of HTML cells.

  Args:
    head: column titles.
    rows: cells; a row of one cell spans all columns as the title of a group.
    numbers: columns that hold numbers.
  """
  kind = lambda i: ' class="number"' if i in numbers else ""
  lines = ["".join(f"<th{kind(i)}>{text(h)}</th>" for i, h in enumerate(head))]
  for cells in rows:
    if len(cells) == 1:
      lines.append(f'<td colspan="{len(head)}">{cells[0]}</td>')
    else:
      lines.append("".join(f"<td{kind(i)}>{c}</td>" for i, c in enumerate(cells)))
  groups = [False, *(len(cells) == 1 for cells in rows)]
  body = "".join(
    f'<tr class="group">{line}</tr>' if group else f"<tr>{line}</tr>"
    for group, line in zip(groups, lines)
  )
  return f'<div class="scroll"><table>{body}</table></div>'


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
    f' fill="#eceff3" role="img" aria-label="read-out">{"".join(cells)}</svg>'
  )


def page(title: str, sections: Sequence[str]) -> str:
  """The whole document."""
  return (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{text(title)}</title><style>{STYLE}</style></head>"
    f"<body><main>{''.join(sections)}</main></body></html>\n"
  )
