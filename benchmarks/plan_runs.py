"""Plans in processes of their own, kept in a folder: a stopped benchmark goes on."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from absl import flags

WORK = flags.DEFINE_string("work", "/tmp/plans", "Folder of the figures.")


def planned(
  config: str, topology: str, slices: int = 1, **fields: Any
) -> dict[str, Any]:
  """What `python -m lavit_jax.plan --json` writes, from --work if it is there already.

  Args:
    config: stage and variant, e.g. "pretrain:7b".
    topology: as `plan` takes it.
    slices: of the pod.
    fields: of the config, with "__" for ".", e.g. mesh__fsdp=8.

  Raises:
    RuntimeError: `plan` refused, in its words.
  """
  overrides = [f"{name.replace('__', '.')}={value}" for name, value in fields.items()]
  parts = [config.replace(":", "_"), topology.replace(":", "_"), f"{slices}x"]
  name = "_".join([*parts, *(text.replace("=", "") for text in overrides)])
  path = pathlib.Path(WORK.value) / f"{name}.json"
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    stage, variant = config.split(":")
    command = [sys.executable, "-m", "lavit_jax.plan", f"--topology={topology}"]
    command += [f"--config=configs/{stage}.py:{variant}", f"--slices={slices}"]
    command += [f"--cache={path.parent / 'programs'}", f"--json={path}.part"]
    command += [f"--config.{text}" for text in overrides]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
      reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
      raise RuntimeError(f"{name}: {reason}")
    os.replace(f"{path}.part", path)
  return json.loads(path.read_text())
