"""Plans a pod before it is rented: the real program, compiled without chips.

    python -m lavit_jax.plan --config=configs/pretrain.py:7b --topology=v5p:4x4x4 \
        [--config.mesh.fsdp=32 --config.mesh.tensor=2] [--price=4.2] [--json=plan.json]

Prints memory per chip, FLOPs, collectives, a predicted step time and a receipt. Needs
libtpu (pip install 'lavit_jax[tpu]') and no TPU. Topologies: v5p:4x4x4, v5p-128 (64
chips, by TensorCores), v5e-64 (chips), several slices with --slices=2.

--draft compiles in a third of the time and says what fits, but predicts no time.
--sweep=30 --html=sweep.html drafts the 30 most promising layouts and plans the best of
them in full; --compare=a.json,b.json sets two plans side by side.
"""

import hashlib
import json
import math
import pathlib
import resource
import sys
from typing import Any

import jax
import ml_collections
from absl import app, flags
from ml_collections import config_flags

from lavit_jax import plan_sweep, sharding, train
from lavit_jax.planning import compiling, cost, roofline, summary, topology, traced
from lavit_jax.planning.compiling import DoesNotFitError
from lavit_jax.planning.topology import Topology
from lavit_jax.stages import programs, serving_programs

TOPOLOGY = flags.DEFINE_string("topology", None, "Pod, e.g. v5p:4x4x4 or v5e-64.")
SLICES = flags.DEFINE_integer("slices", 1, "Slices joined by the network.")
PRICE = flags.DEFINE_float("price", 0.0, "Price of a chip-hour, for the receipt.")
JSON = flags.DEFINE_string("json", "", "File for the figures.")
CACHE = flags.DEFINE_string("cache", "", "Folder of plans, found again by program.")
PROGRAM = flags.DEFINE_enum(
  "program", "train", ["train", *serving_programs.PROGRAMS], "What to compile."
)
DRAFT = flags.DEFINE_bool("draft", False, "Compile fast; predict no time.")
ROWS = flags.DEFINE_integer("rows", 64, "Pictures or sequences of a serving program.")
SWEEP = flags.DEFINE_integer("sweep", 0, "Compile this many layouts and compare them.")
HTML = flags.DEFINE_string("html", "sweep.html", "Page of a sweep.")
COMPARE = flags.DEFINE_list("compare", [], "Two JSON files of plans: a.json,b.json.")


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
    kind: "train" or a name of `serving_programs.PROGRAMS`.
    rows: pictures or sequences of a call, where nothing trains.
    draft: compile fast, and state a floor of the time in place of a prediction.

  Returns:
    The figures, as `--json` writes them.
  """
  if config.stage not in programs.STEPS:
    raise ValueError(
      f"expected a stage of {sorted(programs.STEPS)} to plan, got {config.stage!r}"
    )
  mesh = pod_mesh(config, pod)
  if kind == "train":
    program = programs.STEPS[config.stage](config, mesh)
  else:
    program = _serving(kind, config, mesh, rows)
  found = programs.trace(program)
  with jax.set_mesh(mesh):
    lowered = found.lower()
  key = f"{pod} jax {jax.__version__} {'draft ' * draft}{lowered.as_text()}"
  kept = pathlib.Path(cache) / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
  if cache and kept.exists():
    plan = json.loads(kept.read_text())
  else:
    plan = _compile(config, pod, program, found, lowered, draft)
    if cache:
      kept.parent.mkdir(parents=True, exist_ok=True)
      kept.write_text(json.dumps(plan))
  if "predicted" in plan and kind == "train":
    seconds = plan["predicted"]["seconds"]
    plan["receipt"] = summary.receipt(seconds, config.num_steps, pod, price)
  return plan


def _serving(kind: str, config, mesh, rows: int) -> programs.Program:
  stage = serving_programs.STAGE[kind]
  if config.stage != stage:
    raise ValueError(
      f"--program={kind} belongs to stage {stage}, got a config of {config.stage}; give"
      f" --config=configs/{stage}.py:7b"
    )
  sharding.check_divides(mesh, rows=(rows, ("data", "fsdp")))
  return serving_programs.PROGRAMS[kind](config, mesh, rows)


def _compile(
  config, pod: Topology, program, found, lowered, draft: bool
) -> dict[str, Any]:
  """The figures of a program that was not planned before."""
  mesh = program.mesh
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
    compiled = compiling.compile_lowered(lowered, mesh, draft)
  except DoesNotFitError as error:
    return plan | _misfit(error.used, error.capacity, config, program)
  groups = argument_groups(program)
  figures = summary.memory_figures(compiled.memory, groups, pod.chip.memory)
  counts = cost.count(compiled.text, pod.chips)
  moved = compiled.memory.arguments + compiled.memory.outputs
  places = [_place(device) for device in mesh.devices.flat]
  times = roofline.estimate(counts, pod, places, moved)
  plan |= {"fits": True, "memory_per_chip": figures}
  plan |= summary.cost_figures(
    counts, traced.flops(found.jaxpr) / pod.chips, dict(mesh.shape)
  )
  if draft:
    plan["seconds_at_least"] = times.floor
  else:
    plan["predicted"] = _prediction(config, pod, program, found, times)
  plan |= {
    "compile_seconds": compiled.seconds,
    "compile_cpu_seconds": compiled.cpu_seconds,
    "compile_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
  }
  if figures["total"] > pod.chip.memory:
    plan |= _misfit(figures["total"], pod.chip.memory, config, program)
  return plan


def _prediction(config, pod: Topology, program, found, times) -> dict[str, Any]:
  plain = found
  if "state" in program.arguments:
    plain = _without_recomputation(config, program.mesh)
  volume = (program.tokens, program.images)
  return summary.prediction(times, pod, *volume, traced.flops(plain.jaxpr))


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
  groups = dict(program.arguments)
  groups.pop("key", None)
  if state := groups.pop("state", None):
    rest = (state.opt_state, state.step, state.codebook)
    groups = {"parameters": state.params, "optimizer": rest} | groups
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
  topology.without_chips()
  try:
    if COMPARE.value:
      return print(summary.comparison(*_pair([*COMPARE.value, *argv[1:]])))
    if len(argv) > 1:
      raise ValueError(f"unexpected arguments {argv[1:]}; use --config.FIELD=VALUE")
    if not train.CONFIG.value or not TOPOLOGY.value:
      raise ValueError(
        "expected --config=configs/STAGE.py:7b and --topology such as v5p:4x4x4; give"
        " both, or --compare=a.json,b.json"
      )
    pod = topology.parse(TOPOLOGY.value, SLICES.value)
    if SWEEP.value:
      plan = _sweep(train.CONFIG.value, pod)
    else:
      asked = (PRICE.value, CACHE.value, PROGRAM.value, ROWS.value, DRAFT.value)
      plan = make(train.CONFIG.value, pod, *asked)
      print(summary.page(plan))
  except ValueError as error:
    sys.exit(f"error: {error}")
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(plan, indent=2))


def _sweep(config: ml_collections.ConfigDict, pod: Topology) -> dict[str, Any]:
  """Runs a sweep, writes its page and says how it went."""
  if PROGRAM.value != "train":
    raise ValueError(
      f"--sweep compares train steps, got --program={PROGRAM.value}; leave one out"
    )
  swept = plan_sweep.run(config, pod, SWEEP.value, shared_arguments(pod))
  pathlib.Path(HTML.value).write_text(plan_sweep.page(swept))
  plans = swept["layouts"]
  broken = [plan["layout"] for plan in plans if "failed" in plan]
  print(
    f"wrote {HTML.value}: {sum(plan['fits'] for plan in plans)} of {len(plans)} layouts"
    f" fit" + f"; failed: {', '.join(broken)}" * bool(broken)
  )
  return swept


def shared_arguments(pod: Topology) -> list[str]:
  """What the plans of a sweep are asked alike, from the flags of this command."""
  flag = flags.FLAGS["config"]
  changed = config_flags.get_override_values(flag)
  return [
    f"--config={config_flags.get_config_filename(flag)}",
    *(f"--config.{name}={value}" for name, value in changed.items()),
    f"--topology={pod.chip.name}:{'x'.join(map(str, pod.shape))}",
    f"--slices={pod.slices}",
    f"--cache={CACHE.value}",
  ]


def _pair(paths: list[str]) -> list[dict[str, Any]]:
  """Reads the two plans of --compare."""
  missing = [path for path in paths if not pathlib.Path(path).is_file()]
  if len(paths) != 2 or missing:
    raise ValueError(
      f"--compare expects two files that --json wrote, got {paths}"
      f"{f' of which {missing} do not exist' if missing else ''}; give a.json,b.json"
    )
  return [json.loads(pathlib.Path(path).read_text()) for path in paths]


if __name__ == "__main__":
  app.run(main, flags_parser=train.parse_flags)
