"""How much of the devices' peak a step uses: model FLOPs utilization (MFU)."""

from typing import Any

import jax

from lavit_jax.core import chips, traced_flops

# Peak bfloat16 FLOP/s by `device_kind`; GPUs without sparsity, as their makers state.
TPUS = {
  "TPU v4": "v4",
  "TPU v5 lite": "v5e",
  "TPU v5e": "v5e",
  "TPU v5": "v5p",
  "TPU v5p": "v5p",
  "TPU v6 lite": "v6e",
  "TPU v6e": "v6e",
}
PEAKS = {kind: chips.CHIPS[name].flops for kind, name in TPUS.items()} | {
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA H100 80GB HBM3": 989e12,
  "NVIDIA H200": 989e12,
}


def step_flops(step: Any, *arguments: Any) -> float:
  """Model FLOPs of a jitted step on all devices, as `plan` counts them; 0 on a CPU.

  A CPU has no peak to compare with, so the count is left out there.
  """
  if jax.devices()[0].device_kind not in PEAKS:
    return 0.0
  return traced_flops.model_flops(step.trace(*arguments).jaxpr)


def mfu(flops: float, seconds: float) -> float:
  """Share of the peak of all devices that so many FLOPs in so many seconds are."""
  peak = PEAKS[jax.devices()[0].device_kind] * jax.device_count()
  return flops / seconds / peak
