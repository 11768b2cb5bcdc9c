"""Metrics of a run: one JSON line and one TensorBoard event per record, host 0 only."""

import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


class Writer:
  """Appends to metrics.jsonl and to TensorBoard events of a run directory."""

  def __init__(self, workdir: str):
    self._active = jax.process_index() == 0
    if not self._active:
      return
    import tensorboardX

    folder = pathlib.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    self._file = (folder / "metrics.jsonl").open("a")
    self._events = tensorboardX.SummaryWriter(str(folder / "tensorboard"))

  def write(self, step: int, kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Writes one record of scalars; returns them as floats."""
    scalars = {name: float(np.asarray(value)) for name, value in values.items()}
    if self._active:
      line = {"step": int(step), "kind": kind, "time": round(time.time(), 3)} | scalars
      self._file.write(json.dumps(line) + "\n")
      self._file.flush()
      for name, value in scalars.items():
        self._events.add_scalar(f"{kind}/{name}", value, int(step))
    return scalars

  def image(self, step: int, name: str, picture: np.ndarray) -> None:
    """Adds a picture u8[H, W, 3] to TensorBoard."""
    if self._active:
      self._events.add_image(name, picture, int(step), dataformats="HWC")

  def close(self) -> None:
    """Flushes everything."""
    if self._active:
      self._file.close()
      self._events.close()


def read(workdir: str | pathlib.Path, kind: str) -> list[dict[str, float]]:
  """Records of one kind of a run, oldest first; a resumed step replaces its elder."""
  path = pathlib.Path(workdir) / "metrics.jsonl"
  by_step = {}
  for line in path.read_text().splitlines():
    record = json.loads(line)
    if record["kind"] == kind:
      by_step[record["step"]] = record
  return [by_step[step] for step in sorted(by_step)]
