"""Runs side by side on one self-contained page: pictures, figures, curves, configs.

A run is the folder of one training stage, or of several: a quickstart has one folder a
stage and, when it is finished, report.json with figures.
"""

import base64
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from lavit_jax.training import metrics, page, plots

COLORS = (plots.BLUE, plots.ORANGE, plots.GREEN, plots.PURPLE, "#0e7490", "#9f1239")
MOST = len(COLORS)
CURVES = ("loss", "accuracy", "cosine", "kept_share", "retrieval_at_1")
PICTURE_WIDTH = 900  # pixels of a picture on the page
MISSING = "–"


class Run:
  """One run as it lies on disk.

  Attributes:
    name: short, told apart from the others.
    stages: folder of each training stage.
    figures: (value, chance) by name; those of the report, or the last held-out ones.
  """

  def __init__(self, folder: pathlib.Path, name: str):
    """Reads what the folder holds; a folder without a run is refused."""
    self.name = name
    self.stages = {
      json.loads((own / "config.json").read_text()).get("stage", own.name): own
      for own in (folder, *sorted(p for p in folder.glob("*") if p.is_dir()))
      if (own / "config.json").is_file() and (own / "metrics.jsonl").is_file()
    }
    if not self.stages:
      raise ValueError(
        f"expected a run in {folder}, found no config.json beside a metrics.jsonl there"
        " or one folder below; give the --workdir of train or quickstart"
      )
    self.figures = _figures(folder / "report.json", self.stages)

  def config(self, stage: str) -> dict[str, Any]:
    """Fields of a stage's config by dotted name; empty where the run lacks it."""
    if stage not in self.stages:
      return {}
    return _flat(json.loads((self.stages[stage] / "config.json").read_text()))

  def picture(self, stage: str) -> pathlib.Path | None:
    """The newest picture of a stage."""
    if stage not in self.stages:
      return None
    found = sorted((self.stages[stage] / "pictures").glob("*.png"), key=_step)
    return found[-1] if found else None


def _step(path: pathlib.Path) -> tuple[int, str]:
  digits = path.stem.rpartition("-")[2]
  return (int(digits) if digits.isdigit() else -1, path.name)


def _figures(report: pathlib.Path, stages: Mapping[str, pathlib.Path]) -> dict:
  if report.is_file():
    entries = json.loads(report.read_text()).items()
    whole = {n: e for n, e in entries if isinstance(e, dict) and {"value", "n"} <= {*e}}
    return {name: (e["value"], e.get("chance")) for name, e in whole.items()}
  found = {}
  for stage, folder in stages.items():
    for name, value in (metrics.read(folder, "eval") or [{}])[-1].items():
      if name not in ("step", "kind", "time"):
        found[f"{stage}: {name}"] = (value, None)
  return found


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
  found = {}
  for name, value in config.items():
    whole = f"{before}{name}"
    found |= _flat(value, f"{whole}.") if isinstance(value, dict) else {whole: value}
  return found


def read(folders: Sequence[str | os.PathLike]) -> list[Run]:
  """Opens two to six runs; each is named by what its path has of its own.

  Raises:
    ValueError: too few or many, one twice, or one that is no run.
  """
  paths = [pathlib.Path(folder).resolve() for folder in folders]
  if not 2 <= len(paths) <= MOST:
    raise ValueError(f"expected 2 to {MOST} runs, got {len(paths)}; name their folders")
  if len({*paths}) < len(paths):
    raise ValueError(f"expected different runs, got {', '.join(map(str, folders))}")
  for depth in range(1, max(len(path.parts) for path in paths) + 1):
    names = ["/".join(path.parts[-depth:]) for path in paths]
    if len({*names}) == len(names):
      break
  return [Run(path, name) for path, name in zip(paths, names)]


def document(runs: Sequence[Run]) -> str:
  """The whole page."""
  stages = list(dict.fromkeys(stage for run in runs for stage in run.stages))
  parts = {
    "pictures": ("Pictures", _pictures(runs, stages)),
    "figures": ("Figures", _figure_table(runs)),
    "curves": ("Curves", _curves(runs, stages)),
    "configs": ("Configs", _configs(runs, stages)),
  }
  parts = {anchor: part for anchor, part in parts.items() if part[1]}
  title = " · ".join(run.name for run in runs)
  opening = f"<h1>{len(runs)} runs side by side</h1>" + _legend(runs)
  sections = [page.section(anchor, *part) for anchor, part in parts.items()]
  nav = page.navigation({anchor: part[0] for anchor, part in parts.items()})
  return page.page(title, [opening, *sections], nav)


def _legend(runs: Sequence[Run]) -> str:
  marks = [
    f'<span style="color:{color}">■</span> {page.text(run.name)}'
    for color, run in zip(COLORS, runs)
  ]
  return f'<p class="lead">{" &nbsp; ".join(marks)}</p>'


def _pictures(runs: Sequence[Run], stages: Sequence[str]) -> str:
  found = []
  for stage in stages:
    shown = [(run.name, run.picture(stage)) for run in runs]
    figures = [
      page.figure(_image(p), f"{page.text(n)}: {p.name}") for n, p in shown if p
    ]
    if figures:
      found.append(f"<h3>{page.text(stage.replace('_', ' '))}</h3>")
      found.append(f'<div class="beside">{"".join(figures)}</div>')
  return "".join(found)


def _image(path: pathlib.Path) -> str:
  """A picture, small enough for a page of many."""
  with Image.open(path) as image:
    image = image.convert("RGB")
  if image.width > PICTURE_WIDTH:
    height = round(image.height * PICTURE_WIDTH / image.width)
    image = image.resize((PICTURE_WIDTH, height), Image.Resampling.LANCZOS)
  buffer = io.BytesIO()
  image.save(buffer, "WEBP", quality=80)
  data = base64.b64encode(buffer.getvalue()).decode()
  label, url = page.text(path.name), f"data:image/webp;base64,{data}"
  return f'<img class="sheet" alt="{label}" src="{url}">'


def _figure_table(runs: Sequence[Run]) -> str:
  """Figures of all runs, and how far the outermost lie apart."""
  names = dict.fromkeys(name for run in runs for name in run.figures)
  rows = []
  for name in names:
    values = [run.figures.get(name, (None, None)) for run in runs]
    known = [value for value, _ in values if value is not None]
    chance = next((chance for _, chance in values if chance is not None), None)
    apart = max(known) - min(known) if len(known) > 1 else None
    cells = [_number(value) for value, _ in values]
    label = page.text(name.replace("_", " "))
    rows.append([label, *cells, _number(apart), _number(chance)])
  head = ["", *(run.name for run in runs), "apart", "chance"]
  return page.table(head, rows, set(range(1, len(head)))) if rows else ""


def _number(value: float | None) -> str:
  return MISSING if value is None else f"{value:.4g}"


def _curves(runs: Sequence[Run], stages: Sequence[str]) -> str:
  panels = []
  for stage in stages:
    records = [metrics.read(r.stages[stage], "train") if stage in r.stages else []
               for r in runs]  # fmt: skip
    for name in CURVES:
      lines = [[(e["step"], e[name]) for e in own if name in e] for own in records]
      if any(lines):
        panels.append((f"{stage.replace('_', ' ')}: {name.replace('_', ' ')}", lines))

  def draw(axes):
    for place in axes.flat[len(panels) :]:
      place.set_axis_off()
    for place, (title, lines) in zip(axes.flat, panels):
      for color, line in zip(COLORS, lines):
        if line:
          place.plot(*np.array(line).T, color=color, lw=1.3)
      place.set_title(title)
      place.set_xlabel("step")

  if not panels:
    return ""
  rows = -(-len(panels) // 3)
  return page.plot(plots.png(draw, 11, 2.7 * rows, rows, 3), "curves of all runs")


def _configs(runs: Sequence[Run], stages: Sequence[str]) -> str:
  """Fields that are not the same in all runs that have the stage."""
  rows = []
  for stage in stages:
    found = [run.config(stage) for run in runs]
    names = dict.fromkeys(name for own in found for name in own)
    differing = [
      [page.text(name), *(_field(own, name) for own in found)]
      for name in names
      if len({_field(own, name) for own in found if own}) > 1
    ]
    if differing:
      rows += [[page.text(stage.replace("_", " "))], *differing]
  if not rows:
    return "<p>All fields of the configs are the same.</p>"
  return page.table(["", *(run.name for run in runs)], rows, set())


def _field(config: Mapping[str, Any], name: str) -> str:
  return page.text(json.dumps(config[name])) if name in config else MISSING
