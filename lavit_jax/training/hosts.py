"""Several hosts as one run: how they find each other, and who writes.

    python -m lavit_jax.train ... --coordinator=10.0.0.2:8476 --hosts=4 --host=0

The same command goes to every host, with its own --host. On Cloud TPU pods, GKE, SLURM
and Open MPI none of these flags is needed: JAX finds the others by itself.
"""

import os
import sys

import jax
from absl import flags
from jax.experimental import multihost_utils

COORDINATOR = flags.DEFINE_string(
  "coordinator", "", "Address and port of host 0; empty on pods and on one host."
)
HOSTS = flags.DEFINE_integer("hosts", 0, "Number of hosts, beside --coordinator.")
HOST = flags.DEFINE_integer("host", -1, "Number of this host, from 0.")
START_TIMEOUT = flags.DEFINE_integer(
  "start_timeout", 900, "Seconds to wait for the other hosts at the start."
)
HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
  "heartbeat_timeout", 100, "Seconds without a sign of life after which a host is dead."
)

CAUSES = (
  "start the same command on every host, open the coordinator's port between them, and"
  " run one version of the code everywhere (docs/training.md)"
)


def start() -> None:
  """Joins the other hosts, as the flags or the environment say; says who is here.

  Must come before anything touches a device.

  Raises:
    ValueError: the flags are incomplete, or the others did not come in time.
  """
  address, count, index = COORDINATOR.value, HOSTS.value, HOST.value
  forced = "cpu" in os.environ.get("JAX_PLATFORMS", "")
  if not address and forced and not os.environ.get("JAX_COORDINATOR_ADDRESS"):
    return  # asking for a pod takes seconds on a machine that has chips
  if address and not (":" in address and 0 <= index < count):
    raise ValueError(
      f"expected --coordinator=ADDRESS:PORT with --hosts=N and --host below N, got"
      f" {address!r}, {count} and {index}; give all three"
    )
  given = dict(coordinator_address=address, num_processes=count, process_id=index)
  if forced:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
  try:
    jax.distributed.initialize(
      **(given if address else {}),
      initialization_timeout=START_TIMEOUT.value,
      heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT.value,
    )
  except (RuntimeError, ValueError) as error:
    if not address and "should be defined" in str(error):
      return  # JAX found no pod around this machine
    raise ValueError(
      f"expected {count or 'all'} hosts within {START_TIMEOUT.value} s at"
      f" {address or 'the address that JAX found'}, got"
      f" {str(error).splitlines()[0][:200]}; {CAUSES}"
    ) from error
  print(banner(), file=sys.stderr, flush=True)


def banner() -> str:
  """Who this host is, and what it has."""
  local = jax.local_devices()
  return (
    f"host {jax.process_index()} of {jax.process_count()}: {len(local)} of"
    f" {jax.device_count()} devices ({local[0].device_kind}),"
    f" jax {jax.__version__}, process {os.getpid()}"
  )


def is_primary() -> bool:
  """True on the one host that writes what all share."""
  return jax.process_index() == 0


def meet(name: str) -> None:
  """Waits until every host has come to the place of that name."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
