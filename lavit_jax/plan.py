"""Plans a pod before it is rented: the real program, compiled without chips.

    python -m lavit_jax.plan --config=configs/pretrain.py:7b --topology=v5p:4x4x4 \
        [--config.mesh.fsdp=32 --config.mesh.tensor=2] [--price=4.2] [--json=plan.json]

Prints memory per chip, FLOPs, collectives, a predicted step time and a receipt. Needs
libtpu (pip install 'lavit_jax[tpu]') and no TPU. Topologies: v5p:4x4x4, v5p-128 (64
chips, by TensorCores), v5e-64 (chips), several slices with --slices=2.
"""

import json
import math
import pathlib
import sys
from typing import Any

import jax
import ml_collections
from absl import app, flags

from lavit_jax import sharding, train
from lavit_jax.planning import compiling, cost, roofline, summary, topology, traced
from lavit_jax.planning.compiling import DoesNotFitError
from lavit_jax.planning.topology import Topology
from lavit_jax.stages import programs

TOPOLOGY = flags.DEFINE_string("topology", None, "Pod, e.g. v5p:4x4x4 or v5e-64.")
SLICES = flags.DEFINE_integer("slices", 1, "Slices joined by the network.")
PRICE = flags.DEFINE_float("price", 0.0, "Price of a chip-hour, for the receipt.")
JSON = flags.DEFINE_string("json", "", "File for the figures.")


def make(
  config: ml_collections.ConfigDict, pod: Topology, price: float = 0.0
) -> dict[str, Any]:
  """Compiles the train step of a stage for a pod and gathers every figure.

  Args:
    config: stage config.
    pod: the pod.
    price: of a chip-hour; 0 when unknown.

  Returns:
    The figures, as `--json` writes them.
  """
  if config.stage not in programs.STEPS:
    raise ValueError(
      f"expected a stage of {sorted(programs.STEPS)} to plan, got {config.stage!r}; it"
      " has no full-size variant"
    )
  mesh = pod_mesh(config, pod)
  program = programs.STEPS[config.stage](config, mesh)
  found = programs.trace(program)
  plan = {
    "program": program.name,
    "topology": str(pod),
    "chips": pod.chips,
    "slices": pod.slices,
    "mesh": dict(mesh.shape),
    "examples": program.examples,
    "accumulate": config.accumulate,
    "remat": config.remat,
    "jax": jax.__version__,
  }
  try:
    compiled = compiling.compile_traced(found, mesh)
  except DoesNotFitError as error:
    return plan | _misfit(error.used, error.capacity, config, program)
  groups = argument_groups(program)
  figures = summary.memory_figures(compiled.memory, groups, pod.chip.memory)
  counts = cost.count(compiled.text, pod.chips)
  moved = compiled.memory.arguments + compiled.memory.outputs
  places = [_place(device) for device in mesh.devices.flat]
  times = roofline.estimate(counts, pod, places, moved)
  model_flops = traced.flops(_without_recomputation(config, mesh).jaxpr)
  volume = (program.tokens, program.images)
  plan |= {"fits": True, "memory_per_chip": figures}
  plan |= summary.cost_figures(
    counts, traced.flops(found.jaxpr) / pod.chips, dict(mesh.shape)
  )
  plan |= {
    "predicted": summary.prediction(times, pod, *volume, model_flops),
    "compile_seconds": compiled.seconds,
    "receipt": summary.receipt(times.predicted, config.num_steps, pod, price),
  }
  if figures["total"] > pod.chip.memory:
    plan |= _misfit(figures["total"], pod.chip.memory, config, program)
  return plan


def pod_mesh(config: ml_collections.ConfigDict, pod: Topology) -> jax.sharding.Mesh:
  """The mesh of a config over a pod; `data` spans the slices."""
  sizes = dict(config.mesh)
  if pod.slices > 1 and sizes.get("data", 1) == 1:
    sizes["data"] = pod.slices
  return sharding.make_mesh(sizes, topology.devices(pod))


def _place(device: Any) -> tuple[int, ...]:
  return (getattr(device, "slice_index", None) or 0, *device.coords)


def argument_groups(program: programs.Program) -> dict[str, int]:
  """Bytes on one chip of each group of arguments."""
  state = program.arguments["state"]
  groups = {
    "parameters": state.params,
    "optimizer": (state.opt_state, state.step, state.codebook),
    "frozen": program.arguments["frozen"],
    "batch": program.arguments["batch"],
  }
  return {
    name: sharding.bytes_per_device(tree, jax.tree.map(lambda x: x.sharding, tree))
    for name, tree in groups.items()
  }


def _without_recomputation(config: ml_collections.ConfigDict, mesh) -> Any:
  """The same step traced without rematerialization and without kernels."""
  plain = ml_collections.ConfigDict(config)
  plain.remat = "none"
  program = programs.STEPS[plain.stage](plain, mesh)
  return program.function.trace(*program.arguments.values())


def _misfit(used: float, capacity: float, config, program) -> dict[str, Any]:
  """By how much a plan does not fit, and what would help."""
  state = sum(argument_groups(program).values())
  ways = program.mesh.shape["data"] * program.mesh.shape["fsdp"]
  rows = config.batch_size // config.accumulate // ways
  remedies = []
  if program.mesh.shape["data"] > 1:
    remedies.append("more of the mesh for --config.mesh.fsdp, less for data")
  if state > 0.8 * capacity:
    need = math.ceil(state * program.mesh.size / (0.5 * capacity))
    remedies.append(f"a larger pod: the arguments alone need about {need} chips")
  if config.remat != "full":
    remedies.append("--config.remat=full, which keeps only the input of each layer")
  if rows > 1:
    remedies.append(
      f"--config.accumulate={config.accumulate * 2}: {rows} rows per chip at a time"
      " now, temporaries fall by up to half"
    )
  if "loss_chunks" in config and config.loss_chunks < 8:
    remedies.append("--config.loss_chunks=8: the logits never exist at once")
  remedies = remedies or ["a mesh with tensor=2, or a chip with more memory"]
  over = {"used": used, "capacity": capacity, "over": used - capacity}
  return {"fits": False, "misfit": over | {"remedies": remedies}}


def main(argv: list[str]) -> None:
  """Command line entry."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}; use --config.FIELD=VALUE")
  topology.without_chips()
  try:
    pod = topology.parse(TOPOLOGY.value, SLICES.value)
    plan = make(train.CONFIG.value, pod, PRICE.value)
  except ValueError as error:
    sys.exit(f"error: {error}")
  print(summary.page(plan))
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(plan, indent=2))


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "topology"])
  app.run(main, flags_parser=train.parse_flags)
