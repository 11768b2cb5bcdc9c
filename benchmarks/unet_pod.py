"""Compiles the full-size pixel decoders for a TPU pod that is not there.

    python -m benchmarks.unet_pod sample --topology=v5e:2x2
    python -m benchmarks.unet_pod train --topology=v5e:8x8

The programs are those of `lavit_jax.plan`. `sample` is the whole loop of the SDXL type:
DDIM with guidance, 1024 px, one picture per chip, weights in bfloat16 on every chip.
`train` is the step of stage 1b with the Stable Diffusion 1.5 type at 512 px, everything
split over all chips. Needs the `tpu` extra, no TPU. Prints lines of JSON: the memory of
one chip, and the FLOPs of its products beside the analytic count.
"""

import argparse
import json
import time

import jax

from configs import pixel_decoder
from lavit_jax.core import traced_flops
from lavit_jax.planning import (
  compiling,
  cost,
  pod_plan,
  programs,
  serving_programs,
  topology,
)


def sampling(pod: topology.Topology, num_steps: int) -> programs.Program:
  """The guided loop of the SDXL type, one picture per device."""
  config = pixel_decoder.get_config("sdxl")
  config.sampling.steps = num_steps
  config.mesh.update(dict(data=-1, fsdp=1))
  return serving_programs.draw(config, pod_plan.pod_mesh(config, pod), pod.chips)


def training(pod: topology.Topology, batch: int) -> programs.Program:
  """A step of Stable Diffusion 1.5, all of its batch at once."""
  config = pixel_decoder.get_config("sd15")
  config.update(dict(batch_size=batch, accumulate=1))
  return programs.pixel_step(config, pod_plan.pod_mesh(config, pod))


def main() -> None:
  """Compiles what the command line asks for."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("what", choices=["sample", "train"])
  parser.add_argument("--topology", default="v5e:2x2")
  parser.add_argument("--num_steps", type=int, default=25)
  parser.add_argument("--batch", type=int, default=128)
  parser.add_argument("--text", help="where to write the program")
  args = parser.parse_args()
  topology.without_chips()
  pod = topology.parse(args.topology)
  start = time.monotonic()
  if args.what == "sample":
    program = sampling(pod, args.num_steps)
  else:
    program = training(pod, args.batch)
  found = programs.trace(program)
  with jax.set_mesh(program.mesh):
    lowered = found.lower()
  lowering = time.monotonic() - start
  compiled = compiling.compile_lowered(lowered, program.mesh)
  seconds = {"lower": round(lowering, 1), "compile": round(compiled.seconds, 1)}
  memory = gigabytes(compiled.memory)
  print(
    json.dumps({"what": args.what, "seconds": seconds, "gigabytes_per_chip": memory})
  )
  if args.text:
    with open(args.text, "w") as stream:
      stream.write(compiled.text)
  counted = cost.count(compiled.text, pod.chips).flops
  analytic = traced_flops.flops(found.jaxpr) / pod.chips
  report = {
    "topology": args.topology,
    "chips": pod.chips,
    "teraflops_per_chip": round(counted / 1e12, 2),
    "counted_over_analytic": round(counted / analytic, 4),
  }
  print(json.dumps(report))


def gigabytes(memory: compiling.Memory) -> dict[str, float]:
  """Memory of one chip."""
  sizes = {
    "arguments": memory.arguments,
    "new_outputs": memory.outputs,
    "temporaries": memory.temporaries,
    "code": memory.code,
    "total": memory.total,
  }
  return {name: round(size / 1e9, 3) for name, size in sizes.items()}


if __name__ == "__main__":
  main()
