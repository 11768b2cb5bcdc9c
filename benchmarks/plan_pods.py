"""The training stages on the pods that people rent: the tables of launch/README.md.

  python -m benchmarks.plan_pods --work=/tmp/plans [--stages=1,2,1b]

Stage 1 at 2048 pictures (paper), stage 2 at 2048 rows of 2048 tokens and stage 1b at
128 pictures (sibling paper), compiled for absent chips. What --work already holds is
not compiled again.
"""

from typing import Any

from absl import app, flags

from benchmarks import plan_runs
from lavit_jax.planning import topology

STAGES = flags.DEFINE_list("stages", ["2", "1", "1b"], "Which stages.")

CONFIGS = {"1": "visual_tokenizer:7b", "2": "pretrain:7b", "1b": "pixel_decoder:sd15"}
# Topology and slices.
PODS = (
  ("v5e-64", 1),
  ("v5e-256", 1),
  ("v5p-128", 1),
  ("v4-128", 1),
  ("v6e-64", 1),
  ("v6e-256", 1),
  ("v5p-64", 1),
  ("v5p-512", 1),
  ("v5e-256", 2),
)
ROWS = 4  # of stage 2 on a chip at a time
PICTURES = 128  # of stage 1b in a step
FSDP = 64  # the encoder's width, 1408, divides no further than 128


def fields_of(stage: str, chips: int) -> dict[str, Any]:
  """What the pod decides of a config."""
  fsdp = min(FSDP, chips)
  mesh = {"mesh__data": chips // fsdp, "mesh__fsdp": fsdp}
  if stage == "1b":
    if chips > PICTURES:  # several chips share a picture
      mesh["mesh__data"] = PICTURES // fsdp
      mesh["mesh__tensor"] = chips // PICTURES
    return mesh | {"batch_size": PICTURES, "accumulate": 1}
  return mesh | ({"accumulate": max(2048 // (ROWS * chips), 1)} if stage == "2" else {})


def line(stage: str, name: str, plan: dict[str, Any]) -> str:
  """One row of the table."""
  mesh = ", ".join(f"{axis} {n}" for axis, n in plan["mesh"].items() if n > 1)
  start = f"| {name} | {stage} | {mesh} | {plan['accumulate']} |"
  if not plan["fits"]:
    over = plan["misfit"]["over"] / 1e9
    return f"{start} does not fit by {over:.2f} GB | | | |"
  memory, predicted = plan["memory_per_chip"], plan["predicted"]
  speed = f"{predicted['images_per_second']:,.0f} images/s"
  if stage == "2":
    speed = f"{predicted['tokens_per_second']:,.0f} tokens/s"
  return (
    f"{start} {memory['total'] / 1e9:.2f} of {memory['capacity'] / 1e9:.0f} GB |"
    f" {predicted['seconds']:.2f} s | {speed} | {predicted['mfu']:.1%} |"
  )


def main(argv: list[str]) -> None:
  """Prints the table."""
  del argv
  print("| pod | stage | mesh | micro-batches | memory | step | speed | MFU |")
  print("|---|---|---|---|---|---|---|---|")
  for stage in STAGES.value:
    for name, slices in PODS:
      pod = topology.parse(name, slices)
      fields = fields_of(stage, pod.chips)
      plan = plan_runs.planned(CONFIGS[stage], name, slices, **fields)
      label = f"{slices} x {name}" if slices > 1 else name
      print(line(stage, label, plan), flush=True)


if __name__ == "__main__":
  app.run(main)
