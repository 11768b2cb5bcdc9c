"""Which code a run was made with."""

import functools
import hashlib
import importlib.metadata
import pathlib


@functools.cache
def code_version() -> str:
  """The package's version and a checksum over its source files."""
  root, digest = pathlib.Path(__file__).parents[1], hashlib.sha256()
  for path in sorted(root.rglob("*.py")):
    digest.update(str(path.relative_to(root)).encode())
    digest.update(path.read_bytes())
  try:
    number = importlib.metadata.version("lavit_jax")
  except importlib.metadata.PackageNotFoundError:
    number = "uninstalled"
  return f"{number}+{digest.hexdigest()[:12]}"
