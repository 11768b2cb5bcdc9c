"""Counted FLOPs against the analytic count: every stage, five layouts of 64 chips.

  python -m benchmarks.plan_flops --work=/tmp/plans [--configs=pretrain:7b]

Compiles the full-size train steps for v5e-64; what --work already holds is not compiled
again. Kernels are left out on both sides.
"""

from absl import app, flags

from benchmarks import plan_runs

CONFIGS = flags.DEFINE_list(
  "configs", ["pretrain:7b", "visual_tokenizer:7b"], "Configs, as stage:variant."
)
TOPOLOGY = flags.DEFINE_string("topology", "v5e-64", "A pod of 64 chips.")

LAYOUTS = (
  dict(data=1, fsdp=64),
  dict(data=4, fsdp=16),
  dict(fsdp=16, tensor=4),
  dict(fsdp=16, sequence=4),
  dict(data=2, fsdp=8, sequence=2, tensor=2),
)


def main(argv: list[str]) -> None:
  """Prints both counts and their ratio for each stage and layout."""
  del argv
  for stage in CONFIGS.value:
    for layout in LAYOUTS:
      fields = {f"mesh__{axis}": size for axis, size in layout.items()}
      plan = plan_runs.planned(stage, TOPOLOGY.value, **fields)
      flops, name = plan["flops_per_step"], " ".join(map(str, layout.items()))
      if not plan["fits"]:
        over = plan["misfit"]["over"] / 1e9
        print(f"{stage:20} {name:60} does not fit by {over:.2f} GB", flush=True)
        continue
      ratio = flops["counted"] / flops["analytic"]
      memory = plan["memory_per_chip"]["total"] / 1e9
      print(
        f"{stage:20} {name:60} counted {flops['counted'] / 1e12:8.2f} T, analytic"
        f" {flops['analytic'] / 1e12:8.2f} T, ratio {ratio:.4f}; {memory:.2f} GB",
        flush=True,
      )


if __name__ == "__main__":
  app.run(main)
