"""What a run says without a terminal: a line a minute."""

import sys
import time

MINUTE = 60.0


class Minutes:
  """Prints where a run is, at most once a minute, where no terminal shows a bar."""

  def __init__(self, first: int, last: int, every: float = MINUTE):
    """Begins to count.

    Args:
      first: steps done already.
      last: steps to do in all.
      every: seconds between two lines.
    """
    self._last, self._every, self._silent = last, every, sys.stderr.isatty()
    self._done, self._told = first, time.monotonic()

  def after(self, done: int, loss: float, bad: int) -> None:
    """Takes what is known after a step.

    Args:
      done: steps done.
      loss: the last one that is known.
      bad: records replaced because they could not be read.
    """
    now = time.monotonic()
    if self._silent or now - self._told < self._every:
      return
    rate = (done - self._done) / (now - self._told)
    print(line(done, self._last, loss, rate, bad), file=sys.stderr, flush=True)
    self._done, self._told = done, now


def line(done: int, last: int, loss: float, rate: float, bad: int) -> str:
  """One line: step, loss, rate, time left and bad records.

  Args:
    done: steps done.
    last: steps to do in all.
    loss: of the last step that is known.
    rate: steps per second.
    bad: records replaced.
  """
  minutes = round((last - done) / rate / 60)
  left = f"{minutes // 60} h {minutes % 60} min left"
  speed = f"{rate:.3g} steps/s" if rate >= 1 else f"{1 / rate:.3g} s a step"
  return f"step {done} of {last}, loss {loss:.4f}, {speed}, {left}, {bad} bad records"
