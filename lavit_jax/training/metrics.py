"""Metrics of a run: one JSON line and one TensorBoard event per record, host 0 only."""

import hashlib
import json
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

REMOTE_SECONDS = 30  # between two writes of the whole file to a bucket


class Lines:
  """A file of lines that grows. A bucket cannot append: there it is written anew."""

  def __init__(self, path: epath.Path):
    """Continues the file, or begins it."""
    self._path, self._stream, self._written = path, None, 0.0
    if "://" not in str(path):
      self._stream = path.open("a")
    else:
      self._lines = path.read_text() if path.exists() else ""

  def add(self, line: str) -> None:
    """Adds a line; on a bucket it appears within half a minute."""
    if self._stream:
      self._stream.write(line + "\n")
      self._stream.flush()
      return
    self._lines += line + "\n"
    if time.monotonic() - self._written > REMOTE_SECONDS:
      self._path.write_text(self._lines)
      self._written = time.monotonic()

  def close(self) -> None:
    """Writes what is left."""
    if self._stream:
      self._stream.close()
    else:
      self._path.write_text(self._lines)


class Writer:
  """Appends to metrics.jsonl and to TensorBoard events of a run directory."""

  def __init__(self, workdir: str, config: ml_collections.ConfigDict):
    """Opens the files of `workdir`; `config.wandb` may name a project."""
    self._active = jax.process_index() == 0
    if not self._active:
      return
    import tensorboardX

    folder = epath.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    self._lines = Lines(folder / "metrics.jsonl")
    # TensorBoard events of a run in a bucket stay on this machine.
    local = tempfile.mkdtemp() if "://" in workdir else str(folder)
    self._events = tensorboardX.SummaryWriter(f"{local}/tensorboard")
    self._online = _online(config, folder) if config.wandb else None

  def write(self, step: int, kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Writes one record of scalars; returns them as floats."""
    scalars = {name: float(np.asarray(value)) for name, value in values.items()}
    if self._active:
      line = {"step": int(step), "kind": kind, "time": round(time.time(), 3)} | scalars
      self._lines.add(json.dumps(line))
      for name, value in scalars.items():
        self._events.add_scalar(f"{kind}/{name}", value, int(step))
      if self._online is not None:
        named = {f"{kind}/{name}": value for name, value in scalars.items()}
        self._online.log(named, step=int(step))
    return scalars

  def event(self, step: int, kind: str, **fields: Any) -> None:
    """Writes one line of JSON-compatible fields that are no figures of a record."""
    if self._active:
      line = {"step": int(step), "kind": kind, "time": round(time.time(), 3)} | fields
      self._lines.add(json.dumps(line))

  def image(self, step: int, name: str, picture: np.ndarray) -> None:
    """Adds a picture u8[H, W, 3] to TensorBoard."""
    if self._active:
      self._events.add_image(name, picture, int(step), dataformats="HWC")

  def close(self) -> None:
    """Flushes everything."""
    if self._active:
      self._lines.close()
      self._events.close()
      if self._online is not None:
        self._online.finish()


def _online(config: ml_collections.ConfigDict, folder: epath.Path) -> Any:
  """Opens a run of Weights & Biases; a resumed run goes on in the same one."""
  try:
    import wandb
  except ImportError as error:
    raise ValueError(
      f"expected the package wandb for config.wandb {config.wandb!r}, got none; pip"
      " install wandb, or leave the field empty"
    ) from error
  name = str(folder.resolve())
  return wandb.init(
    project=config.wandb,
    id=hashlib.sha256(name.encode()).hexdigest()[:16],
    name=f"{config.stage} {folder.name}",
    dir=tempfile.gettempdir(),
    resume="allow",
    config=config.to_dict(),
  )


def read(workdir: str | pathlib.Path, kind: str) -> list[dict[str, float]]:
  """Records of one kind of a run, oldest first; a resumed step replaces its elder."""
  path = pathlib.Path(workdir) / "metrics.jsonl"
  by_step = {}
  for line in path.read_text().splitlines():
    record = json.loads(line)
    if record["kind"] == kind:
      by_step[record["step"]] = record
  return [by_step[step] for step in sorted(by_step)]
