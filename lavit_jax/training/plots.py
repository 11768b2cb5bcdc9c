"""Plots as PNG bytes: their common style, and training curves."""

import io
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib import figure as mpl_figure

INK, SOFT, LINE = "#1d2330", "#667085", "#d0d5dd"
BLUE, ORANGE, GREEN, PURPLE = "#2f5bd7", "#d9730d", "#18794e", "#8e4ec6"
STYLE = {
  "font.size": 10,
  "axes.edgecolor": LINE,
  "axes.labelcolor": SOFT,
  "axes.titlesize": 11,
  "axes.titlecolor": INK,
  "axes.titlelocation": "left",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": "#eef0f3",
  "xtick.color": SOFT,
  "ytick.color": SOFT,
  "legend.frameon": False,
}


def png(draw, width: float, height: float, rows: int, columns: int) -> bytes:
  """Draws on axes[rows][columns] of a new figure (in inches)."""
  with matplotlib.rc_context(STYLE):
    canvas = mpl_figure.Figure((width, height), dpi=150, layout="constrained")
    draw(canvas.subplots(rows, columns, squeeze=False))
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png")
  return buffer.getvalue()


def curves(
  panels: Sequence[tuple[str, Mapping[str, tuple[list, list]], int]],
) -> bytes:
  """Training curves, three panels to a row.

  Args:
    panels: title, lines by name, each (steps, values), and a step to mark, or 0.
  """
  rows = -(-len(panels) // 3)

  def draw(axes):
    for place in axes.flat[len(panels) :]:
      place.set_axis_off()
    for place, (title, lines, mark) in zip(axes.flat, panels):
      for color, (name, (steps, values)) in zip((BLUE, ORANGE, GREEN), lines.items()):
        place.plot(steps, values, color=color, lw=1.4, label=name.replace("_", " "))
      if mark:
        place.axvline(mark, color=SOFT, lw=1, ls=(0, (3, 3)))
      place.set_title(title)
      place.set_xlabel("step")
      if len(lines) > 1:
        place.legend(fontsize=9)

  return png(draw, 11, 2.7 * rows, rows, 3)
