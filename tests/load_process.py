"""Loads a language model on eight devices; prints its bytes and the peak they took.

Run as a process of its own, with MALLOC_MMAP_THRESHOLD_=65536: what is freed then
leaves the process, and what is resident is what is held.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import pathlib  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from lavit_jax.core import sharding  # noqa: E402
from lavit_jax.inference import language  # noqa: E402
from lavit_jax.layers import linear  # noqa: E402
from lavit_jax.models import llama  # noqa: E402
from lavit_jax.weights import model_directory  # noqa: E402

SIZES = dict(
  vocab_size=4096,
  padded_size=4096,
  embed_dim=1024,
  num_heads=8,
  num_kv_heads=8,
  head_dim=128,
  mlp_dim=2816,
  rope_base=1e4,
  norm_eps=1e-5,
)


def load(folder: str, layers: int):
  """Writes a random model of so many layers, and loads it."""
  model = llama.Llama(**SIZES, num_layers=layers)
  ids = jnp.zeros((1, 4), jnp.int32)
  init = lambda key: model.init(key, ids, ids, ids, method="everything")
  abstract, axes = linear.abstract_params(init)
  if not pathlib.Path(folder).exists():
    random = lambda leaf: np.full(leaf.shape, 0.01, ml_dtypes.bfloat16)
    part = model_directory.Part(jax.tree.map(random, abstract), SIZES)
    model_directory.save(folder, {"llama": part})
    del part
  mesh = sharding.make_mesh({"tensor": 8})
  return lambda: language.load_weights(folder, model, abstract, axes, mesh)


def resident(field: str) -> int:
  """Bytes of this process, by a field of its status."""
  status = pathlib.Path("/proc/self/status").read_text()
  return 1024 * int(status.split(f"{field}:")[1].split()[0])


def main() -> None:
  """Compiles on a model of one layer, then measures on one of sixteen."""
  with tempfile.TemporaryDirectory() as folder:
    load(f"{folder}/one", 1)()
    run = load(f"{folder}/many", 16)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    before = resident("VmRSS")
    weights = run()
    peak = resident("VmHWM") - before
    held = sum(
      s.data.nbytes for x in jax.tree.leaves(weights) for s in x.addressable_shards
    )
    print(held, peak)


if __name__ == "__main__":
  main()
