"""Imports every module of a package without its toy room, then trains stages 1 and 2.

python without_toy.py CONFIGS.json WORKDIR, where the package lies in the current folder
"""

import importlib
import json
import pathlib
import sys

import ml_collections


def import_all() -> int:
  """Imports every module of the package; returns how many.

  A folder without `__init__.py` holds files that are exported, not modules.
  """
  paths = sorted(pathlib.Path("lavit_jax").rglob("*.py"))
  paths = [path for path in paths if path.with_name("__init__.py").exists()]
  for path in paths:
    name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    importlib.import_module(name)
  return len(paths)


def train(configs: pathlib.Path, workdir: str) -> None:
  from lavit_jax.stages import stage_run

  for name, fields in json.loads(configs.read_text()).items():
    stage_run.run(ml_collections.ConfigDict(fields), f"{workdir}/{name}")


if __name__ == "__main__":
  sys.path.insert(0, ".")
  print("imported", import_all())
  train(pathlib.Path(sys.argv[1]), sys.argv[2])
