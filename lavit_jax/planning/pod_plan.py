"""Every figure of one program on one pod, from the program compiled without chips."""

import math
import resource
import time
from typing import Any

import jax
import ml_collections

from lavit_jax.core import sharding, traced_flops
from lavit_jax.planning import (
  compiling,
  cost,
  kept,
  programs,
  roofline,
  serving_programs,
  summary,
  topology,
)
from lavit_jax.planning.compiling import DoesNotFitError
from lavit_jax.planning.topology import Topology

# Train steps (phase a of stage 1 has its own), evaluation, and what a model serves.
KINDS = ["train", "train_a", "evaluate", *serving_programs.PROGRAMS]


def make(
  config: ml_collections.ConfigDict,
  pod: Topology,
  price: float = 0.0,
  cache: str = "",
  kind: str = "train",
  rows: int = 64,
  draft: bool = False,
) -> dict[str, Any]:
  """Compiles a program of a stage for a pod and gathers every figure.

  Args:
    config: stage config.
    pod: the pod.
    price: of a chip-hour; 0 when unknown.
    cache: folder of earlier plans by program, or "".
    kind: of `KINDS`.
    rows: pictures or sequences of a call, where nothing trains.
    draft: compile fast, and state a floor of the time in place of a prediction.

  Returns:
    The figures, as `--json` writes them.
  """
  with sharding.rules(config.rules):
    return _make(config, pod, price, cache, kind, rows, draft)


def _make(config, pod, price, cache, kind, rows, draft) -> dict[str, Any]:
  program = _program(kind, config, pod, rows)
  found = programs.trace(program)
  with jax.set_mesh(program.mesh):
    lowered = found.lower()
  work = lambda: _compile(pod, program, found, lowered, draft)
  made = kept.figures(cache, f"{pod} draft={draft} {lowered.as_text()}", work)
  # Programs may be the same where configs are not: what a config says is never kept.
  plan = _labels(config, pod, program) | made
  if not plan["fits"]:
    remedies = _remedies(plan["misfit"]["capacity"], config, pod, program)
    plan["misfit"] = plan["misfit"] | {"remedies": remedies}
  if "predicted" in plan and program.steps:
    schedule = (program.steps, config.num_steps)
    plan["receipt"] = summary.receipt(plan["predicted"], schedule, pod, price)
  return plan


def _program(kind: str, config, pod: Topology, rows: int) -> programs.Program:
  """The program that --program names."""
  mesh = pod_mesh(config, pod)
  if config.stage not in programs.STEPS:
    raise ValueError(
      f"expected a stage of {sorted(programs.STEPS)} to plan, got {config.stage!r}"
    )
  if kind == "train":
    return programs.STEPS[config.stage](config, mesh)
  if kind == "evaluate":
    return programs.evaluation(config, mesh)
  stages = {"train_a": ("visual_tokenizer", "7b")} | serving_programs.CONFIG
  stage, variant = stages[kind]
  if config.stage != stage:
    raise ValueError(
      f"--program={kind} belongs to stage {stage}, got a config of {config.stage}; give"
      f" --config=configs/{stage}.py:{variant}"
    )
  if kind == "train_a":
    return programs.first_tokenizer_step(config, mesh)
  sharding.check_divides(mesh, rows=(rows, ("data", "fsdp")))
  return serving_programs.PROGRAMS[kind](config, mesh, rows)


def _labels(config, pod: Topology, program: programs.Program) -> dict[str, Any]:
  """What is planned."""
  labels = {
    "program": program.name,
    "topology": str(pod),
    "chips": pod.chips,
    "slices": pod.slices,
    "mesh": dict(program.mesh.shape),
    "examples": program.examples,
    "accumulate": program.accumulate,
    "jax": jax.__version__,
  }
  return labels | ({"remat": config.remat} if program.steps else {})


def _compile(pod: Topology, program, found, lowered, draft: bool) -> dict[str, Any]:
  """The figures of a program that was not planned before."""
  analytic, started = traced_flops.flops(found.jaxpr) / pod.chips, time.monotonic()
  try:
    compiled = compiling.compile_lowered(lowered, program.mesh, draft)
  except DoesNotFitError as error:
    return _misfit(error.used, error.capacity) | {
      "flops_per_step": {"analytic": analytic},
      "compile_seconds": time.monotonic() - started,
    }
  groups = argument_groups(program)
  memory = summary.memory_figures(compiled.memory, groups, pod.chip.memory)
  counts = cost.count(compiled.text, pod.chips)
  figures = {"fits": True, "memory_per_chip": memory}
  figures |= summary.cost_figures(counts, analytic, dict(program.mesh.shape))
  moved = compiled.memory.arguments + compiled.memory.outputs
  if "state" in program.arguments:  # written whole; a donated cache is only added to
    moved += compiled.memory.donated
  places = [_place(device) for device in program.mesh.devices.flat]
  times = roofline.estimate(counts, pod, places, moved)
  if draft:
    figures["seconds_at_least"] = times.floor
    figures["seconds_in_turn"] = times.in_turn
  else:
    work = (program.tokens, program.images, traced_flops.model_flops(found.jaxpr))
    figures["predicted"] = summary.prediction(times, pod, *work)
  figures |= {
    "compile_seconds": compiled.seconds,
    "compile_cpu_seconds": compiled.cpu_seconds,
    "compile_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
  }
  if memory["total"] > pod.chip.memory:
    figures |= _misfit(memory["total"], pod.chip.memory)
  return figures


def pod_mesh(config: ml_collections.ConfigDict, pod: Topology) -> jax.sharding.Mesh:
  """The mesh of a config over a pod; `data` spans the slices."""
  sizes = dict(config.mesh)
  if pod.slices > 1 and sizes.get("data", 1) == 1:
    sizes["data"] = pod.slices
  split = programs.widths_of(config)
  return sharding.make_mesh(sizes, topology.devices(pod), split)


def _place(device: Any) -> tuple[int, ...]:
  return (getattr(device, "slice_index", None) or 0, *device.coords)


def argument_groups(program: programs.Program) -> dict[str, int]:
  """Bytes on one chip of each group of arguments."""
  groups = dict(program.arguments)
  groups.pop("key", None)
  if state := groups.pop("state", None):
    rest = (state.opt_state, state.step, state.codebook)
    groups = {"parameters": state.params, "optimizer": rest} | groups
  return {
    name: sharding.bytes_per_device(tree, jax.tree.map(lambda x: x.sharding, tree))
    for name, tree in groups.items()
  }


def _misfit(used: float, capacity: float) -> dict[str, Any]:
  """By how much a plan does not fit."""
  over = {"used": used, "capacity": capacity, "over": used - capacity}
  return {"fits": False, "misfit": over}


def _remedies(capacity: float, config, pod: Topology, program) -> list[str]:
  """What would help a program that does not fit."""
  state = sum(argument_groups(program).values())
  remedies = []
  if program.mesh.shape["data"] > pod.slices:
    remedies.append("more of the mesh for --config.mesh.fsdp, less for data")
  if state > 0.8 * capacity:
    need = math.ceil(state * program.mesh.size / (0.5 * capacity))
    remedies.append(f"a larger pod: the arguments alone need about {need} chips")
  if program.steps:
    remedies += _train_remedies(config, program)
  elif program.examples > program.mesh.shape["data"] * program.mesh.shape["fsdp"]:
    remedies.append(f"--rows={program.examples // 2}: fewer at a time")
  return remedies or ["a mesh with tensor=2, or a chip with more memory"]


def _train_remedies(config, program) -> list[str]:
  """Fields of the config that make a train step smaller."""
  remedies = []
  ways = program.mesh.shape["data"] * program.mesh.shape["fsdp"]
  rows = program.examples // program.accumulate // ways
  if config.remat != "full":
    remedies.append("--config.remat=full, which keeps only the input of each layer")
  if rows > 1 and rows % 2 == 0:
    remedies.append(
      f"--config.accumulate={config.accumulate * 2}: {rows} rows per chip at a time"
      " now, temporaries fall by up to half"
    )
  if "loss_chunks" in config and config.loss_chunks < 8:
    remedies.append("--config.loss_chunks=8: the logits never exist at once")
  return remedies
