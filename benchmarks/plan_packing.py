"""FLOPs per image of stage 2: packed dynamic tokens against 256 fixed ones.

  python -m benchmarks.plan_packing

The real planner packs both: image-text documents with captions of 22 tokens, kept
patches as the paper reports them (94 on average) or all 256. The real train step is
traced at the image slots each needs; its FLOPs are divided by the pictures it shows.
"""

import jax
import numpy as np

from configs import pretrain as pretrain_config
from lavit_jax.core import sharding, traced_flops
from lavit_jax.data import pack_plan, records
from lavit_jax.planning import programs

RECORDS, ROWS, CAPTION = 20_000, 1024, 22


def lengths(kept: np.ndarray) -> records.Lengths:
  """Lengths of records that have one picture and one caption each."""
  ones = np.ones(len(kept))
  return records.Lengths(
    count=kept.astype(np.uint16),
    offsets=np.arange(len(kept) + 1),
    task=np.zeros(len(kept), np.uint8),
    turns=ones.astype(np.uint16),
    text=(CAPTION * ones).astype(np.uint32),
  )


def flops_per_image(kept: np.ndarray) -> tuple[float, dict[str, float]]:
  """FLOPs of the traced step for each picture, and the plan's figures."""
  config = pretrain_config.get_config("7b")
  plan = pack_plan.plan_rows(
    lengths(kept), {"caption": 1.0}, 0, ROWS, config.data.row_length
  )
  rows, figures = 8, plan.figures()
  config.update(dict(batch_size=rows, accumulate=1))
  config.data.images_per_row = plan.images_per_row
  mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
  program = programs.language_step(config, mesh)
  found = traced_flops.flops(programs.trace(program).jaxpr)
  shown = rows * plan.images_per_row * figures["image_slots"]
  return found / shown, figures | {"images_per_row": plan.images_per_row}


def main() -> None:
  """Prints both and their ratio."""
  rng = np.random.default_rng(0)
  kept = np.clip(rng.normal(94, 30, RECORDS), 16, 256).astype(int)
  sides = {"dynamic": kept, "fixed 256": np.full(RECORDS, 256)}
  found = {name: flops_per_image(counts) for name, counts in sides.items()}
  for name, (flops, figures) in found.items():
    print(
      f"{name:10} {flops / 1e12:8.3f} TFLOP per image, {figures['images_per_row']}"
      f" slots a row ({figures['image_slots']:.1%} used), tokens"
      f" {figures['tokens']:.1%} filled"
    )
  print(f"ratio      {found['dynamic'][0] / found['fixed 256'][0]:8.3f}")


if __name__ == "__main__":
  main()
