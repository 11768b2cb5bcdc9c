"""Guards a run against numbers: counts skipped steps, stops a lost run, logs spikes.

A step whose gradient is not finite changes nothing (`training/base.apply_gradients`).
The guard reads a step's loss two steps later, so that it never waits for the devices,
and host 0 reads the names of a few records in a thread of its own, so that the loop
never waits for the data either.
"""

import collections
import concurrent.futures
import itertools
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from lavit_jax.training import hosts, metrics

LAG = 2  # steps that stay unread: the devices work on them
WINDOW = 64  # finite losses that a new one is compared with
SPIKE = 8.0  # standard deviations above their median that make a spike
SHOWN = 20  # record ids named in a message


class Guard:
  """Follows the losses of a run; every host sees the same ones.

  Attributes:
    skipped: steps skipped in the whole run.
    loss: the last loss read, NaN before the first.
  """

  def __init__(
    self,
    limit: int,
    records: Callable[[int], Iterable[str]],
    writer: metrics.Writer,
    skipped: int = 0,
  ):
    """Starts following.

    Args:
      limit: skipped steps in a row that end the run; 0 for never.
      records: position in rows -> record ids of the batch from there on, each read
        when it is asked for.
      writer: takes the spikes.
      skipped: steps skipped before a resumption.
    """
    self.skipped, self._row, self.loss = skipped, 0, float("nan")
    self._limit, self._records, self._writer = limit, records, writer
    self._unread: collections.deque = collections.deque()
    self._losses: collections.deque = collections.deque(maxlen=WINDOW)
    self._reader = concurrent.futures.ThreadPoolExecutor(1)
    self._spikes: collections.deque = collections.deque()

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
    while self._spikes and self._spikes[0][-1].done():
      self._tell(*self._spikes.popleft())

  def finish(self) -> None:
    """Reads what is left, and waits for names that are being read."""
    while self._unread:
      self._read(*self._unread.popleft())
    while self._spikes:
      self._tell(*self._spikes.popleft())
    self.close()

  def close(self) -> None:
    """Reads no more names."""
    self._reader.shutdown(wait=False, cancel_futures=True)

  def _read(self, step: int, position: int, loss: Any, skipped: Any) -> None:
    if not float(skipped):
      self.loss = float(loss)
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
        fields = {"loss": loss, "median": median, "position": position}
        if hosts.is_primary():  # it alone writes
          names = self._reader.submit(self._named, position)
          self._spikes.append((step, fields, names))
    self._losses.append(loss)

  def _tell(self, step: int, fields: dict, names: concurrent.futures.Future) -> None:
    self._writer.event(step, "spike", **fields, records=names.result())

  def _named(self, position: int) -> list[str]:
    """The first record ids of a batch: as many as a message shows are read."""
    if not hosts.is_primary():
      return [f"(host 0 names those from row {position} on)"]
    try:
      found = list(itertools.islice(self._records(position), SHOWN + 1))
    except (ValueError, OSError) as error:
      return [f"(from row {position} on; they cannot be read: {error})"]
    return found[:SHOWN] + (["and more"] if found[SHOWN:] else [])
