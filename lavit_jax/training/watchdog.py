"""Notices a step that takes too long: dumps stacks, and names the slow host.

Each host tells the others through the coordinator where it is, from a thread of its
own, so that a host that hangs in its data still reports. When one is late, every host
prints its stacks to stderr and says which host is behind. Where it is asked to, it ends
a process that hangs for good, with a status that a supervisor may start it again on.
"""

import dataclasses
import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Mapping

import jax
from jax._src import distributed  # the coordinator's key-value store has no public name

HUNG = 75  # exit status of a process that hung: "temporary failure" in sysexits.h
KEY = "lavit_jax/where/"
# Order of a step's phases: of two hosts at one step, the one behind is the slow one.
PHASES = ("start", "batch", "step", "records", "evaluation", "checkpoint")


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a host is.

  Attributes:
    step: steps done.
    phase: one of PHASES.
    since: time at which it came there, in seconds of its own clock.
    told: time at which it said so.
  """

  step: int
  phase: str
  since: float
  told: float


def verdict(places: Mapping[int, Place], count: int, period: float) -> str:
  """Says in one sentence which host holds up the others.

  Args:
    places: where each host said it is.
    count: number of hosts.
    period: seconds between two signs of life.
  """
  latest = max(place.told for place in places.values())
  missing = set(range(count)) - set(places)
  quiet = {host for host, at in places.items() if at.told < latest - 5 * period}
  if missing | quiet:
    return f"hosts {sorted(missing | quiet)} give no sign of life"
  rank = {h: (at.step, PHASES.index(at.phase)) for h, at in places.items()}
  slowest = sorted(host for host in rank if rank[host] == min(rank.values()))
  at = places[slowest[0]]
  where = f"at step {at.step}, in its {at.phase}"
  if len(slowest) == count > 1:
    return f"all {count} hosts are {where}: a device or the network between them hangs"
  return f"host {', '.join(map(str, slowest))} is behind: {where}"


class Watchdog:
  """Watches the loop while it is open (a context manager)."""

  def __init__(self, timeout: float, end_after: float = 0):
    """Watches.

    Args:
      timeout: seconds per phase after which it barks; 0 turns the watchdog off.
      end_after: seconds after which it ends the process with status `HUNG`, the
        start apart; 0 for never.

    Raises:
      ValueError: it would end a process before it barks.
    """
    if end_after and not 0 < timeout <= end_after:
      raise ValueError(
        f"expected config.end_hung of at least config.step_timeout, which must be set,"
        f" got {end_after} and {timeout}; raise config.end_hung"
      )
    self._timeout, self._period = timeout, min(max(timeout / 8, 0.05), 15.0)
    self._end_after = end_after
    self._place = Place(0, "start", time.time(), time.time())
    self._stop, self._thread = threading.Event(), None

  def __enter__(self) -> "Watchdog":
    if self._timeout:
      self._thread = threading.Thread(target=self._watch, daemon=True)
      self._thread.start()
    return self

  def __exit__(self, *error) -> None:
    self._stop.set()
    if self._thread:
      self._thread.join()

  def enter(self, phase: str, step: int) -> None:
    """Tells the watchdog that a phase of a step begins."""
    now = time.time()
    self._place = Place(step, phase, now, now)

  def _watch(self) -> None:
    warned, places = None, {}
    while not self._stop.wait(self._period):
      place = dataclasses.replace(self._place, told=time.time())
      late = place.told - place.since
      # A start may take long and is not ended. The exchange comes after this test, as
      # it would wait for a coordinator that hangs.
      if self._end_after and place.phase != "start" and late > self._end_after:
        self._bark(place, places | {jax.process_index(): place})
        print(
          f"WATCHDOG: ends this process, status {HUNG}", file=sys.stderr, flush=True
        )
        os._exit(HUNG)  # what hangs would not let an exception through
      places = self._exchange(place)
      if late > self._timeout and place.since != warned:
        warned = place.since
        self._bark(place, places)

  def _exchange(self, place: Place) -> dict[int, Place]:
    """Tells the others where this host is, and reads where they are."""
    client, own = distributed.global_state.client, jax.process_index()
    if client is None:
      return {own: place}
    try:
      text = json.dumps(dataclasses.asdict(place))
      client.key_value_set(f"{KEY}{own}", text, allow_overwrite=True)
      found = dict(client.key_value_dir_get(KEY))
    except RuntimeError:  # the coordinator is gone: this host will end soon, too
      return {own: place}
    return {
      int(name.rsplit("/", 1)[1]): Place(**json.loads(text))
      for name, text in found.items()
    }

  def _bark(self, place: Place, places: Mapping[int, Place]) -> None:
    own, count = jax.process_index(), jax.process_count()
    told = verdict(places, count, self._period)
    print(
      f"WATCHDOG: host {own} of {count} has been in its {place.phase} at step"
      f" {place.step} for {place.told - place.since:.0f} s; {told}. Stacks:",
      file=sys.stderr,
      flush=True,
    )
    faulthandler.dump_traceback(all_threads=True)
