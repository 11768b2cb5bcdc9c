"""Compiles prefill and decoding of the 7B model for TPU slices that are not there.

    python benchmarks/generate_pod.py --topology=v5e:2x4 [--rows=16 --prompt=128]

Weights are split over `tensor` = all chips, in bfloat16; every row is guided. Needs the
`tpu` extra, no TPU. Prints one line of JSON: memory of one chip, and the time that a
step takes at least, which is its bytes over the bandwidth of the chip's memory.
"""

import argparse
import json
import os
import time

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from lavit_jax import sharding
from lavit_jax.generate import ahead, decode
from lavit_jax.layers import linear
from lavit_jax.models import llama
from lavit_jax.vocabulary import Vocabulary

WORDS = Vocabulary(text_size=32000, num_codes=16384)
BANDWIDTH = {"v4": 1.2e12, "v5e": 0.81e12, "v5p": 2.8e12, "v6e": 1.6e12}  # bytes/s


def abstract_parameters(model):
  """The parameter tree as shapes."""
  ids = jnp.zeros((1, 4), jnp.int32)
  init = lambda: model.init(jax.random.key(0), ids, ids, ids, method="everything")
  return linear.split_boxes(jax.eval_shape(init))[0]["params"]


def compiled(lowered) -> dict[str, float]:
  """Memory of one chip, in GB, and the seconds that compiling took."""
  begin = time.perf_counter()
  found = lowered.compile().memory_analysis()
  gigabytes = lambda count: round(count / 1e9, 3)
  return dict(
    arguments=gigabytes(found.argument_size_in_bytes),
    temporaries=gigabytes(found.temp_size_in_bytes),
    outputs_not_aliased=gigabytes(
      found.output_size_in_bytes - found.alias_size_in_bytes
    ),
    compile_seconds=round(time.perf_counter() - begin),
  )


def main() -> None:
  """Command line entry."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--topology", default="v5e:2x4")
  parser.add_argument("--rows", type=int, default=16)
  parser.add_argument("--prompt", type=int, default=128)
  parser.add_argument("--max_new", type=int, default=256)
  given = parser.parse_args()
  devices = topologies.get_topology_desc(
    platform="tpu", topology_name=given.topology
  ).devices
  mesh = sharding.make_mesh({"tensor": len(devices)}, devices)
  sizes = dict(vocab_size=WORDS.size, padded_size=WORDS.padded_size)
  model = llama.Llama(**llama.VARIANTS["7b"], **sizes)
  side = ahead.abstract_serving(model, WORDS, abstract_parameters(model), mesh)
  shape = decode.Shape(given.max_new, guided=given.rows, candidates=64)
  row = (side, mesh, given.rows, given.prompt, shape)
  read = ahead.step_bytes(*row)
  floor = read / BANDWIDTH[given.topology.split(":")[0]]
  report = dict(
    topology=given.topology,
    chips=len(devices),
    rows=given.rows,
    prompt=given.prompt,
    max_new=given.max_new,
    prefill=compiled(ahead.lower_start(*row)),
    decode=compiled(ahead.lower_advance(*row)),
    step_gigabytes_per_chip=round(read / 1e9, 3),
    step_floor_ms=round(1e3 * floor, 2),
    tokens_per_second_ceiling=round(given.rows / floor),
  )
  print(json.dumps(report))


if __name__ == "__main__":
  main()
