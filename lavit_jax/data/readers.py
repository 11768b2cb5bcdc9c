"""Open array_record files: as many as the system's limit allows, whatever there are.

All folders of a process share them. The one not used for longest is closed first; a
thread that still reads from it keeps it open until it is done.
"""

import collections
import concurrent.futures
import functools
import os
import resource
import threading
from collections.abc import Sequence

from array_record.python import array_record_module

MOST = 4096
OPTIONS = "readahead_buffer_size:0"  # entries are read one by one, at random
WAITING = 256  # readings that wait for a slow disk or a mounted bucket at a time
_lock = threading.Lock()
_open: collections.OrderedDict = collections.OrderedDict()


def limit() -> int:
  """Files that may stay open: half of what the process may have, raised if it can be.

  The other half is for everything else that a process opens.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = 2 * MOST if hard == resource.RLIM_INFINITY else min(2 * MOST, hard)
  if soft != resource.RLIM_INFINITY and soft < wanted:
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft = wanted
  return MOST if soft == resource.RLIM_INFINITY else max(8, min(MOST, soft // 2))


_limit = limit()


def reader(path: str) -> array_record_module.ArrayRecordReader:
  """The reader of a file, opened if it is not; threads may share it."""
  key = (os.getpid(), path)  # a forked process opens its own
  with _lock:
    if key in _open:
      _open.move_to_end(key)
      return _open[key]
  opened = array_record_module.ArrayRecordReader(
    path, OPTIONS, file_reader_buffer_size=32768
  )
  with _lock:
    opened = _open.setdefault(key, opened)
    while len(_open) > _limit:
      _open.popitem(last=False)
  return opened


def forget(path: str) -> None:
  """Closes a file that has been written again, or that failed."""
  with _lock:
    _open.pop((os.getpid(), path), None)


@functools.cache
def _pool(process: int) -> concurrent.futures.ThreadPoolExecutor:
  del process  # a forked process has none of its parent's threads
  return concurrent.futures.ThreadPoolExecutor(WAITING, "shards")


def read(asked: Sequence[tuple[str, list[int]]]) -> list[list[bytes]]:
  """Reads entries of several files at once: all together wait about as long as one.

  Args:
    asked: files, and positions in each.

  Returns:
    Entries of each, in order.
  """
  one = lambda pair: reader(pair[0]).read(pair[1])
  if len(asked) == 1:
    return [one(asked[0])]
  return list(_pool(os.getpid()).map(one, asked))
