"""Runs the jobs of `conversion` on local processes."""

import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool

from lavit_jax.data import conversion


def convert(jobs: list[conversion.Job], processes: int) -> Iterator[conversion.Job]:
  """Does the jobs and yields each when its shard stands; a finished one is checked.

  Args:
    jobs: jobs in any order.
    processes: workers; 1 works in this process.

  Raises:
    ValueError: an input cannot be read at all, or a worker died.
  """
  if processes == 1:
    for job in jobs:
      conversion.ensure(job)
      yield job
    return
  pool = concurrent.futures.ProcessPoolExecutor(
    min(processes, max(len(jobs), 1)),
    multiprocessing.get_context("spawn"),  # array_record has threads: no fork
    initializer=_die_with_parent,
  )
  try:
    asked = {pool.submit(conversion.ensure, job): job for job in jobs}
    for future in concurrent.futures.as_completed(asked):
      future.result()
      yield asked[future]
  except BrokenProcessPool as error:
    raise ValueError(
      "expected all workers to live, got one killed, most likely for memory; run the"
      " same command with fewer --processes to go on"
    ) from error
  finally:
    pool.shutdown(cancel_futures=True)


def _die_with_parent() -> None:
  """Ends a worker whose parent was killed; it would wait for work for ever."""

  def watch():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
