"""`tokenize` in processes of its own: several at once, or killed at a moment."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent


def start(model, data, index: int = 0, count: int = 1, port: int = 0):
  """Starts one process of `count`, with one device."""
  paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
  flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
  return subprocess.Popen(
    [sys.executable, __file__, str(model), str(data), *map(str, (index, count, port))],
    env=os.environ | flags | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(model, data, processes: int) -> list[str]:
  """Runs to the end on `processes` real processes; returns what each printed."""
  with socket.socket() as listener:
    listener.bind(("localhost", 0))
    port = listener.getsockname()[1]
  started = [start(model, data, i, processes, port) for i in range(processes)]
  told = []
  for process in started:
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error[-3000:]
    told.append(out)
  return told


def kill(model, data, shards: int, delay: float = 0.0) -> bool:
  """Kills a process `delay` seconds after so many shards are there.

  Returns:
    Whether it was still at work.
  """
  process = start(model, data)
  done = pathlib.Path(data) / "codes"
  while process.poll() is None and len(list(done.glob("*.lengths.npz"))) < shards:
    time.sleep(0.002)
  time.sleep(delay)
  alive = process.poll() is None
  process.send_signal(signal.SIGKILL)
  process.communicate()
  return alive


def main(model: str, data: str, index: str, count: str, port: str) -> None:
  """What a started process does."""
  import jax

  jax.config.update("jax_default_matmul_precision", "highest")
  if int(count) > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", int(count), int(index))
  from lavit_jax.inference import sidecars

  sidecars.run(model, data, 8, threads=2)


if __name__ == "__main__":
  main(*sys.argv[1:])
