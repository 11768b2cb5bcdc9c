"""Where the time of a run goes."""

import contextlib
import time
from collections.abc import Iterator

LOST = ("start", "compile", "data", "checkpoint", "evaluation")


class Timing:
  """Seconds by part since a run was started, and over the steps between two records.

  Attributes:
    seconds: by part, see LOST; data is the waiting for batches.
  """

  def __init__(self, started: float):
    """Counts from `started`, a time of `time.monotonic`, on."""
    self._started = started
    self.seconds = dict.fromkeys(LOST, 0.0)
    self._steps, self._since, self._before = 0, started, 0.0

  @contextlib.contextmanager
  def part(self, name: str) -> Iterator[None]:
    """Counts the time inside for a part."""
    began = time.monotonic()
    try:
      yield
    finally:
      self.seconds[name] += time.monotonic() - began

  def begin(self) -> None:
    """Begins a stretch of steps: what came before is not in its rate."""
    self._steps, self._since = 0, time.monotonic()
    self._before = self.seconds["evaluation"] + self.seconds["checkpoint"]

  def step(self) -> None:
    """Counts one step."""
    self._steps += 1

  def stretch(self) -> tuple[int, float]:
    """Steps since `begin`, and their seconds without evaluation and checkpoints."""
    aside = self.seconds["evaluation"] + self.seconds["checkpoint"] - self._before
    return self._steps, time.monotonic() - self._since - aside

  def total(self) -> float:
    """Seconds since the start."""
    return time.monotonic() - self._started

  def goodput(self) -> float:
    """Share of the time since the start that went into steps."""
    total = max(self.total(), 1e-9)
    return max(total - sum(self.seconds.values()), 0.0) / total
