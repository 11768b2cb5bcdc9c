"""The files of checkpoints: checksums, which ones are whole, and which ones to keep.

    checkpoints/500/state/...        arrays
    checkpoints/500/meta/metadata    data position, config, code version, figures
    checkpoints/500/checksums.json   a checksum per file, written before the folder
                                     takes its final name

Paths are `etils.epath`, so a bucket works like a folder.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence

import ml_collections
from etils import epath

CHECKSUMS = "checksums.json"
LATE_FIGURES = (
  "figures.json"  # of checkpoints that were evaluated after they were written
)
# Not covered by a checksum: written or changed after it, and not needed to restore.
MARKS = (CHECKSUMS, "commit_success.txt", "_CHECKPOINT_METADATA")
TEMPORARY = ".orbax-checkpoint-tmp"
READERS = 8


@dataclasses.dataclass(frozen=True)
class Keep:
  """Which checkpoints of a run stay.

  Attributes:
    last: the newest so many, at least 1.
    every: beside them, all steps that are a multiple of it; 0 for none.
    best: beside them, so many with the best figure.
    metric: name of that figure in the records of the step, e.g. "eval/loss_text".
    order: "lowest" or "highest".
  """

  last: int = 2
  every: int = 0
  best: int = 0
  metric: str = ""
  order: str = "lowest"

  def __post_init__(self):
    if self.last < 1 or self.order not in ("lowest", "highest"):
      raise ValueError(
        f"expected keep.last of at least 1 and keep.order 'lowest' or 'highest', got"
        f" {self.last} and {self.order!r}; fix config.keep"
      )
    if self.best and not self.metric:
      raise ValueError(
        f"expected the name of a figure beside keep.best {self.best}, got none; set"
        " config.keep.metric, e.g. eval/loss_text"
      )


def check_best(config: ml_collections.ConfigDict) -> None:
  """Refuses to keep the best checkpoints where few or none of them have a figure.

  Args:
    config: stage config.

  Raises:
    ValueError: says which fields do not fit together.
  """
  if not config.keep.best:
    return
  metric, saves = config.keep.metric, config.checkpoint_every
  measured = "eval_every" if metric.startswith("eval/") else "log_every"
  if measured == "log_every" and metric != "train/loss":
    raise ValueError(
      f"expected config.keep.metric 'train/loss' or an evaluation's figure such as"
      f" 'eval/loss_text', got {metric!r}; name one of these"
    )
  every = config[measured]
  if not saves or not every or (saves % every and every % saves):
    raise ValueError(
      f"expected config.checkpoint_every and config.{measured} of which one is a"
      f" multiple of the other, so that checkpoints have the figure {metric!r} of"
      f" config.keep.best {config.keep.best}, got {saves} and {every}; set"
      f" --config.{measured}={saves or 500}"
      + ("" if saves else " and --config.checkpoint_every=500")
    )


def late_figures(folder: epath.Path) -> dict[str, dict[str, float]]:
  """Figures by step that became known after a checkpoint was written."""
  path = folder / LATE_FIGURES
  return json.loads(path.read_text()) if path.exists() else {}


def write_late_figures(
  folder: epath.Path, figures: Mapping[str, Mapping[str, float]]
) -> None:
  """Writes them whole."""
  (folder / LATE_FIGURES).write_text(json.dumps(figures))


def kept(steps: Sequence[int], figures: Mapping[int, float], keep: Keep) -> set[int]:
  """The steps that stay, given the figure of those that have one."""
  steps = sorted(steps)
  chosen = set(steps[-keep.last :])
  if keep.every:
    chosen |= {step for step in steps if step % keep.every == 0}
  sign = 1 if keep.order == "lowest" else -1
  known = [step for step in steps if math.isfinite(figures.get(step, math.nan))]
  ranked = sorted((sign * figures[step], step) for step in known)
  return chosen | {step for _, step in ranked[: keep.best]}


def _files(folder: epath.Path) -> list[str]:
  """Files below a folder, as relative paths in a fixed order."""
  found = []

  def walk(path: epath.Path, prefix: str) -> None:
    for child in path.iterdir():
      if child.is_dir():
        walk(child, f"{prefix}{child.name}/")
      elif child.name not in MARKS:
        found.append(prefix + child.name)

  walk(folder, "")
  return sorted(found)


def _digest(path: epath.Path) -> str:
  with path.open("rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def _digests(folder: epath.Path, names: Sequence[str]) -> dict[str, str]:
  with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
    return dict(
      zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True)
    )


def write_checksums(folder: epath.Path) -> None:
  """Writes the checksum of every file of a folder beside them."""
  (folder / CHECKSUMS).write_text(json.dumps(_digests(folder, _files(folder))))


def damage(folder: epath.Path, index: int = 0, count: int = 1) -> list[str]:
  """What is wrong with a checkpoint; this host checks one of `count` shares.

  Args:
    folder: a complete checkpoint.
    index: number of the share.
    count: number of shares.

  Returns:
    One phrase per missing or changed file, empty for a whole checkpoint.
  """
  try:
    expected = json.loads((folder / CHECKSUMS).read_text())
    share = sorted(expected)[index::count]
  except (OSError, ValueError, TypeError) as error:
    return [f"{CHECKSUMS} cannot be read ({str(error).splitlines()[0]})"]
  missing = [name for name in share if not (folder / name).is_file()]
  found = _digests(folder, [name for name in share if name not in missing])
  changed = [name for name, digest in found.items() if digest != expected[name]]
  return [f"{name} is missing" for name in missing] + [
    f"{name} differs from its checksum" for name in changed
  ]


def is_complete(folder: epath.Path) -> bool:
  """Whether a checkpoint has all its files; one that is being deleted has not."""
  return (folder / CHECKSUMS).exists()


def steps(folder: epath.Path) -> list[int]:
  """Steps of the complete checkpoints, in order; their files are not yet checked."""
  if not folder.exists():
    return []
  return sorted(
    int(path.name)
    for path in folder.iterdir()
    if path.name.isdigit() and is_complete(path)
  )


def unfinished(folder: epath.Path) -> list[epath.Path]:
  """Folders of checkpoints that were being written or deleted when a run ended."""
  if not folder.exists():
    return []
  return [
    path
    for path in folder.iterdir()
    if TEMPORARY in path.name or (path.name.isdigit() and not is_complete(path))
  ]


def writing(folder: epath.Path, step: int) -> epath.Path:
  """Where the checkpoint of a step is being written."""
  found = list(folder.glob(f"{step}{TEMPORARY}*"))
  return found[0] if found else folder / str(step)  # buckets have no renames


def set_aside(folder: epath.Path) -> None:
  """Lets a damaged checkpoint count as unfinished: the same step replaces it."""
  (folder / CHECKSUMS).rename(folder / "damaged.json")


def remove(folder: epath.Path) -> None:
  """Deletes a checkpoint; one that is half deleted does not count as complete."""
  (folder / CHECKSUMS).unlink(missing_ok=True)
  folder.rmtree(missing_ok=True)
