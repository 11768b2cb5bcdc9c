"""How a run begins: its newest checkpoint or an earlier one, or a state of step 0.

What must be as it was is compared: the config, the frozen parts and the data, both by
fingerprint, so that folders may move. What was changed on purpose is asked for by name
and kept in `changes.jsonl` of the run directory.
"""

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

import ml_collections
from etils import epath

from lavit_jax.stages import data_names
from lavit_jax.training import (
  base,
  checkpoint,
  code_version,
  hosts,
  parameters_from,
)

CHANGES = "changes.jsonl"
# What may change between a run and its resumption; docs/training.md lists it.
FREE_FIELDS = (
  "init_from",  # its weights are compared by checksum
  "warm_start",
  "batch_size",  # the data position counts rows
  "accumulate",
  "remat",
  "unroll",
  "loss_chunks",
  "mesh", "rules", "log_every", "eval_every", "checkpoint_every", "eval_batches",
  "data_threads", "keep", "step_timeout", "end_hung", "skip_limit", "parameters_from",
  "wandb",
  "decoding", "sampling",  # of the finished model
  "data.skip",  # kept in the log
)  # fmt: skip
# What may change when --change names it.
NAMED_FIELDS = ("num_steps", "optimizer.", "kind_weights.", "z_loss", "data.eval")
FIXED_FIELDS = ("optimizer.name",)  # its state is another one
# Fields that came later, and what they were before.
EARLIER = {"mask_comparison": 1.0, "z_loss": 0.0, "model.selector_input": "whitened"}


@dataclasses.dataclass(frozen=True)
class Asked:
  """What the command line asks of a resumption.

  Attributes:
    step: checkpoint to go back to; None for the newest.
    change: config fields whose change is meant.
  """

  step: int | None = None
  change: tuple[str, ...] = ()


NOTHING = Asked()


def begin(
  config: ml_collections.ConfigDict,
  stage: base.Stage,
  saved: checkpoint.Checkpoints,
  folder: epath.Path,
  asked: Asked,
) -> tuple[Any, int, int]:
  """Restores a checkpoint, or makes the state of step 0.

  Args:
    config: stage config.
    stage: the stage.
    saved: checkpoints of the run.
    folder: run directory.
    asked: what is to be changed.

  Returns:
    The state, rows already used, and steps skipped so far.
  """
  newest = saved.newest()
  if newest is None and asked != NOTHING:
    raise ValueError(
      f"expected a run with checkpoints in {folder} for --resume_step or --change, got"
      " none; leave these flags out"
    )
  fields = json.loads(config.to_json())
  if newest is None:
    if hosts.is_primary():
      folder.mkdir(parents=True, exist_ok=True)
      (folder / "config.json").write_text(json.dumps(fields, indent=2))
    return _warm(config, stage.initial(config.seed)), 0, 0
  log, request = read_changes(folder), _request(fields, asked)
  given = any(entry["asked"] == request for entry in log[-1:])
  step = newest if given or asked.step is None else _earlier(saved, asked.step)
  meta = saved.meta(step)
  changed = _checked(folder, meta, fields, stage, asked, given)
  hosts.meet("changes read")
  if hosts.is_primary():
    print(f"resuming {folder} at step {step}")
    if given and asked.step is not None:
      print(
        f"note: this run went back to step {asked.step} by this same command before,"
        f" and goes on from its newest checkpoint; see {folder / CHANGES}"
      )
    if step != newest:
      saved.go_back(step)
    if changed:
      (folder / "config.json").write_text(json.dumps(fields, indent=2))
    if changed or (asked.step is not None and not given):
      _log(folder, {"step": step, "asked": request, "changed": changed})
    if meta["code"] != code_version.code_version():
      print(f"note: that checkpoint was written by other code, {meta['code']}")
  hosts.meet("changes written")
  state = saved.restore(step, stage.abstract, stage.shardings)
  return state, meta["position"], meta["skipped"]


def _request(fields: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
  """What is asked for, to be known again when the same command comes twice."""
  skip = fields.get("data", {}).get("skip", "")
  values = {name: _value(fields, name) for name in sorted(asked.change)}
  return {"resume_step": asked.step, "change": values, "skip": skip}


def _value(fields: Mapping[str, Any], name: str) -> Any:
  """The value of a field such as "optimizer.eps"."""
  found: Any = fields
  for key in name.split("."):
    if not isinstance(found, dict) or key not in found:
      raise ValueError(
        f"expected fields of the config after --change, got {name!r}; name them as"
        " after --config, e.g. --change=num_steps,optimizer.learning_rate"
      )
    found = found[key]
  return found


def _earlier(saved: checkpoint.Checkpoints, step: int) -> int:
  """A step to go back to, if there is a whole checkpoint of it."""
  steps = saved.steps()
  if step not in steps:
    raise ValueError(
      f"expected --resume_step to be one of {steps}, the checkpoints in {saved.folder},"
      f" got {step}; config.keep.every keeps more of them"
    )
  problems = saved.problems(step)
  if problems:
    raise ValueError(
      f"expected a whole checkpoint of step {step} in {saved.folder}, got a damaged one"
      f" ({problems}); take another of {steps}"
    )
  return step


def _checked(folder, meta, fields, stage, asked, given: bool) -> dict[str, list]:
  """Compares a checkpoint with what is given now; the fields changed on purpose."""
  if meta["frozen"] != stage.frozen_checksums:
    raise ValueError(
      f"the checkpoint in {folder} was trained over frozen parts {meta['frozen']} but"
      f" config.init_from now holds {stage.frozen_checksums}; give the same model"
      " directory"
    )
  paths = ()
  if "data" in meta:  # earlier checkpoints know the paths alone
    paths = data_names.PATHS
    _check_data(folder, meta["data"], stage.data_names, asked)
  old, new = _flat(meta["config"]), _flat(fields)
  earlier = {name: value for name, value in EARLIER.items() if name in new}
  if "whitening" not in meta["frozen"]:  # raw features went in whatever it said
    earlier.pop("model.selector_input", None)
    old.setdefault("model.selector_input", new.get("model.selector_input"))
  old = earlier | old
  differing = {
    name: [old.get(name), new.get(name)]
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name) and not _is_in(name, (*FREE_FIELDS, *paths))
  }
  refused = [
    name
    for name in differing
    if not _is_in(name, asked.change) or _is_in(name, FIXED_FIELDS)
  ]
  if refused:
    told = "; ".join(f"{n}: {differing[n][0]} -> {differing[n][1]}" for n in refused)
    able = [name for name in refused if _may_change(name)]
    more = f", say --change={','.join(able)} where that is meant," if able else ""
    raise ValueError(
      f"the checkpoint in {folder} was made with another configuration ({told});"
      f" restore those values{more} or choose a new --workdir"
    )
  _check_named(asked, differing, given)
  skip = [values.get("data.skip", "") or "" for values in (old, new)]
  return differing | ({"data.skip": skip} if skip[0] != skip[1] else {})


def _check_data(folder, saved: Mapping[str, str], current: Mapping[str, str], asked):
  """Refuses other records under whatever path."""
  wrong = [
    f"{name}: {saved.get(name)} -> {current.get(name)}"
    for name in sorted(saved.keys() | current.keys())
    if saved.get(name) != current.get(name) and name not in asked.change
  ]
  if wrong:
    raise ValueError(
      f"the checkpoint in {folder} was trained on other data, by the fingerprints of"
      f" their records ({'; '.join(wrong)}); give the records of before, wherever they"
      " lie now, or choose a new --workdir"
    )


def _check_named(asked: Asked, differing: Mapping[str, Any], given: bool) -> None:
  """Refuses to change what must stay, and names that change nothing."""
  wrong = [name for name in asked.change if not _may_change(name)]
  if wrong:
    raise ValueError(
      f"expected --change to name fields of {', '.join(NAMED_FIELDS)}, got {wrong};"
      " what else a run was made with stays: choose a new --workdir"
    )
  idle = [n for n in asked.change if not any(_is_in(d, (n,)) for d in differing)]
  idle = [name for name in idle if name != "data.eval"]  # it may have moved, too
  if idle and not given:
    raise ValueError(
      f"expected new values of the fields that --change names, got the old ones of"
      f" {idle}; give them with --config.{idle[0]}=VALUE, or leave them out"
    )


def _may_change(name: str) -> bool:
  return not _is_in(name, FIXED_FIELDS) and any(
    name == one.rstrip(".") or (one.endswith(".") and name.startswith(one))
    for one in NAMED_FIELDS
  )


def _is_in(name: str, fields: tuple[str, ...]) -> bool:
  """Whether a field is one of these or lies below one."""
  return any(name == one or name.startswith(one.rstrip(".") + ".") for one in fields)


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Values by dotted name."""
  found: dict[str, Any] = {}
  for name, value in fields.items():
    if isinstance(value, dict):
      found |= _flat(value, f"{prefix}{name}.")
    else:
      found[f"{prefix}{name}"] = value
  return found


def read_changes(folder: epath.Path) -> list[dict[str, Any]]:
  """What was changed on purpose in a run, oldest first."""
  path = folder / CHANGES
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().splitlines()]


def _log(folder: epath.Path, entry: dict[str, Any]) -> None:
  """Adds a line; buckets cannot append."""
  lines = [*read_changes(folder), {"time": round(time.time(), 3)} | entry]
  (folder / CHANGES).write_text("".join(json.dumps(one) + "\n" for one in lines))


def _warm(config, state: Any) -> Any:
  """Takes the parameters of another run into a fresh state, when one is named."""
  if not config.parameters_from:
    return state
  params, matches = parameters_from.load(config.parameters_from, state.params)
  if hosts.is_primary():
    print(matches.text(config.parameters_from))
  return state.replace(params=params)
