"""Large jobs: a file of requests in, a file of results out, resumed after a stop.

Each line of the target answers the line of the same number in the source. It is
written when its chunk is done and carries checksums of its request, its picture and
the model, so that a job goes on where it stopped, and never with another source, other
pictures or another model.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

from lavit_jax.data import progress
from lavit_jax.inference import pictures, requests
from lavit_jax.inference.api import LaVIT
from lavit_jax.weights import model_directory

CHECKS = {"request": "request", "model": "model or seed", "picture": "picture"}


def run(
  model: LaVIT,
  source: str | os.PathLike,
  target: str | os.PathLike,
  retry_failed: bool = False,
) -> dict[str, int]:
  """Answers every line of a JSONL file.

  Args:
    model: the loaded model; a chunk is its batch size.
    source: requests, one JSON object per line (`lavit_jax.inference.requests`);
      pictures are found from where the program runs.
    target: results; complete lines in it are kept.
    retry_failed: lines of the target that are errors are done once more first.

  Returns:
    {"done": lines answered in all, "failed": those of them that are errors}.
  """
  source, target = pathlib.Path(source), pathlib.Path(target)
  if not source.is_file():
    raise ValueError(f"expected requests at {source}, found no file; check the path")
  made_by = _made_by(model)
  done, errors = _resume(source, target, made_by)
  count = sum(1 for _ in source.open("rb")) - done
  again = errors if retry_failed else []
  with contextlib.closing(progress.Progress("requests", count + len(again))) as told:
    failed = len(errors) - len(again)
    if again:
      failed += _retry(model, source, target, made_by, again, told, failed)
    with target.open("a", encoding="utf-8") as out:
      for chunk in _chunks(source, range(done, done + count), model.batch_size):
        entries = _answer(model, chunk, made_by)
        out.writelines(entry + "\n" for entry in entries)
        out.flush()
        os.fsync(out.fileno())
        failed += sum(map(_is_error, entries))
        for _ in chunk:
          told.step(f"{failed} failed")
  return {"done": done + count, "failed": failed}


def _made_by(model: LaVIT) -> str:
  """A checksum of the model and of what else decides its results."""
  facts = f"{model_directory.identity(model.folder)} {model.seed} {model.dtype}"
  return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _answer(model: LaVIT, chunk: list[bytes], made_by: str) -> list[str]:
  """A line of the target for each line of the source."""
  results = requests.serve(model, [_read(line) for line in chunk])
  return [
    json.dumps(_entry(line, result) | _checksums(line, made_by))
    for line, result in zip(chunk, results, strict=True)
  ]


def _retry(model, source, target, made_by, again: list[int], told, failed) -> int:
  """Does lines of the target once more; puts all results in their places at once."""
  found = {}
  chunks = _chunks(source, again, model.batch_size)
  for chunk in chunks:
    entries = _answer(model, chunk, made_by)
    found.update(zip(again[len(found) :], entries))
    for entry in entries:
      failed += _is_error(entry)
      told.step(f"{failed} failed")
  beside = target.with_name(target.name + ".part")
  with target.open("rb") as before, beside.open("wb") as out:
    for number, line in enumerate(before):
      out.write(found[number].encode() + b"\n" if number in found else line)
    out.flush()
    os.fsync(out.fileno())
  beside.replace(target)
  return sum(map(_is_error, found.values()))


def _is_error(entry: str | bytes) -> bool:
  return "error" in json.loads(entry)


def _read(line: bytes) -> dict[str, Any] | ValueError:
  try:
    return requests.parse(line.decode("utf-8", errors="replace"))
  except ValueError as error:
    return error


def _entry(line: bytes, result: dict[str, Any]) -> dict[str, Any]:
  given = _read(line)
  named = {"id": given["id"]} if isinstance(given, dict) and "id" in given else {}
  return named | result


def _checksums(line: bytes, made_by: str) -> dict[str, str]:
  """What a result rests on, as it is now."""
  given = _read(line)
  image = given.get("image") if isinstance(given, dict) else None
  stamp = pictures.stamp(image) if isinstance(image, str) else ""
  known = {"request": f"{zlib.crc32(line.strip()):08x}", "model": made_by}
  return known | ({"picture": stamp} if stamp else {})


def _chunks(source: pathlib.Path, wanted, size: int) -> Iterator[list[bytes]]:
  """Lines of the numbers wanted, in order, `size` at a time."""
  chunk, wanted = [], iter(wanted)
  following = next(wanted, None)
  with source.open("rb") as lines:
    for number, line in enumerate(lines):
      if number == following:
        chunk.append(line)
        following = next(wanted, None)
      if len(chunk) == size:
        yield chunk
        chunk = []
  if chunk:
    yield chunk


def _resume(
  source: pathlib.Path, target: pathlib.Path, made_by: str
) -> tuple[int, list[int]]:
  """Lines that are done, and which are errors; cuts a half-written last one off."""
  if not target.exists():
    target.parent.mkdir(parents=True, exist_ok=True)
    return 0, []
  done, end, errors = 0, 0, []
  with target.open("rb") as results, source.open("rb") as lines:
    for result in results:
      if not result.endswith(b"\n"):
        break
      line = next(lines, None)
      wrong = _other(result, line, made_by)
      if wrong:
        raise ValueError(
          f"expected {target} to hold results of {source}, but its line {done + 1} is"
          f" of another {wrong}; give another target, or delete it to begin again"
        )
      if _is_error(result):
        errors.append(done)
      done, end = done + 1, end + len(result)
  os.truncate(target, end)
  return done, errors


def _other(result: bytes, line: bytes | None, made_by: str) -> str:
  """What a result rests on that is another now, or ""."""
  try:
    given = json.loads(result)
    stored = {name: given.get(name) for name in CHECKS}
  except (ValueError, AttributeError):
    return CHECKS["request"]
  now = {} if line is None else _checksums(line, made_by)
  if "error" in given:  # a picture may have come, or have been mended
    stored["picture"] = now.get("picture")
  wrong = [said for name, said in CHECKS.items() if stored[name] != now.get(name)]
  return wrong[0] if wrong else ""
