"""A run of one stage: from a config to a finished model directory."""

import contextlib
import io
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from etils import epath
from PIL import Image

from lavit_jax.core import sharding
from lavit_jax.stages import (
  contrastive,
  data_names,
  finetune,
  pixel_decoder,
  pretrain,
  resuming,
  samples,
  visual_tokenizer,
  warm_start,
  widths,
)
from lavit_jax.training import (
  base,
  checkpoint,
  checkpoint_files,
  compile_cache,
  hosts,
  loop,
  mesh_report,
  metrics,
  profile_window,
  stop,
  timing,
  watchdog,
)

STAGES = {
  "contrastive": contrastive.build,
  "visual_tokenizer": visual_tokenizer.build,
  "pixel_decoder": pixel_decoder.build,
  "pretrain": pretrain.build,
  "finetune": finetune.build,
}
PATHS = ("train", "eval", "text_tokenizer")


def run(
  config: ml_collections.ConfigDict,
  workdir: str,
  profile: str = "",
  paint: samples.PatchPainter | None = None,
  asked: resuming.Asked = resuming.NOTHING,
) -> dict[str, float]:
  """Trains to `config.num_steps`, resuming when `workdir` has checkpoints.

  Args:
    config: as made by the files in configs/.
    workdir: run directory.
    profile: steps to trace, "FIRST:COUNT"; none when empty.
    paint: makes pictures of drawn features, where it is known how to read them.
    asked: what a resumption is to change.

  Returns:
    Seconds spent: total, and those of `timing.LOST`.

  Raises:
    SystemExit: status 0, after SIGTERM and a checkpoint of the step it came in.
  """
  clock = timing.Timing(time.monotonic())
  _check(config)
  split = widths.of_run(config)
  mesh = sharding.make_mesh(dict(config.mesh), widths=split)
  widths.check(mesh, split)
  sharding.check_divides(
    mesh,
    batch_size=(config.batch_size, ("data", "fsdp")),
    micro_batch=(config.batch_size // config.accumulate, ("data", "fsdp")),
  )
  folder = epath.Path(workdir)
  compile_cache.use(str(folder / "compiled"))
  saved = checkpoint.Checkpoints(workdir, checkpoint.Keep(**config.keep))
  with (
    sharding.rules(config.get("rules", {})),
    stop.StopRequest() as request,
    watchdog.Watchdog(config.step_timeout, config.end_hung) as dog,
    contextlib.closing(saved),
  ):
    with clock.part("start"):
      stage = STAGES[config.stage](config, mesh)
      stage.data_names = data_names.of(config)
      state, position, skipped = resuming.begin(config, stage, saved, folder, asked)
      base.check_state(state, stage.abstract, stage.shardings)
    _describe(config, mesh, mesh_report.groups_of(state, stage.frozen))
    with contextlib.closing(metrics.Writer(workdir, config)) as writer:
      look = _observer(config, stage, writer, folder, paint)
      window = profile_window.ProfileWindow(profile, workdir)
      parts = loop.Parts(
        config, stage, saved, writer, look, request, clock, dog, window
      )
      state = loop.train(parts, state, position, skipped)
      # What was trained is safe before the last evaluation, whatever becomes of that.
      dog.enter("checkpoint", config.num_steps)
      _finish(stage, state, folder / "model")
      hosts.meet("model written")
      dog.enter("evaluation", config.num_steps)
      saved.note(config.num_steps, loop.evaluated(parts, state, config.num_steps))
  return clock.seconds | {"total": clock.total()}


def _finish(stage: base.Stage, state: Any, folder: epath.Path) -> None:
  """Writes the model directory; one in a bucket is made here and copied."""
  if "://" not in str(folder):
    stage.finish(state, str(folder))
    return
  with tempfile.TemporaryDirectory() as made:
    stage.finish(state, f"{made}/model")
    if hosts.is_primary():
      for path in sorted(pathlib.Path(made, "model").rglob("*")):
        target = folder / str(path.relative_to(f"{made}/model"))
        if path.is_file():
          target.parent.mkdir(parents=True, exist_ok=True)
          epath.Path(path).copy(target, overwrite=True)


def _describe(config, mesh, groups) -> None:
  """Says what each device will hold."""
  if hosts.is_primary():
    estimate = mesh_report.activation_bytes(config, mesh)
    said = mesh_report.lines(mesh, groups, estimate)
    print("\n".join(said), file=sys.stderr, flush=True)


def _check(config: ml_collections.ConfigDict) -> None:
  """Finds mistakes that need no device and no file."""
  if config.stage not in STAGES:
    raise ValueError(f"config.stage {config.stage!r} is not one of {sorted(STAGES)}")
  if config.batch_size % config.accumulate:
    raise ValueError(
      f"batch_size {config.batch_size} is not a multiple of accumulate"
      f" {config.accumulate}; choose a divisor"
    )
  checkpoint_files.check_best(config)
  warm_start.check(config)
  paths = {"init_from": config.get("init_from", "unused")}
  paths |= {f"data.{name}": config.data[name] for name in PATHS if name in config.data}
  for name, path in paths.items():
    if not path:
      raise ValueError(f"config.{name} is empty; give it with --config.{name}=FOLDER")


def _observer(
  config, stage: base.Stage, writer, folder, paint
) -> Callable[[Any, int], dict]:
  """Makes the evaluation: held-out figures and pictures of a state at a step."""
  shown = None
  if config.stage == "pretrain" and jax.process_count() == 1:
    shown = samples.make(config, stage.mesh, paint)

  def look(state, step: int) -> dict[str, float]:
    with jax.set_mesh(stage.mesh):
      figures, pictures = stage.evaluate(state)
    figures = writer.write(step, "eval", figures)
    if shown is not None:
      pictures = pictures | {"samples": samples.take(shown, state.params)}
    for name, picture in pictures.items():
      writer.image(step, name, picture)
      if hosts.is_primary():
        path = folder / "pictures" / f"{name}-{step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "png")
        path.write_bytes(stream.getvalue())
    return figures

  return look
