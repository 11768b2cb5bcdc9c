"""Open shards of the whole process: a bounded number, whatever the number of shards.

Every folder of this process takes its readers here. Beyond the bound the reader that
was used longest ago is let go; it closes its file when the last thread has read.
"""

import collections
import concurrent.futures
import functools
import os
import resource
import threading
from collections.abc import Sequence

from array_record.python import array_record_module

SHARE = 4  # of the files that the process may open, one in so many
MOST = 512
OPTIONS = "readahead_buffer_size:0"  # entries are read one by one
BUFFER = 32768  # bytes
WAITING = 256  # readings that wait for a slow disk or a mounted bucket at a time

_open: collections.OrderedDict = collections.OrderedDict()
_lock = threading.Lock()


def bound() -> int:
  """Number of shards that may be open at a time."""
  allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
  if allowed == resource.RLIM_INFINITY:
    return MOST
  return max(1, min(MOST, allowed // SHARE))


def reader(path: str) -> array_record_module.ArrayRecordReader:
  """The reader of a shard, opened if it is not; threads may share it.

  Args:
    path: an array_record file.
  """
  key = (os.getpid(), path)  # a forked process opens its own
  with _lock:
    if key in _open:
      _open.move_to_end(key)
      return _open[key]
  opened = array_record_module.ArrayRecordReader(
    path, options=OPTIONS, file_reader_buffer_size=BUFFER
  )
  with _lock:
    opened = _open.setdefault(key, opened)
    while len(_open) > bound():
      _open.popitem(last=False)
  return opened


@functools.cache
def _pool(process: int) -> concurrent.futures.ThreadPoolExecutor:
  del process  # a forked process has none of its parent's threads
  return concurrent.futures.ThreadPoolExecutor(WAITING, "shards")


def read(asked: Sequence[tuple[str, list[int]]]) -> list[list[bytes]]:
  """Reads entries of several shards at once: all together wait about as long as one.

  Args:
    asked: files, and positions in each.

  Returns:
    Entries of each, in order.
  """
  one = lambda pair: reader(pair[0]).read(pair[1])
  if len(asked) == 1:
    return [one(asked[0])]
  return list(_pool(os.getpid()).map(one, asked))
