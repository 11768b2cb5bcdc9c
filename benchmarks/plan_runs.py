"""Plans in processes of their own; --work keeps them: a stopped benchmark goes on."""

import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from absl import flags

WORK = flags.DEFINE_string("work", "/tmp/plans", "Folder of the figures.")


def planned(
  config: str, topology: str, slices: int = 1, draft: bool = False, **fields: Any
) -> dict[str, Any]:
  """What `python -m lavit_jax.plan --json` writes.

  The step is traced again each time; --work holds figures by program, compiler and
  counting code, so that none is older than what it is compared with.

  Args:
    config: stage and variant, e.g. "pretrain:7b".
    topology: as `plan` takes it.
    slices: of the pod.
    draft: compile fast; counts are the same, but no time is predicted.
    fields: of the config, with "__" for ".", e.g. mesh__fsdp=8.

  Raises:
    RuntimeError: `plan` refused, in its words.
  """
  stage, variant = config.split(":")
  command = [sys.executable, "-m", "lavit_jax.plan", f"--topology={topology}"]
  command += [f"--config=configs/{stage}.py:{variant}", f"--slices={slices}"]
  command += ["--draft"] * draft
  command += [f"--cache={pathlib.Path(WORK.value) / 'programs'}"]
  command += [f"--config.{k.replace('__', '.')}={v}" for k, v in fields.items()]
  with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder) / "plan.json"
    done = subprocess.run([*command, f"--json={out}"], capture_output=True, text=True)
    if done.returncode:
      reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
      raise RuntimeError(f"{' '.join(command[3:])}: {reason}")
    return json.loads(out.read_text())
