"""A window of steps under JAX's profiler: `--profile=100:5` traces steps 100 to 104."""

import pathlib
from typing import Any

import jax


class ProfileWindow:
  """Traces some steps into a run directory; all hosts trace the same ones."""

  def __init__(self, window: str, workdir: str):
    """Reads "FIRST:COUNT"; an empty window traces nothing."""
    first, _, count = window.partition(":")
    if window and not (first.isdigit() and count.isdigit() and int(count)):
      raise ValueError(
        f"expected --profile=FIRST:COUNT, for instance 100:5, got {window!r}"
      )
    self._first = int(first) if window else -1
    self._last = self._first + int(count) - 1 if window else -1
    self._folder, self._tracing = pathlib.Path(workdir) / "profile", False

  def before(self, step: int) -> None:
    """To be called before a step."""
    if step == self._first:
      jax.profiler.start_trace(str(self._folder))
      self._tracing = True

  def after(self, step: int, values: Any) -> None:
    """To be called after a step with what it returned."""
    if self._tracing and step == self._last:
      jax.block_until_ready(values)
      self.close()

  def close(self) -> None:
    """Ends a window that the run did not reach the end of."""
    if self._tracing:
      jax.profiler.stop_trace()
      self._tracing = False
