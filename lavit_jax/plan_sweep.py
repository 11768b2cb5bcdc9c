"""Compiles many layouts of one stage for one pod, each in a process of its own.

    filter by arithmetic -> drafts: memory, and a floor of the time -> the best in full

A process per layout bounds the memory: what a compilation holds ends with it. As many
run side by side as there are cores and memory for. Layouts come from
`planning.layouts` after its arithmetic filter; programs that --cache holds are not
compiled again.
"""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import ml_collections
from tqdm import tqdm

from lavit_jax.planning import layouts, sweep_page
from lavit_jax.planning.topology import Topology

# Trainable values by stage, for the memory filter.
PARAMETERS = {"pretrain": 7_279_000_000, "visual_tokenizer": 806_000_000}
# Patches of a picture, where rows are pictures.
PATCHES = 256
# Drafts that are planned in full, by their floors.
FINALISTS = 5
# Bytes that a compilation of full size stays below.
COMPILE_MEMORY = 4e9


def sizes_of(config: ml_collections.ConfigDict) -> layouts.Sizes:
  """What the filter knows of a stage at full size.

  Raises:
    ValueError: a stage that is not swept.
  """
  if config.stage not in PARAMETERS:
    raise ValueError(
      f"expected a stage of {sorted(PARAMETERS)} to sweep, got {config.stage!r}; plan"
      " its layouts one by one with --config.mesh"
    )
  return layouts.Sizes(
    parameters=PARAMETERS[config.stage],
    heads=config.model.num_heads,
    layers=config.model.num_layers,
    width=config.model.embed_dim,
    length=config.data.get("row_length", PATCHES),
    batch=config.batch_size,
  )


def run(
  config: ml_collections.ConfigDict, pod: Topology, limit: int, cache: str
) -> dict[str, Any]:
  """Drafts the most promising layouts, and plans the best of them in full.

  Args:
    config: stage config; its mesh, accumulate and remat are replaced.
    pod: the pod.
    limit: most layouts to compile.
    cache: folder of earlier plans, or "".

  Returns:
    {"program", "topology", "layouts": [plan with "layout"; those in full with
    "on_frontier", whether no other beats their time and memory; those whose compilation
    broke with "failed", the reason]}.

  Raises:
    ValueError: no layout passes the filter, or none could be compiled.
  """
  sizes = sizes_of(config)
  found = layouts.candidates(pod.chips, pod.slices, sizes, pod.chip.memory)
  if not found:
    raise ValueError(
      f"no layout of {pod} holds the state of {config.stage} and one row per chip;"
      " choose a larger pod or a larger config.batch_size"
    )
  title = f"{config.stage} on {pod}"
  plans = _plans(found[:limit], ["--draft"], cache, f"{title}: drafts")
  if all("failed" in plan for plan in plans):
    raise ValueError(f"no layout could be compiled; {plans[0]['failed']}")
  order = sorted(
    (index for index, plan in enumerate(plans) if plan["fits"]),
    key=lambda index: plans[index]["seconds_at_least"],
  )[:FINALISTS]
  whole = _plans([found[index] for index in order], [], cache, f"{title}: in full")
  for index, plan in zip(order, whole):
    plans[index] = plan
  fitting = [plan for plan in whole if plan["fits"]]
  points = [
    (plan["predicted"]["seconds"], plan["memory_per_chip"]["total"]) for plan in fitting
  ]
  best = layouts.frontier(points)
  for index, plan in enumerate(fitting):
    plan["on_frontier"] = index in best
  return {"program": config.stage, "topology": str(pod), "layouts": plans}


def _plans(
  found: list[layouts.Layout], asked: list[str], cache: str, title: str
) -> list[dict[str, Any]]:
  """Plans layouts side by side, with flags `asked`; their order stays."""
  with concurrent.futures.ThreadPoolExecutor(_workers()) as pool:
    under_way = [pool.submit(_plan, layout, asked, cache) for layout in found]
    try:
      for done in tqdm(concurrent.futures.as_completed(under_way), title, len(found)):
        done.result()
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise
  return [
    job.result() | {"layout": str(layout)} for job, layout in zip(under_way, found)
  ]


def _workers() -> int:
  """Compilations at a time: one for each core that this process may use."""
  memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  return max(1, min(len(os.sched_getaffinity(0)), int(memory // COMPILE_MEMORY)))


def _plan(layout: layouts.Layout, asked: list[str], cache: str) -> dict[str, Any]:
  """Runs `plan` on one layout, with the other arguments of this command.

  A compiler that breaks takes its own layout with it: the plan then says "failed".
  """
  own = ("--sweep", "--json", "--html", "--cache", "--draft")
  arguments = [a for a in sys.argv[1:] if not a.startswith(own)]
  fields = {f"mesh.{axis}": size for axis, size in layout.mesh.items()}
  fields |= {"accumulate": layout.accumulate, "remat": layout.remat}
  arguments += [f"--config.{name}={value}" for name, value in fields.items()]
  with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder) / "plan.json"
    command = [sys.executable, "-m", "lavit_jax.plan", *arguments, *asked]
    command += [f"--json={out}", f"--cache={cache}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
      told = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
      return {"fits": False, "failed": told[-1].removeprefix("error: ")}
    return json.loads(out.read_text())


def page(sweep: dict[str, Any]) -> str:
  """The sweep as HTML."""
  rows = []
  for plan in sweep["layouts"]:
    row = {"layout": plan["layout"], "on_frontier": plan.get("on_frontier", False)}
    row |= dict(seconds=None, memory=0.0, capacity=0.0, mfu=None, collectives=0.0)
    row["failed"] = plan.get("failed")
    if plan["fits"]:
      memory, predicted = plan["memory_per_chip"], plan.get("predicted", {})
      row |= {
        "seconds": predicted.get("seconds") or plan["seconds_at_least"],
        "memory": memory["total"] / 1e9,
        "capacity": memory["capacity"] / 1e9,
        "mfu": predicted.get("mfu"),
        "collectives": sum(plan["collective_bytes"].values()) / 1e9,
      }
    rows.append(row)
  return sweep_page.render(f"{sweep['program']} on {sweep['topology']}", rows)
