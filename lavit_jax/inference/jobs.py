"""Large jobs: a file of requests in, a file of results out, resumed after a stop.

Each line of the target answers the line of the same number in the source. It is
written when its chunk is done and carries a checksum of its request, so that a job
goes on where it stopped, and never with another source.
"""

import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from lavit_jax.inference import requests
from lavit_jax.inference.api import LaVIT


def run(
  model: LaVIT,
  source: str | os.PathLike,
  target: str | os.PathLike,
  say: Callable[[str], None] = print,
) -> dict[str, int]:
  """Answers every line of a JSONL file.

  Args:
    model: the loaded model; a chunk is its batch size.
    source: requests, one JSON object per line (`lavit_jax.inference.requests`).
    target: results; complete lines in it are kept.
    say: told how far the job is, after every chunk.

  Returns:
    {"done": lines answered in all, "failed": those of this run that were errors}.
  """
  source, target = pathlib.Path(source), pathlib.Path(target)
  if not source.is_file():
    raise ValueError(f"expected requests at {source}, found no file; check the path")
  done = _resume(source, target)
  failed = 0
  with target.open("a", encoding="utf-8") as out:
    for chunk in _chunks(source, done, model.batch_size):
      results = requests.serve(model, [_read(line) for line in chunk])
      for line, result in zip(chunk, results):
        out.write(json.dumps(_entry(line, result)) + "\n")
        failed += "error" in result
      out.flush()
      os.fsync(out.fileno())
      done += len(chunk)
      say(f"{done} requests done, {failed} of this run failed")
  return {"done": done, "failed": failed}


def _read(line: bytes) -> dict[str, Any] | ValueError:
  try:
    return requests.parse(line.decode("utf-8", errors="replace"))
  except ValueError as error:
    return error


def _entry(line: bytes, result: dict[str, Any]) -> dict[str, Any]:
  given = _read(line)
  named = {"id": given["id"]} if isinstance(given, dict) and "id" in given else {}
  return named | result | {"request": _checksum(line)}


def _checksum(line: bytes) -> str:
  return f"{zlib.crc32(line.strip()):08x}"


def _chunks(source: pathlib.Path, skip: int, size: int) -> Iterator[list[bytes]]:
  chunk = []
  with source.open("rb") as lines:
    for number, line in enumerate(lines):
      if number >= skip:
        chunk.append(line)
      if len(chunk) == size:
        yield chunk
        chunk = []
  if chunk:
    yield chunk


def _resume(source: pathlib.Path, target: pathlib.Path) -> int:
  """Lines that are done; cuts a half-written last one off, checks all others."""
  if not target.exists():
    target.parent.mkdir(parents=True, exist_ok=True)
    return 0
  done, end = 0, 0
  with target.open("rb") as results, source.open("rb") as lines:
    for result in results:
      if not result.endswith(b"\n"):
        break
      line = next(lines, None)
      if line is None or _request_of(result) != _checksum(line):
        raise ValueError(
          f"expected {target} to hold results of {source}, but its line {done + 1} is"
          " of another request; give another target, or delete it to begin again"
        )
      done, end = done + 1, end + len(result)
  os.truncate(target, end)
  return done


def _request_of(result: bytes) -> str | None:
  try:
    return json.loads(result).get("request")
  except (ValueError, AttributeError):
    return None
