"""Plots and picture overlays of the report, as PNG bytes or u8 arrays."""

from collections.abc import Mapping

import matplotlib
import numpy as np

from lavit_jax.training import plots


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
      medianprops={"color": plots.INK},
      flierprops={"marker": ".", "markersize": 4, "markeredgecolor": plots.LINE},
      meanprops={"marker": "o", "markersize": 4, "markerfacecolor": plots.ORANGE,
                 "markeredgecolor": plots.ORANGE},
      whiskerprops={"color": plots.SOFT},
      capprops={"color": plots.SOFT},
    )  # fmt: skip
    for box in boxes["boxes"]:
      box.set(facecolor="#dbe4fb", edgecolor=plots.BLUE)
    place.set_xlabel("objects in the scene")
    place.set_ylabel("kept tokens")
    place.set_ylim(bottom=0)

  return plots.png(draw, 7, 3.4, 1, 1)


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
      color = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE)[place]
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

  return plots.png(draw, 11, 3.4, 1, 2)


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
    right.bar(names, found, color=plots.BLUE, width=0.7)
    right.set_title("codes by number of uses")
    right.tick_params(axis="x", labelrotation=40)

  return plots.png(draw, 11, 3.3, 1, 2)


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
