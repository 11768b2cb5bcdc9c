"""Steps without finite gradients change nothing, are counted, and end a lost run."""

import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lavit_jax.training import base, guard, train_state


class Lines:
  """Takes the events of a writer."""

  def __init__(self):
    self.events = []

  def event(self, step, kind, **fields):
    self.events.append((step, kind, fields))


def followed(losses, limit=3, skipped=()):
  """A guard that has seen one loss per step, and the events it wrote."""
  lines = Lines()
  eyes = guard.Guard(limit, lambda position: [f"r{position}"], lines, 5)
  for number, loss in enumerate(losses):
    values = {"loss": loss, "skipped": float(number in skipped)}
    eyes.after(number + 1, 8 * number, values)
  eyes.finish()
  return eyes, lines.events


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_without_finite_gradients_changes_nothing(value):
  tx = optax.adam(0.1)
  state = train_state.fresh({"a": jnp.ones(3), "b": jnp.ones(2)}, tx, jnp.zeros(4))
  step = jax.jit(
    lambda state, grads: base.apply_gradients(state, grads, tx, codebook=jnp.ones(4))
  )
  good = {"a": jnp.ones(3), "b": jnp.ones(2)}
  state, metrics = step(state, good)
  assert metrics["skipped"] == 0 and state.codebook[0] == 1
  before = state.replace(codebook=jnp.full(4, 7.0))
  after, metrics = step(before, good | {"b": jnp.array([1.0, value])})
  assert metrics["skipped"] == 1 and int(after.step) == 2
  jax.tree.map(np.testing.assert_array_equal, after.replace(step=before.step), before)


def test_skipped_steps_are_counted_over_resumptions():
  eyes, events = followed([1.0, np.nan, np.nan, 1.0, np.nan], skipped=(1, 2, 4))
  assert eyes.skipped == 5 + 3
  assert [(step, kind, e["in_a_row"]) for step, kind, e in events] == [
    (2, "skipped", 1),
    (3, "skipped", 2),
    (5, "skipped", 1),
  ]


def test_a_run_ends_after_so_many_in_a_row_and_names_the_records():
  message = r"none in 3 steps in a row, the last step 5 on records \['r32'\]; look at"
  with pytest.raises(ValueError, match=message):
    followed([1.0] * 8, skipped=(2, 3, 4))
  followed([1.0] * 8, limit=0, skipped=range(8))


def test_losses_are_read_two_steps_late():
  eyes = guard.Guard(1, lambda position: [], Lines())
  unready = types.SimpleNamespace()  # would fail if it were read
  for step in range(guard.LAG):
    eyes.after(step, 0, {"loss": unready, "skipped": unready})
  with pytest.raises(TypeError):  # the next one reads the first of them
    eyes.after(guard.LAG, 0, {"loss": unready, "skipped": unready})


def test_a_spike_is_logged_with_its_records():
  losses = [2.0 + 0.1 * (-1) ** i for i in range(guard.WINDOW + 10)]
  losses[-5] = 4.0
  _, events = followed(losses)
  (step, kind, fields) = events.pop()
  assert not events and kind == "spike" and step == len(losses) - 4
  assert fields["loss"] == 4.0 and fields["records"] == [f"r{8 * (step - 1)}"]


def test_noise_is_no_spike():
  rng = np.random.default_rng(0)
  assert followed(rng.normal(3.0, 0.2, 500).tolist())[1] == []


def test_a_spike_reads_a_few_names_off_the_loop():
  """40,960 records used to be read on every host, in the training thread."""
  read, here, go = [], threading.get_ident(), threading.Event()

  def records(position):
    go.wait(10)
    for number in range(40_960):
      read.append(threading.get_ident())
      yield f"r{position + number}"

  lines = Lines()
  eyes = guard.Guard(3, records, lines)
  losses = [2.0 + 0.1 * (-1) ** i for i in range(guard.WINDOW)] + [9.0] + [2.0] * 8
  for number, loss in enumerate(losses):
    eyes.after(number + 1, 8 * number, {"loss": loss, "skipped": 0.0})
  assert not read and not lines.events  # nothing has waited for the names
  go.set()
  eyes.finish()
  ((step, kind, fields),) = lines.events
  assert kind == "spike" and step == guard.WINDOW + 1
  assert len(fields["records"]) == guard.SHOWN + 1 and here not in read
  assert fields["records"][-1] == "and more" and len(read) <= guard.SHOWN + 1
  assert fields["position"] == 8 * guard.WINDOW


def test_only_the_first_host_reads_names(monkeypatch):
  monkeypatch.setattr(guard.hosts, "is_primary", lambda: False)
  losses = [2.0 + 0.1 * (-1) ** i for i in range(guard.WINDOW)] + [9.0] * 3
  lines = Lines()
  eyes = guard.Guard(1, lambda position: pytest.fail("names were read"), lines)
  for number, loss in enumerate(losses):
    eyes.after(number + 1, 8 * number, {"loss": loss, "skipped": 0.0})
  eyes.finish()
  assert not lines.events
  with pytest.raises(ValueError, match="host 0 names those from row 0 on"):
    eyes.after(1, 0, {"loss": 1.0, "skipped": 1.0})
    eyes.finish()
