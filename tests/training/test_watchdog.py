"""Late steps: who is behind, and what is printed."""

import time

import pytest

from lavit_jax.training import watchdog
from lavit_jax.training.watchdog import Place

NOW = 1000.0


def verdict(*places, count=None):
  given = dict(enumerate(places))
  found = {host: place for host, place in given.items() if place}
  return watchdog.verdict(found, count or len(places), 10.0)


def at(step, phase, told=NOW):
  return Place(step, phase, told - 60, told)


def test_the_host_at_the_earliest_step_is_behind():
  said = verdict(at(7, "step"), at(6, "records"), at(7, "batch"))
  assert said == "host 1 is behind: at step 6, in its records"


def test_the_host_that_waits_for_its_data_is_behind():
  said = verdict(at(7, "step"), at(7, "step"), at(7, "batch"))
  assert said == "host 2 is behind: at step 7, in its batch"


def test_all_in_one_place_means_the_network():
  said = verdict(at(7, "step"), at(7, "step"))
  assert said.startswith("all 2 hosts are at step 7, in its step: a device or the net")


def test_silent_hosts_are_named_first():
  said = verdict(at(7, "step"), None, at(7, "step", told=NOW - 90), count=4)
  assert said == "hosts [1, 2, 3] give no sign of life"


def test_a_late_phase_prints_stacks_once(capfd):
  with watchdog.Watchdog(0.3) as dog:
    dog.enter("batch", 3)
    time.sleep(1.2)
    dog.enter("step", 3)
  said = capfd.readouterr().err
  assert said.count("WATCHDOG: host 0 of 1 has been in its batch at step 3") == 1
  assert "host 0 is behind: at step 3, in its batch" in said
  assert "test_a_late_phase_prints_stacks_once" in said  # the stack


def test_quick_phases_print_nothing(capfd):
  with watchdog.Watchdog(5.0) as dog:
    dog.enter("step", 1)
    time.sleep(0.1)
  with watchdog.Watchdog(0):
    time.sleep(0.1)
  assert capfd.readouterr().err == ""


def test_a_hung_process_ends_with_a_status_to_start_again_on(capfd, monkeypatch):
  ended = []

  def end(status):
    ended.append(status)
    dog._stop.set()

  monkeypatch.setattr(watchdog.os, "_exit", end)
  with watchdog.Watchdog(0.2, end_after=0.5) as dog:
    dog.enter("step", 7)
    time.sleep(1.2)
  assert ended == [watchdog.HUNG] == [75]
  said = capfd.readouterr().err
  assert said.count("in its step at step 7") == 2 and "ends this process" in said
  for timeout in (0, 900):
    with pytest.raises(ValueError, match="end_hung of at least .* got 600"):
      watchdog.Watchdog(timeout, end_after=600)


def test_a_start_is_not_ended_and_a_hanging_coordinator_does_not_keep_the_end(
  monkeypatch,
):
  ended = []

  def end(status):
    ended.append(status)
    dog._stop.set()

  monkeypatch.setattr(watchdog.os, "_exit", end)
  with watchdog.Watchdog(0.1, end_after=0.1) as dog:
    time.sleep(0.5)
    assert not ended
    monkeypatch.setattr(dog, "_exchange", lambda place: time.sleep(0.4) or {0: place})
    dog.enter("step", 1)
    time.sleep(1.2)
  assert ended == [watchdog.HUNG]
