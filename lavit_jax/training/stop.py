"""Being told to stop: SIGTERM ends a run at a step that all hosts agree on."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class StopRequest:
  """Notices SIGTERM while it is open (a context manager).

  One host notices by a signal handler. On several, JAX's preemption service catches
  the signal on any host and names the next step that none has reached yet.
  """

  def __init__(self):
    self._told, self._before = False, None

  def __enter__(self) -> "StopRequest":
    alone = jax.process_count() == 1
    if alone and threading.current_thread() is threading.main_thread():
      self._before = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(self, *error) -> None:
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)

  def _note(self, *_) -> None:
    self._told = True

  def reached(self, step: int) -> bool:
    """True on every host at the step to stop after; to be asked at every step."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._told
