"""Plans on disk: made once, memory-mapped by every run that asks for the same.

A folder `plan-DIGEST` holds `documents.bin` (DOCUMENT[D]), `row_offsets.bin`
(i64[R + 1]) and `plan.json`. The digest names everything that the plan follows from, so
other settings or other lengths make another folder. A folder appears whole or not at
all.
"""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable

import numpy as np

from lavit_jax.data import pack_plan
from lavit_jax.data.documents import DOCUMENT

VERSION = 2  # of the planner: one that gives other rows needs another number
DOCUMENTS, OFFSETS, FACTS = "documents.bin", "row_offsets.bin", "plan.json"


def name_of(facts: dict) -> str:
  """Names a plan by what it follows from, a JSON-compatible dict."""
  text = json.dumps([VERSION, facts], sort_keys=True)
  return f"plan-{hashlib.sha256(text.encode()).hexdigest()[:20]}"


def write(path: str | os.PathLike, planned: pack_plan.Windows) -> None:
  """Writes a plan window by window; a path that exists meanwhile is left as it is."""
  path = pathlib.Path(path)
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  temporary.mkdir(parents=True, exist_ok=True)  # a killed run may have left it
  try:
    end = 0
    with (
      open(temporary / DOCUMENTS, "wb") as documents,
      open(temporary / OFFSETS, "wb") as offsets,
    ):
      np.zeros(1, np.int64).tofile(offsets)
      for some, counts in planned.windows:
        some.tofile(documents)
        (end + np.cumsum(counts, dtype=np.int64)).tofile(offsets)
        end += len(some)
    (temporary / FACTS).write_text(json.dumps(planned.facts(), indent=1))
    if not path.exists():
      temporary.rename(path)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def load(path: str | os.PathLike) -> pack_plan.PackPlan:
  """Opens a plan without reading it."""
  path = pathlib.Path(path)
  return pack_plan.PackPlan(
    row_offsets=np.memmap(path / OFFSETS, np.int64, "r"),
    documents=np.memmap(path / DOCUMENTS, DOCUMENT, "r"),
    **json.loads((path / FACTS).read_text()),
  )


def find_or_make(
  folder: str | os.PathLike, facts: dict, make: Callable[[], pack_plan.Windows]
) -> pack_plan.PackPlan:
  """Opens the plan of these facts, which is made first where it is not there.

  Args:
    folder: where plans are kept.
    facts: all that the plan follows from, JSON-compatible.
    make: plans it.

  Returns:
    The plan, its arrays memory-mapped.
  """
  path = pathlib.Path(folder) / name_of(facts)
  if not path.exists():
    write(path, make())
  return load(path)
