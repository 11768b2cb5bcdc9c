"""Pieces of a self-contained HTML page: text, tables, pictures, navigation."""

import base64
import html
from collections.abc import Mapping, Sequence

import numpy as np

from lavit_jax.data import images

STYLE = """
:root { --ink: #1d2330; --soft: #667085; --line: #e4e7ec; --wash: #f7f8fa;
  --good: #18794e; --bad: #b42318; --accent: #2f5bd7; --paper: #fff; --rule: #c9ced8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --soft: #9aa4b5; --line: #2b313c; --wash: #1b2029;
    --good: #4cc38a; --bad: #ff8a7a; --accent: #8aa6ff; --paper: #12151b;
    --rule: #3d4553; color-scheme: dark; }
  /* Plots are drawn on white: turned over, with the hues put back. */
  img.plot { filter: invert(0.93) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial,
    sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 48px 28px 96px; }
h1 { font-size: 34px; line-height: 1.15; letter-spacing: -0.02em; margin: 0 0 8px; }
h2 { font-size: 22px; letter-spacing: -0.01em; margin: 56px 0 6px; padding-top: 20px;
  border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 28px 0 8px; }
nav { position: sticky; top: 0; z-index: 2; background: var(--paper);
  border-bottom: 1px solid var(--line); overflow-x: auto; white-space: nowrap; }
nav div { max-width: 1100px; margin: 0 auto; padding: 10px 28px; font-size: 14px; }
nav a { color: var(--soft); text-decoration: none; margin-right: 18px; }
nav a:hover { color: var(--accent); }
section { scroll-margin-top: 48px; }
p { max-width: 760px; margin: 6px 0 14px; }
.lead { font-size: 19px; max-width: 820px; }
.soft, figcaption, .chance { color: var(--soft); }
.note { background: var(--wash); border-left: 3px solid var(--accent);
  padding: 12px 18px; margin: 20px 0; max-width: 860px; font-size: 15px; }
.note p { margin: 4px 0; max-width: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 15px; margin: 10px 0 4px; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: 13px;
  padding: 6px 14px 6px 0; border-bottom: 1px solid var(--rule);
  vertical-align: bottom; }
td { padding: 7px 14px 7px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; padding-left: 10px; }
tr.group td { font-weight: 650; padding-top: 20px; border-bottom-color: var(--rule); }
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
.hero { display: grid; gap: 18px 26px; margin: 20px 0 8px;
  grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); }
.hero figure { margin: 0; background: var(--wash); border-radius: 8px; padding: 14px; }
.hero figcaption { font-size: 14px; color: var(--ink); min-height: 2.7em; }
.hero .codes { font: 11.5px/1.5 ui-monospace, Menlo, Consolas, monospace;
  color: var(--soft); overflow-wrap: anywhere; margin: 8px 0 0; }
@media (max-width: 640px) {
  main { padding: 22px 16px 64px; } nav div { padding: 9px 16px; }
  h1 { font-size: 27px; } h2 { margin-top: 38px; } .lead { font-size: 17px; }
  .strip, .cards { grid-template-columns: 1fr; }
  .strip div { flex-wrap: wrap; } .row { gap: 12px; }
  table { font-size: 13px; } td, th { padding-right: 8px !important; }
  .wide { display: none; }
  .plots { overflow-x: auto; } .plots img.plot { min-width: 720px; }
}
.beside { display: grid; gap: 16px; margin: 12px 0;
  grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); }
.beside figure { margin: 0; }
img.sheet { width: 100%; height: auto; display: block; border-radius: 4px; }
.patches { position: relative; width: 224px; }
.patches a { position: absolute; }
.patches a:hover { outline: 2px solid var(--accent); }
.strip .peek { display: none; scroll-margin-top: 330px; }
.strip .peek:target { display: flex; }
details { margin: 10px 0; } summary { cursor: pointer; font-weight: 600; }
pre { background: var(--wash); padding: 14px 16px; overflow-x: auto; font-size: 13px;
  line-height: 1.45; border-radius: 4px; }
"""


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
  image = f'<img class="plot" alt="{text(label)}" src="{data_url(png)}">'
  return f'<div class="plots">{image}</div>'


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


def section(anchor: str, title: str, content: str) -> str:
  """A part of the page that the navigation leads to."""
  return f'<section id="{anchor}"><h2>{text(title)}</h2>{content}</section>'


def navigation(anchors: Mapping[str, str]) -> str:
  """Links to sections, by anchor; it stays in sight."""
  links = "".join(f'<a href="#{a}">{text(t)}</a>' for a, t in anchors.items())
  return f"<nav><div>{links}</div></nav>"


def page(title: str, sections: Sequence[str], nav: str = "") -> str:
  """The whole document."""
  return (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{text(title)}</title><style>{STYLE}</style></head>"
    f"<body>{nav}<main>{''.join(sections)}</main></body></html>\n"
  )
