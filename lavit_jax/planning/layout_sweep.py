"""Compiles many layouts of one stage for one pod, each in a process of its own.

    ranked by arithmetic -> drafts: memory, products and exchanges -> the best in full

A process per layout bounds the memory: what a compilation holds ends with it. As many
run side by side as there are cores and memory for. Layouts come from
`planning.layouts`, the most promising first; programs that --cache holds are not
compiled again.
"""

import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

import jax
import ml_collections
from tqdm import tqdm

from lavit_jax.core import sharding, traced_flops
from lavit_jax.planning import layouts, programs, sweep_page
from lavit_jax.planning.topology import Topology

# Policies that make different programs, by stage: stage 1 has no attention kernel.
POLICIES = {"pretrain": tuple(layouts.KEPT), "visual_tokenizer": ("full", "dots")}
# Drafts that are planned in full.
FINALISTS = 5
# Bytes that a compilation of full size stays below.
COMPILE_MEMORY = 5e9


def sizes_of(config: ml_collections.ConfigDict) -> layouts.Sizes:
  """What the arithmetic knows of a stage, from its step on one device.

  Raises:
    ValueError: a stage that is not swept.
  """
  if config.stage not in POLICIES:
    raise ValueError(
      f"expected a stage of {sorted(POLICIES)} to sweep, got {config.stage!r}; plan"
      " its layouts one by one with --config.mesh"
    )
  one, work = ml_collections.ConfigDict(config), {}
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  for one.remat in POLICIES[config.stage]:
    program = programs.STEPS[config.stage](one, mesh)
    work[one.remat] = traced_flops.flops(programs.trace(program).jaxpr)
  state, frozen = (program.arguments[name] for name in ("state", "frozen"))
  return layouts.Sizes(
    parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    flops=work,
    heads=config.model.num_heads,
    fsdp=_largest_fsdp((state.params, frozen)),
    layers=config.model.num_layers,
    width=config.model.embed_dim,
    length=program.tokens // program.examples,
    batch=config.batch_size,
  )


def _largest_fsdp(tree: Any) -> int:
  """The largest power of two that divides all that fsdp splits, but a tenth.

  What it does not divide stays whole on every device.
  """
  split = [
    (size, leaf.size)
    for leaf in jax.tree.leaves(tree)
    for size, names in zip(leaf.shape, leaf.sharding.spec)
    if "fsdp" in (names or ())
  ]
  whole = lambda ways: sum(values for size, values in split if size % ways)
  ways = 1
  while 10 * whole(2 * ways) < sum(values for _, values in split):
    ways *= 2
  return ways


def run(
  config: ml_collections.ConfigDict, pod: Topology, limit: int, asked: list[str]
) -> dict[str, Any]:
  """Drafts the most promising layouts, and plans the best of them in full.

  Args:
    config: stage config; its mesh, accumulate and remat are replaced.
    pod: the pod.
    limit: most layouts to compile.
    asked: arguments of `plan` that all of them share: config, topology, cache.

  Returns:
    {"program", "topology", "layouts": [plan with "layout"; those in full with
    "on_frontier", whether no other beats their time and memory; those whose compilation
    broke with "failed", the reason]}.

  Raises:
    ValueError: no layout passes the filter, none could be compiled, or none fits.
  """
  found = layouts.candidates(pod, sizes_of(config))[:limit]
  if not found:
    raise ValueError(
      f"no layout of {pod} holds the state of {config.stage} and one row per chip;"
      " choose a larger pod or a larger config.batch_size"
    )
  title = f"{config.stage} on {pod}"
  plans = _plans(found, [*asked, "--draft"], f"{title}: drafts")
  order = _finalists(plans)
  if not order:
    raise ValueError(_why_none(plans, pod))
  whole = _plans([found[index] for index in order], asked, f"{title}: in full")
  for index, plan in zip(order, whole):
    plans[index] = plan
  _mark_frontier([plan for plan in whole if plan["fits"]])
  return {"program": config.stage, "topology": str(pod), "layouts": plans}


def _finalists(plans: list[dict[str, Any]]) -> list[int]:
  """Indices of the drafts to plan in full: the best of each policy in turn.

  A draft says what is multiplied and exchanged, but not how well both overlap, which
  differs by policy.
  """
  by_policy: dict[str, list[int]] = {}
  fitting = (index for index, plan in enumerate(plans) if plan["fits"])
  for index in sorted(fitting, key=lambda index: plans[index]["seconds_in_turn"]):
    by_policy.setdefault(plans[index]["remat"], []).append(index)
  return layouts.in_turn(list(by_policy.values()))[:FINALISTS]


def _why_none(plans: list[dict[str, Any]], pod: Topology) -> str:
  """What to do where no draft fits."""
  misfits = [plan for plan in plans if "misfit" in plan]
  if not misfits:
    return f"no layout could be compiled; {plans[0]['failed']}"
  least = min(misfits, key=lambda plan: plan["misfit"]["used"])
  used, capacity = least["misfit"]["used"], least["misfit"]["capacity"]
  return (
    f"none of {len(plans)} layouts fits {pod}; {least['layout']} needs the least,"
    f" {used / 1e9:.2f} GB of {capacity / 1e9:.2f} GB; choose a larger pod, or a chip"
    " with more memory"
  )


def _mark_frontier(plans: list[dict[str, Any]]) -> None:
  """Says of each plan whether no other beats its time and memory."""
  points = [
    (plan["predicted"]["seconds"], plan["memory_per_chip"]["total"]) for plan in plans
  ]
  best = layouts.frontier(points)
  for index, plan in enumerate(plans):
    plan["on_frontier"] = index in best


def _plans(
  found: list[layouts.Layout], asked: list[str], title: str
) -> list[dict[str, Any]]:
  """Plans layouts side by side, with arguments `asked`; their order stays."""
  with concurrent.futures.ThreadPoolExecutor(_workers()) as pool:
    under_way = [pool.submit(_plan, layout, asked) for layout in found]
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
  memory = _available_memory(pathlib.Path("/proc/meminfo").read_text())
  return max(1, min(len(os.sched_getaffinity(0)), int(memory // COMPILE_MEMORY)))


def _available_memory(meminfo: str) -> int:
  """Bytes that programs can still get, of the text of Linux's /proc/meminfo."""
  return 1024 * int(re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.M).group(1))


def command(layout: layouts.Layout, asked: list[str], out: str) -> list[str]:
  """The command that plans one layout into a file.

  Args:
    layout: replaces mesh, accumulate and remat of the config.
    asked: the other arguments of `plan`.
    out: path of the figures.
  """
  fields = {f"mesh.{axis}": size for axis, size in layout.mesh.items()}
  fields |= {"accumulate": layout.accumulate, "remat": layout.remat}
  own = [f"--config.{name}={value}" for name, value in fields.items()]
  return [sys.executable, "-m", "lavit_jax.plan", *asked, *own, f"--json={out}"]


def _plan(layout: layouts.Layout, asked: list[str]) -> dict[str, Any]:
  """Runs `plan` on one layout.

  A compiler that breaks takes its own layout with it: the plan then says "failed".
  """
  with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder) / "plan.json"
    done = subprocess.run(
      command(layout, asked, str(out)), capture_output=True, text=True
    )
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
