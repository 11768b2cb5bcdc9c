"""Trains one stage: `python -m lavit_jax.train --config=configs/STAGE.py:VARIANT`.

    python -m lavit_jax.train --config=configs/pretrain.py:tiny \
        --workdir=runs/pretrain --config.mesh.fsdp=-1 --config.num_steps=500

The same command resumes from the newest checkpoint of --workdir. Any field of the
config can be overridden on the command line; misspelt fields are refused. --resume_step
and --change steer a run that has begun (docs/training.md). At the end
--workdir/model holds what the next stage, infer and evaluate_model read. On several
hosts, give each the same command (`lavit_jax/training/hosts.py`).
"""

import sys

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from lavit_jax.core import command_line
from lavit_jax.planning import programs, topology
from lavit_jax.stages import (
  resuming,
  samples,
  stage_run,
)
from lavit_jax.training import (
  hosts,
  mesh_report,
)
from lavit_jax.weights import model_directory

CONFIG = config_flags.DEFINE_config_file("config", None, "Stage configuration.")
PROFILE = flags.DEFINE_string(
  "profile", "", "Steps to trace, FIRST:COUNT, into --workdir/profile."
)
REPORT_MESH = flags.DEFINE_integer(
  "report_mesh", 0, "Say what so many devices would hold, without any, and stop."
)
RESUME_STEP = flags.DEFINE_integer(
  "resume_step", None, "Go back to the checkpoint of this step; later ones are dropped."
)
CHANGE = flags.DEFINE_list(
  "change", [], "Config fields that a resumed run may change, e.g. num_steps."
)
WORKDIR = command_line.define_path("workdir", None, "Run folder; resumed if it exists.")


def _report_without_devices(config: ml_collections.ConfigDict, count: int) -> None:
  """Prints the report of a mesh of so many devices, for stages with a full size."""
  if config.stage not in programs.STEPS:
    raise ValueError(
      f"expected a stage of {sorted(programs.STEPS)} for --report_mesh, got"
      f" {config.stage!r}"
    )
  topology.without_chips()
  split = programs.widths_of(config)
  mesh = mesh_report.without_devices(dict(config.mesh), count, split)
  arguments = programs.STEPS[config.stage](config, mesh).arguments
  groups = mesh_report.groups_of(arguments["state"], arguments["frozen"])
  estimate = mesh_report.activation_bytes(config, mesh)
  print("\n".join(mesh_report.lines(mesh, groups, estimate)))


def _patch_painter(config: ml_collections.ConfigDict) -> samples.PatchPainter | None:
  """How drawn patches are shown, where stage 0 left word heads that read them."""
  if config.stage != "pretrain" or not config.init_from:
    return None
  if "clip" not in model_directory.read_manifest(config.init_from)["parts"]:
    return None
  from lavit_jax.toy import patch_words  # the toy world's words, asked for by its model

  return patch_words.paint


def parse_flags(argv: list[str]) -> list[str]:
  """Parses the command line; a misspelt config field ends in one sentence."""
  try:
    left = app.parse_flags_with_usage(argv)
  except AttributeError as error:
    reason = str(error).strip("'").replace("\\n", "; ").replace("\\'", "'")
    sys.exit(f"error: the config has no field {reason}")
  if CONFIG.value is not None:
    command_line.home_in(CONFIG.value)
  return left


def main(argv: list[str]) -> None:
  """Command line entry."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}; use --config.FIELD=VALUE")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)  # checkpointing logs every file at INFO
  with command_line.in_sentences():
    if REPORT_MESH.value:
      return _report_without_devices(CONFIG.value, REPORT_MESH.value)
    hosts.start()
    paint = _patch_painter(CONFIG.value)
    asked = resuming.Asked(RESUME_STEP.value, tuple(CHANGE.value))
    seconds = stage_run.run(CONFIG.value, WORKDIR.value, PROFILE.value, paint, asked)
  if hosts.is_primary():
    print(f"finished in {seconds['total']:.0f} s: {WORKDIR.value}")


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=parse_flags)
