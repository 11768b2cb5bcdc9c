"""Trains one stage: `python -m lavit_jax.train --config=configs/STAGE.py:VARIANT`.

    python -m lavit_jax.train --config=configs/pretrain.py:tiny \
        --workdir=runs/pretrain --config.mesh.fsdp=-1 --config.num_steps=500

The same command resumes from the newest checkpoint of --workdir. Any field of the
config can be overridden on the command line; misspelt fields are refused. At the end
--workdir/model holds what the next stage, infer and evaluate_model read.
"""

import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags
from PIL import Image

from lavit_jax import (
  checkpoint,
  code_version,
  compile_cache,
  loop,
  metrics,
  samples,
  sharding,
  stop,
)
from lavit_jax.stages import (
  base,
  contrastive,
  pixel_decoder,
  pretrain,
  visual_tokenizer,
)

STAGES = {
  "contrastive": contrastive.build,
  "visual_tokenizer": visual_tokenizer.build,
  "pixel_decoder": pixel_decoder.build,
  "pretrain": pretrain.build,
}
# What may change between a run and its resumption.
FREE_FIELDS = (
  "init_from",  # its weights are compared by checksum
  "warm_start",
  "batch_size",  # the data position counts rows
  "accumulate",
  "remat",
  "unroll",
  "loss_chunks",
  "mesh", "log_every", "eval_every", "checkpoint_every", "eval_batches", "data_threads",
  "keep",
)  # fmt: skip

PATHS = ("train", "eval", "text_tokenizer")

CONFIG = config_flags.DEFINE_config_file("config", None, "Stage configuration.")
WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; resumed if it exists.")


def run(config: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
  """Trains to `config.num_steps`, resuming when `workdir` has checkpoints.

  Args:
    config: as made by the files in configs/.
    workdir: run directory.

  Returns:
    Seconds spent: total, compile (first step), data (waiting for batches).

  Raises:
    SystemExit: status 0, after SIGTERM and a checkpoint of the step it came in.
  """
  started = time.monotonic()
  _check(config)
  if "://" in workdir:
    raise ValueError(
      f"expected a local or mounted --workdir, got {workdir}; mount the bucket"
      " (gcsfuse) and give the mount point"
    )
  mesh = sharding.make_mesh(dict(config.mesh))
  if jax.process_count() > 1:
    raise ValueError(
      f"expected one host, got {jax.process_count()}: starting and finishing a run on"
      " several hosts is not there yet; run on the devices of one"
    )
  sharding.check_divides(
    mesh,
    batch_size=(config.batch_size, ("data", "fsdp")),
    micro_batch=(config.batch_size // config.accumulate, ("data", "fsdp")),
  )
  folder = pathlib.Path(workdir)
  compile_cache.use(str(folder / "compiled"))
  saved = checkpoint.Checkpoints(workdir, checkpoint.Keep(**config.keep))
  with stop.StopRequest() as request, contextlib.closing(saved):
    stage = STAGES[config.stage](config, mesh)
    state, position = _start(config, stage, saved, folder)
    with contextlib.closing(metrics.Writer(workdir)) as writer:
      look = _observer(config, stage, writer, folder)
      parts = loop.Parts(config, stage, saved, writer, look, request)
      state, seconds = loop.train(parts, state, position)
      look(state, config.num_steps)
    stage.finish(state, str(folder / "model"))
  seconds["total"] = time.monotonic() - started
  return seconds


def _check(config: ml_collections.ConfigDict) -> None:
  """Finds mistakes that need no device and no file."""
  if config.stage not in STAGES:
    raise ValueError(f"config.stage {config.stage!r} is not one of {sorted(STAGES)}")
  if config.batch_size % config.accumulate:
    raise ValueError(
      f"batch_size {config.batch_size} is not a multiple of accumulate"
      f" {config.accumulate}; choose a divisor"
    )
  paths = {"init_from": config.get("init_from", "unused")}
  paths |= {f"data.{name}": config.data[name] for name in PATHS if name in config.data}
  for name, path in paths.items():
    if not path:
      raise ValueError(f"config.{name} is empty; give it with --config.{name}=FOLDER")


def _start(config, stage, saved, folder) -> tuple[Any, int]:
  """Restores the newest checkpoint, or makes the state of step 0."""
  newest = saved.newest()
  fields = json.loads(config.to_json())
  if newest is None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields, indent=2))
    return stage.initial(config.seed), 0
  meta = saved.meta(newest)
  fixed = [
    {k: v for k, v in c.items() if k not in FREE_FIELDS}
    for c in (meta["config"], fields)
  ]
  differing = checkpoint.differing_fields(*fixed)
  if differing:
    raise ValueError(
      f"the checkpoint in {folder} was made with another configuration"
      f" ({'; '.join(differing)}); restore those values or choose a new --workdir"
    )
  if meta["frozen"] != stage.frozen_names:
    raise ValueError(
      f"the checkpoint in {folder} was trained over frozen parts {meta['frozen']} but"
      f" config.init_from now holds {stage.frozen_names}; give the same model directory"
    )
  print(f"resuming {folder} at step {newest}")
  if meta["code"] != code_version.code_version():
    print(f"note: that checkpoint was written by other code, {meta['code']}")
  return saved.restore(newest, stage.abstract, stage.shardings), meta["position"]


def _observer(config, stage: base.Stage, writer, folder) -> Callable[[Any, int], dict]:
  """Makes the evaluation: held-out figures and pictures of a state at a step."""
  shown = None
  if config.stage == "pretrain" and jax.process_count() == 1:
    shown = samples.make(config, stage.mesh)

  def look(state, step: int) -> dict[str, float]:
    with jax.set_mesh(stage.mesh):
      figures, pictures = stage.evaluate(state)
    figures = writer.write(step, "eval", figures)
    if shown is not None:
      pictures = pictures | {"samples": samples.take(shown, state.params)}
    for name, picture in pictures.items():
      writer.image(step, name, picture)
      if jax.process_index() == 0:
        path = folder / "pictures" / f"{name}-{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture).save(path)
    return figures

  return look


def parse_flags(argv: list[str]) -> list[str]:
  """Parses the command line; a misspelt config field ends in one sentence."""
  try:
    return app.parse_flags_with_usage(argv)
  except AttributeError as error:
    reason = str(error).strip("'").replace("\\n", "; ").replace("\\'", "'")
    sys.exit(f"error: the config has no field {reason}")


def main(argv: list[str]) -> None:
  """Command line entry."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}; use --config.FIELD=VALUE")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)  # checkpointing logs every file at INFO
  try:
    seconds = run(CONFIG.value, WORKDIR.value)
  except ValueError as error:
    sys.exit(f"error: {error}")
  print(f"finished in {seconds['total']:.0f} s: {WORKDIR.value}")


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=parse_flags)
