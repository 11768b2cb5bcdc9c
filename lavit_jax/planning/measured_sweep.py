"""Mesh layouts measured on the attached devices, beside what `plan` predicts."""

import itertools
import json
import math
import pathlib
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from lavit_jax.core import sharding
from lavit_jax.planning import pod_plan, programs
from lavit_jax.training import mesh_report, plots


def layouts(count: int) -> list[dict[str, int]]:
  """Every way to spread so many devices over the four axes."""
  sizes = [size for size in range(1, count + 1) if count % size == 0]
  shapes = itertools.product(sizes, repeat=len(sharding.MESH_AXES))
  return [
    dict(zip(sharding.MESH_AXES, shape))
    for shape in shapes
    if math.prod(shape) == count
  ]


def parse(text: str) -> dict[str, int]:
  """Reads "1x8x1x1"."""
  sizes = text.split("x")
  if len(sizes) != len(sharding.MESH_AXES) or not all(s.isdigit() for s in sizes):
    raise ValueError(
      f"expected a layout data x fsdp x sequence x tensor such as 1x8x1x1, got {text!r}"
    )
  return dict(zip(sharding.MESH_AXES, map(int, sizes)))


def name_of(layout: dict[str, int]) -> str:
  """The layout as text, e.g. "1x8x1x1"."""
  return "x".join(str(size) for size in layout.values())


def _filled(abstract: Any) -> Any:
  """Zeros of these shapes and shardings, made in place on the devices."""
  keys = lambda leaf: jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  make = lambda x: jax.random.key(0) if keys(x) else jnp.zeros(x.shape, x.dtype)
  spread = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  return jax.jit(lambda: jax.tree.map(make, abstract), out_shardings=spread)()


def measure(
  config: ml_collections.ConfigDict, layout: dict[str, int], steps: int
) -> dict[str, Any]:
  """Runs the train step of a stage on one layout of all devices.

  Args:
    config: stage config.
    layout: size of every mesh axis.
    steps: steps to time, after one that compiles.

  Returns:
    Median seconds of a step, seconds to compile, bytes per device as the compiler and,
    where the devices tell, as they themselves count them; or the reason why this
    layout cannot run.
  """
  with sharding.rules(config.rules):
    return _measure(config, layout, steps)


def _measure(config, layout: dict[str, int], steps: int) -> dict[str, Any]:
  found: dict[str, Any] = {"layout": name_of(layout)}
  try:
    program = programs.STEPS[config.stage](config, sharding.make_mesh(layout))
    groups = mesh_report.groups_of(
      program.arguments["state"], program.arguments["frozen"]
    )
    estimate = mesh_report.activation_bytes(config, program.mesh)
    found["estimated_bytes"] = mesh_report.total_bytes(groups) + estimate
    return found | _timed(program, steps)
  except ValueError as error:
    return found | {"reason": str(error).splitlines()[0]}
  except jax.errors.JaxRuntimeError as error:  # out of memory, as a rule
    return found | {"reason": str(error).splitlines()[0][:200]}


def _timed(program: programs.Program, steps: int) -> dict[str, Any]:
  arguments = {name: _filled(tree) for name, tree in program.arguments.items()}
  began = time.monotonic()
  with jax.set_mesh(program.mesh):
    compiled = program.function.lower(*arguments.values()).compile()
  compiling = time.monotonic() - began
  memory, seconds = compiled.memory_analysis(), []
  state, *rest = arguments.values()
  for _ in range(steps + 1):
    began = time.monotonic()
    state, metrics = compiled(state, *rest)
    jax.block_until_ready((state, metrics))
    seconds.append(time.monotonic() - began)
  told = jax.local_devices()[0].memory_stats() or {}
  middle = statistics.median(seconds[1:])
  return {
    "seconds": middle,
    "compile_seconds": compiling,
    "compiled_bytes": memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes,
    "peak_bytes": told.get("peak_bytes_in_use"),
    "tokens_per_second": program.tokens / middle,
  }


def predict(config, layout: dict[str, int], pod: str) -> dict[str, Any]:
  """What `plan` says about the same layout on a pod."""
  from lavit_jax.planning import topology

  planned = ml_collections.ConfigDict(config.to_dict())
  planned.mesh.update(layout)
  try:
    made = pod_plan.make(planned, topology.parse(pod))
  except ValueError as error:
    return {"predicted_reason": str(error).splitlines()[0]}
  if not made["fits"]:
    return {"predicted_reason": "does not fit"}
  return {
    "predicted_seconds": made["predicted"]["seconds"],
    "predicted_bytes": made["memory_per_chip"]["total"],
  }


def table(rows: list[dict[str, Any]]) -> str:
  """The measurements as a Markdown table, fastest first."""
  head = (
    "| data x fsdp x sequence x tensor | s/step | predicted | GB/device | predicted |"
  )
  lines = [head, "|---|---:|---:|---:|---:|"]
  for row in sorted(rows, key=lambda row: row.get("seconds", math.inf)):
    if "reason" in row:
      lines.append(f"| {row['layout']} | {row['reason']} | | | |")
      continue
    held = row["peak_bytes"] or row["compiled_bytes"]
    expected = row.get("predicted_bytes", row["estimated_bytes"])
    time_text = f"{row['predicted_seconds']:.4f}" if "predicted_seconds" in row else ""
    lines.append(
      f"| {row['layout']} | {row['seconds']:.4f} | {time_text} | {held / 1e9:.3f} |"
      f" {expected / 1e9:.3f} |"
    )
  return "\n".join(lines)


def picture(rows: Sequence[Mapping]) -> bytes:
  """Measured seconds and bytes by mesh layout, with the predictions where there are.

  Args:
    rows: as `measure` makes them; those with a `reason` did not run.
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
      place.barh(names, values, color=plots.BLUE, height=0.6, label="measured")
      said = [(row["layout"], row[predicted] / unit) for row in ran if predicted in row]
      if said:
        where, value = zip(*said)
        place.plot(value, where, "D", color=plots.ORANGE, label="predicted")
        place.legend(fontsize=9)
      place.set_title(title)
      place.invert_yaxis()

  return plots.png(draw, 11, 1.2 + 0.32 * len(ran), 1, 2)


def run(
  config: ml_collections.ConfigDict,
  chosen: list[dict[str, int]],
  steps: int,
  pod: str,
  workdir: str,
) -> list[dict[str, Any]]:
  """Measures layouts and writes the table and the picture."""
  if config.stage not in programs.STEPS:
    raise ValueError(
      f"expected a stage of {sorted(programs.STEPS)} to sweep, got {config.stage!r}"
    )
  folder, rows = pathlib.Path(workdir), []
  folder.mkdir(parents=True, exist_ok=True)
  for layout in chosen:
    row = measure(config, layout, steps)
    row |= predict(config, layout, pod) if pod and "reason" not in row else {}
    rows.append(row)
    (folder / "sweep.json").write_text(json.dumps(rows, indent=2))
    print(row["layout"], row.get("reason") or f"{row['seconds']:.4f} s", flush=True)
  (folder / "sweep.md").write_text(table(rows) + "\n")
  (folder / "sweep.png").write_bytes(picture(rows))
  return rows
