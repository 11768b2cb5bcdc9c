"""Figures of programs, kept in a folder by all that they depend on."""

import hashlib
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax


def figures(
  folder: str, program: str, work: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
  """What `work` made of a program earlier, or makes now.

  Args:
    folder: of kept figures; "" keeps none.
    program: text that tells programs apart.
    work: makes the figures, as JSON can hold them.
  """
  if not folder:
    return work()
  key = hashlib.sha256(f"{versions()} {program}".encode()).hexdigest()[:32]
  path = pathlib.Path(folder) / f"{key}.json"
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")  # whole or not there, if stopped
    part.write_text(json.dumps(work()))
    part.replace(path)
  return json.loads(path.read_text())


def versions() -> str:
  """The compiler's, and the counting code's: this folder."""
  counting = hashlib.sha256()
  for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
    counting.update(path.read_bytes())
  libtpu = importlib.metadata.version("libtpu")
  return f"jax {jax.__version__} libtpu {libtpu} counted by {counting.hexdigest()}"
