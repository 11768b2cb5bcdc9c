"""A finished model on a mesh: which one, and what loading it takes."""

import os
import pathlib
import subprocess
import sys

import pytest

from lavit_jax.inference import meshes


@pytest.mark.parametrize(
  "heads, batch, devices, expected",
  [
    ((16, 16, 32, 32), 8, 8, {"data": 1, "tensor": 8}),
    ((16, 16, 28, 4), 8, 8, {"data": 2, "tensor": 4}),
    ((16, 16, 28, 4), 3, 8, {"data": 1, "tensor": 4}),
    ((3, 5), 6, 4, {"data": 2, "tensor": 1}),
  ],
)
def test_heads_are_spread_first_then_requests(heads, batch, devices, expected):
  counts = dict(enumerate(heads))
  assert meshes.sizes_for(counts, batch, devices) == expected


def test_loading_takes_little_more_than_the_weights():
  """Peak bytes of host and eight devices, all of which are this process's memory."""
  script = pathlib.Path(__file__).parent.parent / "load_process.py"
  own = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
  own |= {"MALLOC_MMAP_THRESHOLD_": "65536"}
  command = [sys.executable, str(script)]
  done = subprocess.run(command, capture_output=True, text=True, env=own, timeout=300)
  assert done.returncode == 0, done.stderr
  weights, peak = map(int, done.stdout.split()[-2:])
  assert peak <= 1.15 * weights
