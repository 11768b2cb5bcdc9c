"""Measures mesh layouts on the attached devices: `python -m lavit_jax.sweep`.

    python -m lavit_jax.sweep --config=configs/pretrain.py:7b --workdir=runs/sweep \
        [--layouts=1x8x1x1,1x4x1x2] [--steps=5] [--topology=v5e-8]

Runs the real train step on each layout (data x fsdp x sequence x tensor) with weights
of zero, which takes the same time. With --topology the table also has the prediction of
`plan` for the same layout. Writes sweep.json, sweep.md and sweep.png.
"""

import jax
from absl import app, flags

from lavit_jax import train
from lavit_jax.core import command_line
from lavit_jax.planning import measured_sweep

LAYOUTS = flags.DEFINE_list("layouts", [], "Layouts such as 1x8x1x1; all when empty.")
STEPS = flags.DEFINE_integer("steps", 5, "Steps to measure, after one that compiles.")
TOPOLOGY = flags.DEFINE_string(
  "topology", "", "Pod for the predictions of plan.", allow_override=True
)  # plan has a flag of this name too


def main(argv: list[str]) -> None:
  """Command line entry."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}; use --config.FIELD=VALUE")
  with command_line.in_sentences():
    chosen = [
      measured_sweep.parse(text) for text in LAYOUTS.value
    ] or measured_sweep.layouts(jax.device_count())
    config, workdir = train.CONFIG.value, train.WORKDIR.value
    rows = measured_sweep.run(config, chosen, STEPS.value, TOPOLOGY.value, workdir)
  print(measured_sweep.table(rows))


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=train.parse_flags)
