"""Paths and mistakes on a command line, as a shell user expects them.

PATH = command_line.define_path("target", None, "Folder to write.")   # ~ is home
command_line.expand(["photos", "a, b.png", "c[1].jpg", "d-{00..12}.png", "e/*.png"])
with command_line.in_sentences(): ...           # no traceback for a user's mistake
"""

import contextlib
import errno
import glob
import os
import re
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any

from absl import flags

flags.disclaim_key_flags()  # a flag belongs to the verb that defines it
SIGNS = "*?["
MOST_COMMAS = 8  # in one name
STOPPED = "stopped; what has a --workdir or --target goes on with the same command"
FOLDER = "expected a folder at {}, found a file; move it away or name another folder"
SENTENCES = {
  errno.ENOSPC: "the disk of {} is full; free space and give the same command again",
  errno.EDQUOT: "the quota of {} is used up; free space, then the same command again",
  errno.EACCES: "no right to read or write {}; change its rights or name another place",
  errno.EROFS: "{} cannot be written, its disk is read-only; name another place",
  errno.ENOENT: "expected a file or folder at {}, found none; check the path",
  errno.EISDIR: "expected a file at {}, found a folder; check the path",
  errno.ENOTDIR: FOLDER,
  errno.EEXIST: FOLDER,
}


class _PathParser(flags.ArgumentParser):
  """Reads a path; ~ is the home folder, which a shell leaves as it is behind "="."""

  def parse(self, argument: str) -> str:
    """A path as programs need it."""
    return os.path.expanduser(argument)

  def flag_type(self) -> str:
    """Its name in --help."""
    return "path"


def define_path(name: str, default: str | None, help: str, **options: Any):
  """Defines a flag that is a path; options as for `flags.DEFINE_string`."""
  return flags.DEFINE(_PathParser(), name, default, help, **options)


def home_in(config: MutableMapping[str, Any]) -> None:
  """Puts the home folder for ~ into every text of a configuration, in place."""
  for name, value in list(config.items()):
    if isinstance(value, str) and value.startswith("~"):
      config[name] = os.path.expanduser(value)
    elif hasattr(value, "items"):
      home_in(value)


def expand(given: Sequence[str], suffixes: tuple[str, ...] = ()) -> list[str]:
  """Finds the files that a command line names, in order, each once.

  Args:
    given: paths, folders and patterns with * ? [] {}, several joined by commas. What
      exists as it stands is taken literally, commas and brackets too.
    suffixes: endings of the files that are wanted of a folder; all when empty.

  Raises:
    ValueError: there is no such file.
  """
  found = {}
  for text in given:
    for pattern in split(text):
      hits = _hits(os.path.expanduser(pattern), suffixes)
      if not hits:
        raise ValueError(
          f"expected files at {pattern}, found none; give a file, a folder or a pattern"
        )
      found.update(dict.fromkeys(hits))
  return list(found)


def split(text: str) -> list[str]:
  """Cuts a list at its commas, but not inside braces or names of files."""
  pieces, depth = [""], 0
  for sign in text:
    depth += (sign == "{") - (sign == "}")
    if sign == "," and depth <= 0:
      pieces.append("")
    else:
      pieces[-1] += sign
  found, first = [], 0
  while first < len(pieces):
    count = next(
      (
        n
        for n in range(1, MOST_COMMAS + 2)
        if os.path.lexists(os.path.expanduser(",".join(pieces[first : first + n])))
      ),
      1,
    )
    found.append(",".join(pieces[first : first + count]))
    first += count
  return [
    piece if os.path.lexists(piece) else piece.strip() for piece in found if piece
  ]


def _hits(pattern: str, suffixes: tuple[str, ...]) -> list[str]:
  if os.path.lexists(pattern):
    return _inside(pattern, suffixes)
  found = []
  for plain in braces(pattern):
    hits = [plain] if os.path.lexists(plain) else []
    if not hits and any(sign in plain for sign in SIGNS):
      hits = sorted(glob.glob(plain, recursive=True))
    if not hits and plain != pattern:
      raise ValueError(f"expected files at {plain}, found none; check {pattern}")
    found += [path for hit in hits for path in _inside(hit, suffixes)]
  return found


def _inside(path: str, suffixes: tuple[str, ...]) -> list[str]:
  """A file itself, or the wanted files of a folder at any depth."""
  if not os.path.isdir(path):
    return [path]
  found = []
  for at, folders, names in os.walk(path):
    folders.sort()
    wanted = [n for n in sorted(names) if not n.startswith(".")]
    found += [os.path.join(at, n) for n in wanted if n.lower().endswith(suffixes or "")]
  return found


def braces(pattern: str) -> list[str]:
  """Writes out {a,b} and {000..123}, as a shell does."""
  hit = re.search(r"\{([^{}]*)\}", pattern)
  if hit is None:
    return [pattern]
  span = re.fullmatch(r"(\d+)\.\.(\d+)", hit[1])
  if span:
    first, last, width = int(span[1]), int(span[2]), len(span[1])
    step = 1 if last >= first else -1
    inner = [f"{n:0{width}d}" for n in range(first, last + step, step)]
  elif "," in hit[1]:
    inner = hit[1].split(",")
  else:
    return [pattern]
  head, tail = pattern[: hit.start()], pattern[hit.end() :]
  return [text for one in inner for text in braces(f"{head}{one}{tail}")]


@contextlib.contextmanager
def in_sentences() -> Iterator[None]:
  """Ends the program with one sentence where the user can mend what is wrong."""
  try:
    yield
  except KeyboardInterrupt:
    print(f"\n{STOPPED}", file=sys.stderr)
    sys.exit(128 + 2)
  except BrokenPipeError:  # the reader of our output, such as head, has enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except Exception as error:
    said = sentence(error)
    if said is None:
      raise
    sys.exit(f"error: {said}")


def sentence(error: BaseException) -> str | None:
  """What a user reads of an error; None where it is a fault of the program."""
  chain, cause = [], error
  while cause is not None and cause not in chain:
    chain.append(cause)
    cause = cause.__cause__ or cause.__context__
  for one in chain:  # libraries wrap both in errors of their own
    if isinstance(one, ImportError) and "gcsfs" in str(one):
      return "gs:// paths need one package more: pip install gcsfs, or use a local path"
    if getattr(one, "errno", None) == errno.ENOSPC or "No space left" in str(one):
      where = getattr(one, "filename", None) or "the files to write"
      return SENTENCES[errno.ENOSPC].format(where)
  if isinstance(error, OSError):
    where = error.filename or "a file"
    other = f"{error.strerror or error}: {{}}; check the path"
    return SENTENCES.get(error.errno, other).format(where)
  return str(error) if isinstance(error, ValueError) else None
