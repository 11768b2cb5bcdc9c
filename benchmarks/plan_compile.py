"""What compiling costs: depth, pod size, slices; processor seconds and memory.

  python -m benchmarks.plan_compile --work=/tmp/plans

The train step of stage 2, four rows per chip (two on 1,024 chips). Processor seconds,
not the clock's, so that other work on the machine counts little; each compilation runs
in a process of its own, whose peak memory is stated. What --work already holds is not
compiled again.
"""

from typing import Any

from absl import app

from benchmarks import plan_runs

# Topology, slices, fields of the config.
CASES = {
  "64 chips, 4 layers": (
    "v5e-64",
    1,
    dict(mesh__data=1, mesh__fsdp=64, accumulate=8, model__num_layers=4),
  ),
  "64 chips": ("v5e-64", 1, dict(mesh__data=1, mesh__fsdp=64, accumulate=8)),
  "256 chips": ("v5e-256", 1, dict(mesh__data=4, mesh__fsdp=64, accumulate=2)),
  "1,024 chips": ("v5p-2048", 1, dict(mesh__data=16, mesh__fsdp=64, accumulate=1)),
  "two slices of 256": ("v5e-256", 2, dict(mesh__data=8, mesh__fsdp=64, accumulate=1)),
}


def seconds(plan: dict[str, Any]) -> float:
  """Processor seconds of the compiler."""
  return plan["compile_cpu_seconds"]


def main(argv: list[str]) -> None:
  """Prints every case and the two ratios."""
  del argv
  plans = {}
  for name, (topology, slices, fields) in CASES.items():
    plan = plan_runs.planned("pretrain:7b", topology, slices, **fields)
    plans[name] = plan
    print(
      f"{name:20} {seconds(plan):6.1f} s of processor, {plan['compile_seconds']:6.1f} s"
      f" by the clock, {plan['compile_memory'] / 1e9:.2f} GB",
      flush=True,
    )
  of = lambda a, b: seconds(plans[a]) / seconds(plans[b])
  print(f"32 layers / 4 layers  {of('64 chips', '64 chips, 4 layers'):.2f}")
  print(f"256 chips / 64 chips  {of('256 chips', '64 chips'):.2f}")


if __name__ == "__main__":
  app.run(main)
