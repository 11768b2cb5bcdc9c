"""A plan as figures (JSON) and as the page that `plan` prints."""

from typing import Any

from lavit_jax.planning import collectives, roofline, topology
from lavit_jax.planning.compiling import Memory
from lavit_jax.planning.cost import Cost
from lavit_jax.planning.roofline import Roofline
from lavit_jax.planning.topology import Topology

GB = 1e9
HOUR = 3600


def memory_figures(
  memory: Memory, groups: dict[str, int], capacity: float
) -> dict[str, Any]:
  """Bytes on one chip.

  Args:
    memory: what the compiler reports.
    groups: bytes of each group of arguments, by their shardings.
    capacity: bytes of the chip.
  """
  padding = memory.arguments - sum(groups.values())
  return {
    "arguments": memory.arguments,
    "outputs": memory.outputs,
    "temporaries": memory.temporaries,
    "code": memory.code,
    "total": memory.total,
    "capacity": int(capacity),
    "groups": groups | {"padding": padding},
  }


def cost_figures(cost: Cost, analytic: float, mesh: dict[str, int]) -> dict[str, Any]:
  """FLOPs and collectives of one chip in one step.

  Args:
    cost: counts of the compiled program.
    analytic: FLOPs of the trace divided by the chips.
    mesh: size by mesh axis.
  """
  axes = lambda one: f"{one.kind} over {'+'.join(_axes(one, mesh))}"
  return {
    "flops_per_step": {
      "counted": cost.flops,
      "analytic": analytic,
      "kernels": cost.kernel_flops,
    },
    "collective_bytes": cost.bytes_by(lambda one: one.kind),
    "collective_bytes_by_axis": cost.bytes_by(axes),
    "collective_bytes_synchronous": sum(
      one.total for one in cost.collectives if not one.is_async
    ),
    "unknown_loops": [name for name, trips in cost.loops.items() if trips is None],
  }


def _axes(one: collectives.Collective, mesh: dict[str, int]) -> tuple[str, ...]:
  return collectives.mesh_axes(one.group, mesh) or ("none",)


def prediction(
  times: Roofline, pod: Topology, tokens: int, images: int, model_flops: float
) -> dict[str, Any]:
  """Speed of a whole pod.

  Args:
    times: the roofline of one chip.
    pod: the pod.
    tokens: sequence positions of a step.
    images: pictures of a step.
    model_flops: FLOPs of a step of the whole pod without recomputation.
  """
  seconds = times.predicted
  return {
    "seconds": seconds,
    "tokens_per_second": tokens / seconds,
    "images_per_second": images / seconds,
    "mfu": model_flops / (seconds * pod.chips * pod.chip.flops),
    "bound": times.bound,
    "parts": {
      "products": times.products,
      "compute": times.compute,
      "synchronous_collectives": times.exposed,
      "asynchronous_collectives": times.hidden,
      "memory_floor": times.memory,
    },
  }


def receipt(
  predicted: dict[str, Any], schedule: tuple[int, int], pod: Topology, price: float
) -> dict[str, Any]:
  """What the steps of a program take.

  Args:
    predicted: as `prediction` returns.
    schedule: steps that run the program, and steps of the whole schedule.
    pod: the pod.
    price: of a chip-hour, in any currency; 0 when unknown.
  """
  steps, of = schedule
  hours = predicted["seconds"] * steps / HOUR
  return {
    "steps": steps,
    "schedule": of,
    "days": hours / 24,
    "chip_hours": hours * pod.chips,
    "price_per_chip_hour": price,
    "cost": hours * pod.chips * price,
    "create": topology.create_command(pod),
  }


def page(plan: dict[str, Any]) -> str:
  """The printed form of a plan's figures."""
  lines = [
    f"program   {plan['program']} on {plan['topology']}: {plan['chips']} chips,"
    f" {plan['slices']} slice{'s' if plan['slices'] > 1 else ''}",
    "mesh      " + "  ".join(f"{axis} {n}" for axis, n in plan["mesh"].items()),
    f"batch     {_batch(plan)}",
  ]
  if "memory_per_chip" not in plan:
    return "\n".join([*lines, *_misfit(plan)])
  lines += _memory_lines(plan["memory_per_chip"])
  flops = plan["flops_per_step"]
  lines.append(
    f"FLOPs     {flops['counted'] / 1e12:.2f} T per chip and step counted,"
    f" {flops['analytic'] / 1e12:.2f} T analytic"
    f" (ratio {flops['counted'] / flops['analytic']:.4f});"
    f" kernels {flops['kernels'] / 1e12:.2f} T more, analytic"
  )
  lines += [
    f"exchange  {size / GB:9.3f} GB  {name}"
    for name, size in sorted(
      plan["collective_bytes_by_axis"].items(), key=lambda item: -item[1]
    )
  ]
  if "predicted" in plan:
    lines += _time_lines(plan["predicted"])
  else:
    lines.append(f"at least  {plan['seconds_at_least']:9.3f} s   per step; a draft")
  if "receipt" in plan:
    lines += _receipt_lines(plan["receipt"])
  lines.append(
    f"compiled  in {plan['compile_seconds']:.0f} s, never executed, assuming"
  )
  lines += [f"          - {text}" for text in roofline.ASSUMPTIONS]
  if not plan["fits"]:
    lines += _misfit(plan)
  return "\n".join(lines)


def _batch(plan: dict[str, Any]) -> str:
  parts = plan["accumulate"]
  how = f"in {parts} micro-batches" if parts > 1 else "at once"
  return f"{plan['examples']} rows or pictures {how}"


def _memory_lines(memory: dict[str, Any]) -> list[str]:
  parts = memory["groups"] | {
    name: memory[name] for name in ("outputs", "temporaries", "code")
  }
  total, capacity = memory["total"], memory["capacity"]
  return [
    *(f"memory    {size / GB:9.3f} GB  {name}" for name, size in parts.items()),
    f"memory    {total / GB:9.3f} GB  in all, {total / capacity:.0%} of"
    f" {capacity / GB:.0f} GB",
  ]


def _time_lines(predicted: dict[str, Any]) -> list[str]:
  parts = predicted["parts"]
  return [
    f"roofline  {seconds:9.3f} s   {name.replace('_', ' ')}"
    for name, seconds in parts.items()
  ] + [
    f"predicted {predicted['seconds']:9.3f} s   per step, bound by"
    f" {predicted['bound']}: {predicted['tokens_per_second']:,.0f} tokens/s,"
    f" {predicted['images_per_second']:,.0f} images/s, MFU {predicted['mfu']:.1%}",
  ]


def _receipt_lines(paid: dict[str, Any]) -> list[str]:
  cost = f", cost {paid['cost']:,.0f}" if paid["price_per_chip_hour"] else ""
  part = f" of {paid['schedule']:,}" if paid["steps"] < paid["schedule"] else ""
  return [
    f"receipt   {paid['steps']:,}{part} steps take {paid['days']:.1f} days and"
    f" {paid['chip_hours']:,.0f} chip-hours{cost}",
    f"create    {paid['create']}",
  ]


def _misfit(plan: dict[str, Any]) -> list[str]:
  over = plan["misfit"]
  return [
    f"Does not fit: {over['used'] / GB:.2f} GB per chip of"
    f" {over['capacity'] / GB:.2f} GB, {over['over'] / GB:.2f} GB too much.",
    *(f"Would help: {text}" for text in over["remedies"]),
  ]


def comparison(first: dict[str, Any], second: dict[str, Any]) -> str:
  """Two plans side by side, with the ratio of the second to the first.

  A kind of collective that one of them lacks counts as 0 there.
  """
  lines = [f"{name}  {_heading(plan)}" for name, plan in (("a", first), ("b", second))]
  lines.append(f"{'':34}{'a':>16}{'b':>16}{'ratio':>9}")
  left, right = _flat(first), _flat(second)
  if "collective_bytes" in first and "collective_bytes" in second:
    for kind in first["collective_bytes"] | second["collective_bytes"]:
      for plan, found in ((first, left), (second, right)):
        found[f"{kind} (GB)"] = plan["collective_bytes"].get(kind, 0.0) / GB
  for name in (name for name in left if name in right):
    a, b = left[name], right[name]
    ratio = f"{b / a:9.3f}" if a else "        -"
    lines.append(f"{name:34}{a:16,.3f}{b:16,.3f}{ratio}")
  return "\n".join(lines)


def _heading(plan: dict[str, Any]) -> str:
  mesh = " ".join(f"{axis}={n}" for axis, n in plan["mesh"].items() if n > 1)
  remat = f", remat {plan['remat']}" if "remat" in plan else ""
  fits = "" if plan["fits"] else ", does not fit"
  return (
    f"{plan['program']} on {plan['topology']}: {mesh or 'one chip'},"
    f" {_batch(plan)}{remat}{fits}"
  )


def _flat(plan: dict[str, Any]) -> dict[str, float]:
  """The figures that compare, in readable units; of a misfit those that there are."""
  found, flops = {"chips": plan["chips"]}, plan["flops_per_step"]
  if memory := plan.get("memory_per_chip"):
    names = ("arguments", "temporaries", "total")
    found |= {f"memory {name} (GB)": memory[name] / GB for name in names}
  else:
    found["memory total (GB)"] = plan["misfit"]["used"] / GB
  for name in ("counted", "analytic"):
    if name in flops:
      found[f"FLOPs {name} (T)"] = flops[name] / 1e12
  if predicted := plan.get("predicted"):
    found["predicted (s)"] = predicted["seconds"]
    found["tokens/s"] = predicted["tokens_per_second"]
    found["MFU"] = predicted["mfu"]
  return found
