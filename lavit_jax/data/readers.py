"""Open array_record files: as many as the system's limit allows, whatever there are.

All folders of a process share them. The one not used for longest is closed first; a
thread that still reads from it keeps it open until it is done.
"""

import collections
import resource
import threading

from array_record.python import array_record_module

MOST = 4096
OPTIONS = "readahead_buffer_size:0"  # entries are read one by one, at random
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


def read(path: str, position: int) -> bytes:
  """Reads one entry of a file; threads may share it."""
  with _lock:
    reader = _open.pop(path, None)
    if reader is not None:
      _open[path] = reader
  if reader is None:
    reader = array_record_module.ArrayRecordReader(
      path, OPTIONS, file_reader_buffer_size=32768
    )
    with _lock:
      reader = _open.setdefault(path, reader)
      while len(_open) > _limit:
        _open.popitem(last=False)
  return reader.read([position])[0]


def forget(path: str) -> None:
  """Closes a file that has been written again, or that failed."""
  with _lock:
    _open.pop(path, None)
