"""The report of a quickstart: report.json and one self-contained report.html.

report.json holds every figure as {"value", "chance", "n", ...} under its name, and
"split", "seconds", "stages" (steps, throughput, last held-out figures, config),
"machine" and "versions".
"""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Mapping

import jax

from lavit_jax.toy import findings
from lavit_jax.toy.report import sections
from lavit_jax.training import metrics

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
CPU_INFO = pathlib.Path("/proc/cpuinfo")


def write(
  folder: str | os.PathLike,
  findings: findings.Findings,
  stages: Mapping[str, str],
  seconds: Mapping[str, float],
  split: str,
) -> dict:
  """Writes report.json and report.html.

  Args:
    folder: where to.
    findings: figures and examples of the finished model.
    stages: run directory of each stage.
    seconds: by part of the run, in order.
    split: the one behind the figures.

  Returns:
    The contents of report.json.
  """
  facts = dict(findings.figures) | {
    "split": split,
    "seconds": dict(seconds) | {"total": round(sum(seconds.values()), 1)},
    "stages": {name: stage_facts(workdir) for name, workdir in stages.items()},
    "machine": machine(),
    "versions": versions(),
    "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
  }
  records = {name: metrics.read(workdir, "train") for name, workdir in stages.items()}
  html = sections.document(findings, facts, records)
  folder = pathlib.Path(folder)
  (folder / "report.json").write_text(json.dumps(facts, indent=2, allow_nan=False))
  (folder / "report.html").write_text(html, encoding="utf-8")
  return facts


def stage_facts(workdir: str | os.PathLike) -> dict:
  """Steps, median throughput, last held-out figures and config of a run directory."""
  train = metrics.read(workdir, "train")
  evaluated = metrics.read(workdir, "eval")
  rates = sorted(r["examples_per_second"] for r in train if "examples_per_second" in r)
  held_out = {
    name: value if value == value else None
    for name, value in (evaluated[-1] if evaluated else {}).items()
    if name not in ("step", "kind", "time")
  }
  return {
    "steps": train[-1]["step"] if train else 0,
    "examples_per_second": round(rates[len(rates) // 2], 1) if rates else None,
    "held_out": held_out,
    "config": json.loads((pathlib.Path(workdir) / "config.json").read_text()),
  }


def machine() -> dict:
  """Processor, cores and devices that computed."""
  name = platform.processor() or platform.machine()
  if CPU_INFO.exists():
    lines = CPU_INFO.read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    name = names[0] if names else name
  affinity = getattr(os, "sched_getaffinity", None)
  devices = jax.devices()
  return {
    "processor": name,
    "cores": len(affinity(0)) if affinity else os.cpu_count(),
    "devices": f"{len(devices)} x {devices[0].device_kind}",
    "system": platform.platform(),
  }


def versions() -> dict[str, str]:
  """Versions of Python and of the packages that compute."""
  found = {name: importlib.metadata.version(name) for name in PACKAGES}
  return {"python": platform.python_version()} | found
