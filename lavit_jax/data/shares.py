"""Which share of a long work a machine does, as its command or its scheduler says."""

import dataclasses
import re
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Share:
  """Every `of`th part, from `index` on.

  Attributes:
    index: 0 to of - 1.
    of: machines.
  """

  index: int = 0
  of: int = 1


ALL = Share()


def parse(text: str, environment: Mapping[str, str]) -> Share:
  """Reads "3/16", "auto" or "auto/16".

  Args:
    text: the flag; "" is all of the work.
    environment: where `auto` finds what SLURM or Kubernetes say. A Kubernetes Job
      does not tell how many it has: the number follows "auto".
  """
  if not text:
    return ALL
  hit = re.fullmatch(r"(auto|\d+)(?:/(\d+))?", text)
  if hit is None or hit[1] != "auto" and hit[2] is None:
    raise ValueError(
      f"expected --part=3/16, which counts from 0, or auto, or auto/16, got {text!r}"
    )
  if hit[1] == "auto":
    index, of = _scheduled(environment, int(hit[2] or 0))
  else:
    index, of = int(hit[1]), int(hit[2])
  if not 0 <= index < of:
    raise ValueError(
      f"expected parts 0/{of} to {max(of - 1, 0)}/{of}, got {index}/{of}; they count"
      " from 0"
    )
  return Share(index, of)


def _scheduled(environment: Mapping[str, str], of: int) -> tuple[int, int]:
  """Index and number of a SLURM array or step, or of an indexed Kubernetes Job."""

  def number(name: str, otherwise: int = 0) -> int:
    return int(environment.get(name) or otherwise)

  index, count = 0, 0
  if "SLURM_ARRAY_TASK_ID" in environment:
    first = number("SLURM_ARRAY_TASK_MIN")
    index, count = (
      number("SLURM_ARRAY_TASK_ID") - first,
      number("SLURM_ARRAY_TASK_COUNT"),
    )
  if "SLURM_STEP_NUM_TASKS" in environment:  # set by srun only
    tasks = number("SLURM_STEP_NUM_TASKS", 1)
    index, count = index * tasks + number("SLURM_PROCID"), max(count, 1) * tasks
  elif not count and "JOB_COMPLETION_INDEX" in environment:
    index, count = number("JOB_COMPLETION_INDEX"), of
  if not (of or count):
    raise ValueError(
      "expected --part=auto under a SLURM array, srun or an indexed Kubernetes Job"
      " (auto/16: it does not tell its number), got none of their variables; give"
      " --part=3/16"
    )
  return index, of or count
