"""Plans a pod before it is rented: the real program, compiled without chips.

    python -m lavit_jax.plan --config=configs/pretrain.py:7b --topology=v5p:4x4x4 \
        [--config.mesh.fsdp=32 --config.mesh.tensor=2] [--price=4.2] [--json=plan.json]

Prints memory per chip, FLOPs, collectives, a predicted step time and a receipt. Needs
libtpu (`. launch/environment.sh; enter_environment tpu`, or in the repository's root
`pip install --editable '.[tpu]'`) and no TPU. Topologies: v5p:4x4x4, v5p-128 (64 chips,
by TensorCores), v5e-64 (chips), several slices with --slices=2.

--draft compiles in a third of the time and says what fits, but predicts no time.
--sweep=30 --html=sweep.html drafts the 30 most promising layouts and plans the best of
them in full; --compare=a.json,b.json sets two plans side by side; --program plans what
is no train step, or phase a of stage 1 (train_a).
"""

import json
import pathlib
from typing import Any

import ml_collections
from absl import app, flags
from ml_collections import config_flags

from lavit_jax import train
from lavit_jax.core import command_line
from lavit_jax.planning import (
  layout_sweep,
  pod_plan,
  summary,
  topology,
)
from lavit_jax.planning.topology import Topology

TOPOLOGY = flags.DEFINE_string("topology", None, "Pod, e.g. v5p:4x4x4 or v5e-64.")
SLICES = flags.DEFINE_integer("slices", 1, "Slices joined by the network.")
PRICE = flags.DEFINE_float("price", 0.0, "Price of a chip-hour, for the receipt.")
JSON = command_line.define_path("json", "", "File for the figures.")
CACHE = command_line.define_path("cache", "", "Folder of plans, by program.")
PROGRAM = flags.DEFINE_enum("program", "train", pod_plan.KINDS, "What to compile.")
DRAFT = flags.DEFINE_bool("draft", False, "Compile fast; predict no time.")
ROWS = flags.DEFINE_integer("rows", 64, "Pictures or sequences of a serving program.")
SWEEP = flags.DEFINE_integer("sweep", 0, "Compile this many layouts and compare them.")
HTML = command_line.define_path("html", "sweep.html", "Page of a sweep.")
COMPARE = flags.DEFINE_list("compare", [], "Two JSON files of plans: a.json,b.json.")


def main(argv: list[str]) -> None:
  """Command line entry."""
  topology.without_chips()
  with command_line.in_sentences():
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
      plan = pod_plan.make(train.CONFIG.value, pod, *asked)
      print(summary.page(plan))
  if JSON.value:
    pathlib.Path(JSON.value).write_text(json.dumps(plan, indent=2))


def _sweep(config: ml_collections.ConfigDict, pod: Topology) -> dict[str, Any]:
  """Runs a sweep, writes its page and says how it went."""
  if PROGRAM.value != "train":
    raise ValueError(
      f"--sweep compares train steps, got --program={PROGRAM.value}; leave one out"
    )
  swept = layout_sweep.run(config, pod, SWEEP.value, shared_arguments(pod))
  pathlib.Path(HTML.value).write_text(layout_sweep.page(swept))
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
  return [_read(path) for path in paths]


def _read(path: str) -> dict[str, Any]:
  """A plan from its file."""
  try:
    plan = json.loads(pathlib.Path(path).read_text())
  except ValueError:
    plan = None
  if not isinstance(plan, dict) or "flops_per_step" not in plan:
    raise ValueError(
      f"--compare expects plans of one layout each, and {path} holds none; write it"
      " with --json and without --sweep"
    )
  return plan


if __name__ == "__main__":
  app.run(main, flags_parser=train.parse_flags)
