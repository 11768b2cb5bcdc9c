"""`evaluate_model` on two real processes: the files of one, byte for byte."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from test_feed_processes import free_port

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parent.parent


def start(model, folder, target, *hosts) -> subprocess.Popen:
  paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
  alone = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
  command = [sys.executable, "-m", "lavit_jax.evaluate_model", "tokenizer"]
  command += [f"--model={model}", f"--annotations={folder / 'a.json'}"]
  command += [f"--images={folder}", f"--target={target}", "--batch_size=2", *hosts]
  return subprocess.Popen(
    command, env=os.environ | alone, stderr=subprocess.PIPE, text=True
  )


def test_two_processes_write_what_one_writes(tmp_path, visual_tokenizer_directory):
  rng = np.random.default_rng(0)
  for i in range(5):
    noise = rng.integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"{i}.png")
  entries = [{"image": f"{i}.png"} for i in (0, 1, 2, 3, 4, 3)]
  (tmp_path / "a.json").write_text(json.dumps(entries))
  common = (visual_tokenizer_directory, tmp_path)
  started = [start(*common, tmp_path / "one")]
  port = free_port()
  for host in range(2):
    own = (f"--coordinator=127.0.0.1:{port}", "--hosts=2", f"--host={host}")
    started.append(start(*common, tmp_path / "two", *own))
  for process in started:
    error = process.communicate(timeout=600)[1]
    assert process.returncode == 0, error[-3000:]
  for name in ("tokenizer.json", "tokenizer-results.json"):
    files = [(tmp_path / side / name).read_bytes() for side in ("one", "two")]
    assert files[0] == files[1]
  assert json.loads((tmp_path / "one/tokenizer.json").read_text())["n"] == 5
  lines = [(tmp_path / f"two/parts/tokenizer-{i}-of-2.jsonl") for i in range(2)]
  assert [len(path.read_text().splitlines()) - 1 for path in lines] == [3, 2]
