"""A persistent compilation cache in the run directory: resuming recompiles nothing."""

import os

import jax
from jax.experimental.compilation_cache import compilation_cache

REQUESTED = "/jax/compilation_cache/compile_requests_use_cache"
FOUND = "/jax/compilation_cache/cache_hits"


class Counter:
  """Programs that were asked for, and those of them that the cache had.

  Attributes:
    requested: programs needed since the start of counting.
    found: those read from the cache.
  """

  def __init__(self):
    self.requested, self.found = 0, 0
    jax.monitoring.register_event_listener(self._count)

  def _count(self, event: str, **details) -> None:
    del details
    self.requested += event == REQUESTED
    self.found += event == FOUND

  @property
  def compiled(self) -> int:
    """Programs that had to be compiled."""
    return self.requested - self.found

  def close(self) -> None:
    """Stops counting."""
    jax.monitoring.unregister_event_listener(self._count)


def use(folder: str) -> None:
  """Keeps every compiled program in `folder`, unless the environment names another.

  Hosts of a run read from one folder and host 0 writes to it. On CPUs, whose topology
  differs from host to host, the others compile on their own.
  """
  if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    return
  if jax.config.jax_compilation_cache_dir != folder:
    jax.config.update("jax_compilation_cache_dir", folder)
    compilation_cache.reset_cache()
  # XLA's own cache for GPUs would put its path into the key of every program: a run
  # directory that moved would be compiled anew. What it holds is in the programs, too.
  jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
