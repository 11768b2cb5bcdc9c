"""How hosts find each other."""

import jax
import pytest
from absl import flags

from lavit_jax.training import hosts


@pytest.fixture
def given():
  """Sets flags of hosts.py for one test."""

  def parse(*arguments):
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["train", *arguments])

  yield parse
  for holder in (hosts.COORDINATOR, hosts.HOSTS, hosts.HOST, hosts.START_TIMEOUT):
    flags.FLAGS[holder.name].unparse()


@pytest.mark.parametrize(
  "arguments",
  [
    ["--coordinator=10.0.0.2:8476"],
    ["--coordinator=10.0.0.2:8476", "--hosts=2", "--host=2"],
    ["--coordinator=10.0.0.2", "--hosts=2", "--host=0"],
  ],
)
def test_incomplete_flags_are_refused(given, arguments):
  given(*arguments)
  with pytest.raises(ValueError, match="expected --coordinator=ADDRESS:PORT with"):
    hosts.start()


@pytest.fixture
def asked(monkeypatch):
  """What `jax.distributed.initialize` was asked; it raises what `answer` holds."""
  calls, answer = [], []

  def initialize(**fields):
    calls.append(fields)
    if answer:
      raise answer[0]

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
  monkeypatch.delenv("JAX_PLATFORMS")
  return calls, answer


def test_on_a_pod_jax_finds_the_others(given, asked, capsys):
  given("--start_timeout=7")
  hosts.start()
  (call,) = asked[0]
  assert call == dict(initialization_timeout=7, heartbeat_timeout_seconds=100)
  assert "host 0 of 1" in capsys.readouterr().err


def test_a_single_machine_is_no_pod(given, asked, capsys):
  asked[1].append(ValueError("coordinator_address should be defined."))
  given()
  hosts.start()
  assert capsys.readouterr().err == ""


def test_a_machine_told_to_use_its_cpu_asks_nobody(given, asked, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  given()
  hosts.start()
  assert not asked[0]


def test_hosts_that_do_not_come_are_one_sentence(given, asked):
  asked[1].append(RuntimeError("DEADLINE_EXCEEDED: barrier\nmore"))
  given("--coordinator=10.0.0.2:8476", "--hosts=2", "--host=0")
  with pytest.raises(
    ValueError, match="expected 2 hosts within .* open the coord"
  ) as e:
    hosts.start()
  assert "\n" not in str(e.value)
  assert asked[0][0]["coordinator_address"] == "10.0.0.2:8476"


def test_the_banner_says_who_is_here():
  assert hosts.banner().startswith("host 0 of 1: 8 of 8 devices (cpu), jax ")
