"""A sweep as one page: predicted time against memory, and a table."""

import html
from typing import Any

WIDTH, HEIGHT, MARGIN = 720, 380, 56
STYLE = (
  "body{font:15px system-ui;margin:2em auto;max-width:60em}"
  "table{border-collapse:collapse;width:100%}td,th{padding:.3em .6em;text-align:right;"
  "border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}"
  ".best{background:#e8f4ea}text{font:12px system-ui;fill:#444}"
)


def render(title: str, rows: list[dict[str, Any]]) -> str:
  """The page.

  Args:
    title: what was swept.
    rows: each with layout, seconds, memory (GB), capacity (GB), mfu, collectives (GB),
      on_frontier and failed; layouts that do not fit carry seconds None, or the reason
      in failed where the compiler broke, drafts mfu None and the least seconds that
      they can take.
  """
  head = f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title>"
  note = (
    "<p>Compiled for absent chips, never executed. The shaded layouts are the frontier:"
    " no other planned in full is both faster and smaller. Rings and seconds after &ge;"
    " are drafts: no schedule of theirs is faster than that.</p>"
  )
  return (
    f"{head}<style>{STYLE}</style><h1>{html.escape(title)}</h1>{note}"
    f"{_picture([row for row in rows if row['seconds']])}{_table(rows)}"
  )


def _table(rows: list[dict[str, Any]]) -> str:
  names = ("layout", "seconds", "memory GB", "collectives GB", "MFU")
  body = []
  rank = lambda row: (row["seconds"] is None, row["mfu"] is None, row["seconds"] or 0)
  for row in sorted(rows, key=rank):
    without = f"failed: {row['failed']}" if row["failed"] else "does not fit"
    cells = [html.escape(row["layout"]), html.escape(without), "", "", ""]
    if row["seconds"]:
      draft = row["mfu"] is None
      cells[1:] = [
        f"{'&ge; ' * draft}{row['seconds']:.3f}",
        f"{row['memory']:.2f}",
        f"{row['collectives']:.1f}",
        "" if draft else f"{row['mfu']:.1%}",
      ]
    kind = " class=best" if row["on_frontier"] else ""
    body.append(f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in cells))
  heads = "".join(f"<th>{name}</th>" for name in names)
  return f"<table><tr>{heads}</tr>{''.join(body)}</table>"


def _fill(row: dict[str, Any]) -> str:
  if row["mfu"] is None:
    return "fill=none stroke=#aab"
  return f"fill={'#2a7f3f' if row['on_frontier'] else '#aab'}"


def _picture(rows: list[dict[str, Any]]) -> str:
  """Points of (memory, seconds) as SVG, the frontier joined."""
  if not rows:
    return ""
  right = max(row["capacity"] for row in rows)
  top = 1.1 * max(row["seconds"] for row in rows)
  x = lambda row: MARGIN + row["memory"] / right * (WIDTH - 2 * MARGIN)
  y = lambda row: HEIGHT - MARGIN - row["seconds"] / top * (HEIGHT - 2 * MARGIN)
  dots = [
    f"<circle cx={x(row):.0f} cy={y(row):.0f} r=5 {_fill(row)}>"
    f"<title>{html.escape(row['layout'])}</title></circle>"
    for row in rows
  ]
  best = sorted((row for row in rows if row["on_frontier"]), key=lambda r: r["memory"])
  line = " ".join(f"{x(row):.0f},{y(row):.0f}" for row in best)
  base = HEIGHT - MARGIN
  return (
    f"<svg width={WIDTH} height={HEIGHT}>"
    f"<path d='M{MARGIN} {MARGIN}V{base}H{WIDTH - MARGIN}' fill=none stroke=#888 />"
    f"<polyline points='{line}' fill=none stroke=#2a7f3f />{''.join(dots)}"
    f"<text x={MARGIN} y={MARGIN - 12}>seconds per step, up to {top:.2f}</text>"
    f"<text x={WIDTH - MARGIN} y={base + 24} text-anchor=end>GB per chip, up to"
    f" {right:.0f}</text></svg>"
  )
