"""How far runs of one recipe lie apart: `python -m lavit_jax.toy.report.spread RUN RUN ...`

report.json of each run -> mean and deviation of every figure, as a Markdown table; with
--target=FILE also as JSON.

The deviation holds two things: that runs differ, and that each figure rests on n cases
only. What n cases alone spread stands beside it, for figures that are shares of cases.
"""

import json
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags

TARGET = flags.DEFINE_string(
  "target", "", "JSON file to write the figures to.", allow_override=True
)

# Figures that are no share of independent cases: no binomial tells their spread.
NO_SHARES = (
  "kept_vs_objects_spearman",
  "keep_vs_mask_auroc",
  "code_perplexity",
  "codes_used",
  "reconstruction_cosine",
  "object_patch_cosine",
  "object_patches_kept",
  "kept_share",
)


def read(runs: Sequence[str]) -> list[dict[str, Any]]:
  """Reads report.json of run folders.

  Raises:
    ValueError: fewer than two runs, a run without a report, or reports that do not
      belong together.
  """
  if len(runs) < 2:
    raise ValueError(f"expected two runs or more, got {len(runs)}; name their folders")
  reports = []
  for run in runs:
    path = pathlib.Path(run) / "report.json"
    if not path.is_file():
      raise ValueError(f"expected a finished quickstart in {run}, but it has no {path}")
    reports.append(json.loads(path.read_text()))
  for what, found in (
    ("split", {report["split"] for report in reports}),
    ("recipe", {_recipe(report) for report in reports}),
  ):
    if len(found) > 1:
      raise ValueError(
        f"expected runs of one {what} that differ in their seed alone, got"
        f" {len(found)}; aggregate those apart"
      )
  return reports


def _recipe(report: Mapping) -> str:
  """All configs without seeds and folders."""

  def plain(value, name=""):
    if isinstance(value, Mapping):
      return {key: plain(entry, key) for key, entry in value.items()}
    own = ("seed", "shuffle_seed", "init_from", "train", "eval", "text_tokenizer")
    return None if name in own else value

  configs = {name: stage["config"] for name, stage in report["stages"].items()}
  return json.dumps(plain(configs), sort_keys=True)


def aggregate(reports: Sequence[Mapping]) -> dict[str, dict]:
  """Mean and deviation over runs of each figure and of the numbers beside it.

  Args:
    reports: contents of report.json, two or more.

  Returns:
    By name, "figure" or "figure.number": {"mean", "deviation" (of a sample), "lowest",
    "highest", "runs" that have it, "n" cases of a run, "sampling_deviation"}; the last
    is None where the figure is no share of cases.
  """
  found: dict[str, list[float]] = {}
  cases: dict[str, int] = {}
  for report in reports:
    for name, entry in report.items():
      if not (isinstance(entry, Mapping) and {"value", "chance", "n"} <= set(entry)):
        continue
      for key, value in _numbers(entry):
        whole = name if key == "value" else f"{name}.{key}"
        found.setdefault(whole, []).append(value)
        cases.setdefault(whole, entry["n"] if key == "value" else 0)
  return {name: _spread(name, values, cases[name]) for name, values in found.items()}


def _numbers(entry: Mapping, prefix: str = ""):
  """Names and values of the numbers of a figure, but chance levels and settings."""
  for key, value in entry.items():
    if key in ("chance", "n", "num_codes", "guidance", "temperature"):
      continue
    if isinstance(value, Mapping):
      yield from _numbers(value, f"{prefix}{key}.")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
      yield prefix + key, float(value)


def _spread(name: str, values: Sequence[float], n: int) -> dict[str, Any]:
  mean = float(np.mean(values))
  sampling = None
  if n and name not in NO_SHARES and 0 <= mean <= 1:
    sampling = math.sqrt(mean * (1 - mean) / n)
  return {
    "mean": mean,
    "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
    "lowest": min(values),
    "highest": max(values),
    "runs": len(values),
    "n": n or None,
    "sampling_deviation": sampling,
  }


def table(spread: Mapping[str, Mapping]) -> str:
  """A Markdown table."""
  show = lambda x: "" if x is None else f"{x:.3f}" if abs(x) < 10 else f"{x:.1f}"
  lines = [
    "| figure | mean | deviation | lowest | highest | n cases alone spread |",
    "|---|---|---|---|---|---|",
  ]
  for name, found in spread.items():
    keys = ("mean", "deviation", "lowest", "highest", "sampling_deviation")
    lines.append(f"| {name} | " + " | ".join(show(found[key]) for key in keys) + " |")
  return "\n".join(lines)


def main(argv: list[str]) -> None:
  """Command line entry."""
  try:
    found = aggregate(read(argv[1:]))
  except ValueError as error:
    sys.exit(f"error: {error}")
  print(table(found))
  if TARGET.value:
    runs = [str(run) for run in argv[1:]]
    text = json.dumps({"runs": runs, "figures": found}, indent=2, allow_nan=False)
    pathlib.Path(TARGET.value).write_text(text + "\n")


if __name__ == "__main__":
  app.run(main)
