"""How far a long run is: a bar on a terminal, a line a minute in a log."""

import sys
import time
from typing import TextIO

from tqdm import tqdm

EVERY = 60.0  # seconds between lines


class Progress:
  """Counts what is done.

  Attributes:
    done: things done.
  """

  def __init__(self, what: str, total: int, file: TextIO | None = None):
    """Starts the clock.

    Args:
      what: plural name of the things counted.
      total: how many there are.
      file: where lines go; standard error if None.
    """
    self.what, self.total, self.done = what, total, 0
    self.file = sys.stderr if file is None else file
    self.start = self.told = time.monotonic()
    self.bar = tqdm(total=total, desc=what, disable=not self.file.isatty())

  def step(self, note: str = "") -> None:
    """Counts one thing more; the note stands behind the figures."""
    self.done += 1
    self.bar.set_postfix_str(note, refresh=False)
    self.bar.update(1)
    now = time.monotonic()
    if self.bar.disable and now - self.told >= EVERY:
      self.told = now
      print(self.line(now - self.start, note), file=self.file, flush=True)

  def line(self, seconds: float, note: str) -> str:
    """Says what is done, how fast, and how long the rest takes."""
    rate = self.done / max(seconds, 1e-9)
    left = (self.total - self.done) / max(rate, 1e-9)
    return (
      f"{self.done} of {self.total} {self.what}, {60 * rate:.3g} a minute,"
      f" {left / 60:.0f} min left{f', {note}' if note else ''}"
    )

  def close(self) -> None:
    """Ends the bar."""
    self.bar.close()
