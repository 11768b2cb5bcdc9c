"""Compiles prefill and decoding of the 7B model for TPU slices that are not there.

    python -m benchmarks.generate_pod --topology=v5e:2x4 [--rows=16 --prompt=128]

The programs are those of `lavit_jax.plan`. Weights are split over `tensor` = all chips,
in bfloat16; every row is guided. Needs the `tpu` extra, no TPU. Prints one line of
JSON: memory of one chip, and the time that a step takes at least, which is its bytes
over the bandwidth of the chip's memory.
"""

import argparse
import json

import jax

from configs import pretrain
from lavit_jax.generate import ahead
from lavit_jax.planning import compiling, pod_plan, programs, serving_programs, topology


def compiled(program: programs.Program) -> dict[str, float]:
  """Memory of one chip, in GB, and the seconds that compiling took."""
  with jax.set_mesh(program.mesh):
    lowered = programs.trace(program).lower()
  found = compiling.compile_lowered(lowered, program.mesh)
  gigabytes = lambda count: round(count / 1e9, 3)
  return dict(
    arguments=gigabytes(found.memory.arguments),
    temporaries=gigabytes(found.memory.temporaries),
    outputs_not_aliased=gigabytes(found.memory.outputs),
    compile_seconds=round(found.seconds),
  )


def main() -> None:
  """Command line entry."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--topology", default="v5e:2x4")
  parser.add_argument("--rows", type=int, default=16)
  parser.add_argument("--prompt", type=int, default=serving_programs.PROMPT)
  parser.add_argument("--max_new", type=int, default=256)
  given = parser.parse_args()
  topology.without_chips()
  pod, config = topology.parse(given.topology), pretrain.get_config("7b")
  config.mesh.update(dict(fsdp=1, tensor=-1))
  mesh = pod_plan.pod_mesh(config, pod)
  row = (config, mesh, given.rows, given.prompt, given.max_new)
  decode = serving_programs.decode(*row)
  read = ahead.step_bytes(decode.arguments["parameters"], decode.arguments["cache"])
  floor = read / pod.chip.bandwidth
  report = dict(
    topology=given.topology,
    chips=pod.chips,
    rows=given.rows,
    prompt=given.prompt,
    max_new=given.max_new,
    prefill=compiled(serving_programs.prefill(*row)),
    decode=compiled(decode),
    step_gigabytes_per_chip=round(read / 1e9, 3),
    step_floor_ms=round(1e3 * floor, 2),
    tokens_per_second_ceiling=round(given.rows / floor),
  )
  print(json.dumps(report))


if __name__ == "__main__":
  main()
