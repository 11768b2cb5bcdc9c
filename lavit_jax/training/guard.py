"""Guards a run against numbers: counts skipped steps, stops a lost run, logs spikes.

A step whose gradient is not finite changes nothing (`stages/base.apply_gradients`). The
guard reads a step's loss two steps later, so that it never waits for the devices.
"""

import collections
import statistics
from collections.abc import Callable
from typing import Any

from lavit_jax.training import metrics

LAG = 2  # steps that stay unread: the devices work on them
WINDOW = 64  # finite losses that a new one is compared with
SPIKE = 8.0  # standard deviations above their median that make a spike
SHOWN = 20  # record ids named in a message


class Guard:
  """Follows the losses of a run; every host sees the same ones.

  Attributes:
    skipped: steps skipped in the whole run.
  """

  def __init__(
    self,
    limit: int,
    records: Callable[[int], list[str]],
    writer: metrics.Writer,
    skipped: int = 0,
  ):
    """Starts following.

    Args:
      limit: skipped steps in a row that end the run; 0 for never.
      records: position in rows -> record ids of the batch from there on.
      writer: takes the spikes.
      skipped: steps skipped before a resumption.
    """
    self.skipped, self._row = skipped, 0
    self._limit, self._records, self._writer = limit, records, writer
    self._unread: collections.deque = collections.deque()
    self._losses: collections.deque = collections.deque(maxlen=WINDOW)

  def after(self, step: int, position: int, values: dict[str, Any]) -> None:
    """Takes the metrics of a step and reads those of an earlier one.

    Args:
      step: steps done.
      position: where the step's batch began.
      values: metrics with `loss` and `skipped`, still on the devices.

    Raises:
      ValueError: too many steps in a row were skipped; names the last one's records.
    """
    self._unread.append((step, position, values["loss"], values["skipped"]))
    while len(self._unread) > LAG:
      self._read(*self._unread.popleft())

  def finish(self) -> None:
    """Reads what is left."""
    while self._unread:
      self._read(*self._unread.popleft())

  def _read(self, step: int, position: int, loss: Any, skipped: Any) -> None:
    if not float(skipped):
      self._row = 0
      self._compare(step, position, float(loss))
      return
    self.skipped += 1
    self._row += 1
    self._writer.event(step, "skipped", loss=float(loss), in_a_row=self._row)
    if self._limit and self._row >= self._limit:
      raise ValueError(
        f"expected finite gradients, got none in {self._row} steps in a row, the last"
        f" step {step} on records {self._named(position)}; look at these records,"
        " lower the learning rate, or resume from an earlier checkpoint"
      )

  def _compare(self, step: int, position: int, loss: float) -> None:
    if len(self._losses) == WINDOW:
      median = statistics.median(self._losses)
      spread = statistics.median(abs(x - median) for x in self._losses)
      # 1.4826 median deviations are one standard deviation of normal numbers.
      if loss > median + SPIKE * 1.4826 * max(spread, 1e-3 * abs(median)):
        named = self._named(position)
        self._writer.event(step, "spike", loss=loss, median=median, records=named)
    self._losses.append(loss)

  def _named(self, position: int) -> list[str]:
    found = self._records(position)
    more = len(found) - SHOWN
    return found[:SHOWN] + ([f"and {more} more"] if more > 0 else [])
