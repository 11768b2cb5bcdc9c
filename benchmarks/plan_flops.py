"""Counted FLOPs against the analytic count: every full-size stage, five layouts.

  python -m benchmarks.plan_flops --work=/tmp/plans [--configs=pretrain:7b]

Drafts the train steps for the 64 chips of v5p-128, where every layout fits; what --work
already holds is not compiled again. Kernels of ours are left out on both sides.
"""

from absl import app, flags

from benchmarks import plan_runs

# Pictures of stage 1b: eight for each chip that shares none. With fewer the compiler
# pads small convolutions, and a chip multiplies more than any count by hand.
FIELDS = {
  "pretrain:7b": {},
  "visual_tokenizer:7b": {},
  "pixel_decoder:sd15": dict(batch_size=512, accumulate=1),
}
LAYOUTS = (
  dict(data=1, fsdp=64),
  dict(data=4, fsdp=16),
  dict(fsdp=16, tensor=4),
  dict(fsdp=16, sequence=4),
  dict(data=2, fsdp=8, sequence=2, tensor=2),
)

CONFIGS = flags.DEFINE_list("configs", list(FIELDS), "Configs, as stage:variant.")
TOPOLOGY = flags.DEFINE_string("topology", "v5p-128", "A pod of 64 chips.")


def main(argv: list[str]) -> None:
  """Prints both counts and their ratio for each stage and layout."""
  del argv
  for stage in CONFIGS.value:
    for layout in LAYOUTS:
      fields = {f"mesh__{axis}": size for axis, size in layout.items()}
      fields |= FIELDS.get(stage, {})
      plan = plan_runs.planned(stage, TOPOLOGY.value, draft=True, **fields)
      name = f"{stage:20} {' '.join(f'{axis} {n}' for axis, n in layout.items()):35}"
      if not plan["fits"]:
        over = plan["misfit"]["over"] / 1e9
        print(f"{name} does not fit by {over:.2f} GB", flush=True)
        continue
      flops, memory = plan["flops_per_step"], plan["memory_per_chip"]["total"] / 1e9
      ratio = flops["counted"] / flops["analytic"]
      print(
        f"{name} counted {flops['counted'] / 1e12:8.2f} T, analytic"
        f" {flops['analytic'] / 1e12:8.2f} T, ratio {ratio:.4f}; {memory:.2f} GB,"
        f" compiled in {plan['compile_seconds']:.0f} s and"
        f" {plan['compile_memory'] / 1e9:.1f} GB",
        flush=True,
      )


if __name__ == "__main__":
  app.run(main)
