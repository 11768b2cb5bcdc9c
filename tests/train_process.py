"""One process of a run on several: `python train_process.py PORT PROCESSES INDEX JSON`.

The JSON names the stage, the folders of its data and of the model it starts from, the
run directory, changes to the config, and the seconds after which a silent process
counts as dead. The eight devices are shared out evenly. Every step's loss goes to
metrics.jsonl.
"""

import json
import os
import sys

DEVICES = 8


def config_of(task: dict):
  """The tiny config of a stage, with the changes of the task."""
  import pathlib

  import toy_run

  make = {
    "pretrain": toy_run.language_run,
    "visual_tokenizer": toy_run.visual_tokenizer_run,
  }[task["stage"]]
  config = make(pathlib.Path(task["data"]), pathlib.Path(task["model"]))
  config.update(dict(log_every=1) | task["changes"])
  return config


def main(port: str, processes: str, index: str, text: str) -> None:
  task, count = json.loads(text), int(processes)
  flag = f"--xla_force_host_platform_device_count={DEVICES // count}"
  os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flag}
  import jax
  from absl import flags

  from lavit_jax.stages import stage_run
  from lavit_jax.training import compile_cache, hosts

  jax.config.update("jax_default_matmul_precision", "highest")
  given = [f"--coordinator=localhost:{port}", f"--hosts={count}", f"--host={index}"]
  given = [f"--heartbeat_timeout={task['heartbeat']}", *given]
  flags.FLAGS(["train"] + (given if count > 1 else []))
  hosts.start()
  counter = compile_cache.Counter()
  stage_run.run(config_of(task), task["workdir"])
  print(f"COMPILED {counter.compiled} of {counter.requested}", flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
