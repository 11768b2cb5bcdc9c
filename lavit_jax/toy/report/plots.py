"""Plots and picture overlays of the report, as PNG bytes or u8 arrays."""

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
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


def _png(draw, width: float, height: float, rows: int, columns: int) -> bytes:
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

  return _png(draw, 11, 2.7 * rows, rows, 3)


def kept_by_count(kept: np.ndarray, count: np.ndarray) -> bytes:
  """Boxes of kept tokens int[N] by number of objects int[N]."""
  numbers = sorted(set(count.tolist()))

  def draw(axes):
    place = axes[0][0]
    boxes = place.boxplot(
      [kept[count == number] for number in numbers],
      tick_labels=[str(number) for number in numbers],
      widths=0.55,
      patch_artist=True,
      showmeans=True,
      medianprops={"color": INK},
      flierprops={"marker": ".", "markersize": 4, "markeredgecolor": LINE},
      meanprops={"marker": "o", "markersize": 4, "markerfacecolor": ORANGE,
                 "markeredgecolor": ORANGE},
      whiskerprops={"color": SOFT},
      capprops={"color": SOFT},
    )  # fmt: skip
    for box in boxes["boxes"]:
      box.set(facecolor="#dbe4fb", edgecolor=BLUE)
    place.set_xlabel("objects in the scene")
    place.set_ylabel("kept tokens")
    place.set_ylim(bottom=0)

  return _png(draw, 7, 3.4, 1, 1)


def lengths(selections: Mapping[str, Mapping]) -> bytes:
  """Length against content: kept tokens by number of objects, and what they cover.

  Args:
    selections: by name, the first drawn with its deviation, as the figure
      object_patches_kept holds them.
  """
  bars = ("object_patches_kept", "object_patch_cosine")

  def draw(axes):
    left, right = axes[0]
    width = 0.8 / len(selections)
    for place, (name, found) in enumerate(selections.items()):
      color = (BLUE, ORANGE, GREEN, PURPLE)[place]
      kept = found["kept_by_objects"]
      numbers = [int(number) for number in kept]
      means = np.array([kept[str(number)]["mean"] for number in numbers])
      spread = np.array([kept[str(number)]["deviation"] for number in numbers])
      label = name.replace("_", "-")
      left.plot(numbers, means, "o-", color=color, ms=4, lw=1.4, label=label)
      if place == 0:
        left.fill_between(
          numbers, means - spread, means + spread, color=color, alpha=0.15, lw=0
        )
      where = np.arange(len(bars)) + (place - (len(selections) - 1) / 2) * width
      values = [found[bar] or 0.0 for bar in bars]
      right.bar(where, values, width=0.9 * width, color=color)
    left.set_title("kept tokens, with one deviation of the selector's")
    left.set_xlabel("objects in the scene")
    left.set_ylim(bottom=0)
    left.legend(fontsize=9)
    right.set_xticks(np.arange(len(bars)), ["object patches kept", "cosine on them"])
    right.set_title("what the tokens are spent on")

  return _png(draw, 11, 3.4, 1, 2)


def code_usage(counts: np.ndarray) -> bytes:
  """How often each code occurs int[K], most frequent first, and the histogram."""
  ordered = np.sort(counts)[::-1]

  def draw(axes):
    left, right = axes[0]
    left.fill_between(np.arange(len(ordered)), ordered, color="#b9c9f5", lw=0)
    left.set_title("uses of each code, most used first")
    left.set_xlabel("code by rank")
    left.set_yscale("symlog", linthresh=1)
    left.set_ylim(bottom=0)
    edges = [0, *(2 ** np.arange(0, 14))]
    edges = [edge for edge in edges if edge <= 2 * max(ordered[0], 1)]
    found, _ = np.histogram(counts, [*edges, np.inf])
    names = ["0", *(f"{a}" if a == b - 1 else f"{a}–{b - 1}" for a, b in
                    zip(edges[1:], [*edges[2:], 2 * edges[-1]]))]  # fmt: skip
    right.bar(names, found, color=BLUE, width=0.7)
    right.set_title("codes by number of uses")
    right.tick_params(axis="x", labelrotation=40)

  return _png(draw, 11, 3.3, 1, 2)


def per_patch(image: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Spreads a value per patch [P] over the pixels of u8[H, W, 3]: [H, W, 1]."""
  side = round(len(values) ** 0.5)
  grid = np.asarray(values).reshape(side, side)
  scale = image.shape[0] // side
  return grid.repeat(scale, 0).repeat(scale, 1)[..., None]


def kept_map(image: np.ndarray, keep: np.ndarray) -> np.ndarray:
  """The picture with dropped patches washed out: u8[H, W, 3]."""
  share = np.where(per_patch(image, keep), 1.0, 0.14)
  return (image * share + 255 * (1 - share)).astype(np.uint8)


def heat_map(image: np.ndarray, probability: np.ndarray) -> np.ndarray:
  """Keep probabilities as a heat map over the grey picture: u8[H, W, 3]."""
  colors = matplotlib.colormaps["magma"](per_patch(image, probability)[..., 0])
  grey = image.mean(-1, keepdims=True).repeat(3, -1)
  return (0.75 * 255 * colors[..., :3] + 0.25 * grey).astype(np.uint8)


def patches_of(image: np.ndarray, count: int) -> np.ndarray:
  """Cuts u8[H, W, 3] into u8[count, p, p, 3] patches in raster order."""
  side = round(count**0.5)
  p = image.shape[0] // side
  grid = image.reshape(side, p, side, p, 3).swapaxes(1, 2)
  return grid.reshape(count, p, p, 3)


def layouts(rows: Sequence[Mapping]) -> bytes:
  """Measured seconds and bytes by mesh layout, with the predictions where there are.

  Args:
    rows: as `sweep.measure` makes them; those with a `reason` did not run.
  """
  ran = sorted((row for row in rows if "seconds" in row), key=lambda r: r["seconds"])
  names = [row["layout"] for row in ran]
  held = [(row["peak_bytes"] or row["compiled_bytes"]) / 1e9 for row in ran]
  panels = (
    ("seconds per step", [row["seconds"] for row in ran], "predicted_seconds", 1.0),
    ("GB per device", held, "predicted_bytes", 1e9),
  )

  def draw(axes):
    for place, (title, values, predicted, unit) in zip(axes[0], panels):
      place.barh(names, values, color=BLUE, height=0.6, label="measured")
      said = [(row["layout"], row[predicted] / unit) for row in ran if predicted in row]
      if said:
        where, value = zip(*said)
        place.plot(value, where, "D", color=ORANGE, label="predicted")
        place.legend(fontsize=9)
      place.set_title(title)
      place.invert_yaxis()

  return _png(draw, 11, 1.2 + 0.32 * len(ran), 1, 2)
