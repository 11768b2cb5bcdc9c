"""The product runs without the toy world: its room is renamed away in a copy."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import toy_run

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = pathlib.Path(__file__).parents[1] / "without_toy.py"
# Six steps of the programs that the tests of resuming compile, too.
QUIET = dict(checkpoint_every=0, eval_every=0, log_every=1)
SAME_PROGRAMS = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}  # as tests/conftest.py


def test_stages_train_without_the_toy_room(
  tmp_path, encoder_directory, visual_tokenizer_directory, tokenized_data
):
  package = tmp_path / "lavit_jax"
  shutil.copytree(ROOT / "lavit_jax", package)
  (package / "toy").rename(tmp_path / "renamed")
  shutil.copytree(ROOT / "configs", tmp_path / "configs")
  configs = {
    "one": toy_run.visual_tokenizer_run(tokenized_data, encoder_directory),
    "two": toy_run.language_run(tokenized_data, visual_tokenizer_directory),
  }
  for config in configs.values():
    config.update(QUIET)
  fields = {name: json.loads(config.to_json()) for name, config in configs.items()}
  (tmp_path / "configs.json").write_text(json.dumps(fields))
  done = subprocess.run(
    [sys.executable, SCRIPT, "configs.json", "runs"],
    cwd=tmp_path,
    env=os.environ | SAME_PROGRAMS | {"PYTHONPATH": str(tmp_path)},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  files = package.rglob("*.py")
  modules = [path for path in files if path.with_name("__init__.py").exists()]
  assert f"imported {len(modules)}\n" in done.stdout
  for name in configs:
    lines = (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = [record["step"] for record in records if record["kind"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6], name
