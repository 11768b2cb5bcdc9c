"""From counts to a predicted step time.

    compute   = the compiler's cycles / clock  +  kernel FLOPs / (peak x efficiency)
    exchange  = bytes sent / bandwidth of the links that a group spans
    predicted = max(compute + synchronous exchange, all exchange)

What is compiled as asynchronous may hide behind compute, the rest may not. Nothing was
executed: use predictions as ratios between two programs.
"""

import dataclasses
from collections.abc import Sequence

from lavit_jax.planning import topology
from lavit_jax.planning.cost import Cost
from lavit_jax.planning.topology import Topology

# Share of the peak that the attention kernel reaches; an assumption, not a measurement.
KERNEL_EFFICIENCY = 0.5

ASSUMPTIONS = (
  "compute time is libtpu's own cycle estimate; its cost model leaves out collectives"
  " and kernels",
  f"attention kernels reach {KERNEL_EFFICIENCY:.0%} of the peak; blocks that the causal"
  " mask empties are skipped, segments are not; the last shard of a sequence, which"
  " skips least, sets the pace",
  "a group uses one link for each torus dimension it spans, two where the ring closes;"
  " between slices 200 Gbit/s for every four chips",
  "asynchronous collectives hide behind compute, synchronous ones do not",
  "the input pipeline keeps up; checkpoints and evaluation are not counted",
)


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds of one step on one chip, each part alone.

  Attributes:
    products: matrix products and the slowest device's kernels, at the peak.
    compute: the compiler's estimate, and the kernels.
    exposed: synchronous collectives.
    hidden: asynchronous collectives.
    memory: arguments read and outputs written once, the floor of HBM.
  """

  products: float
  compute: float
  exposed: float
  hidden: float
  memory: float

  @property
  def predicted(self) -> float:
    """Seconds of a step."""
    exchange = self.exposed + self.hidden
    return max(self.compute + self.exposed, exchange, self.memory)

  @property
  def floor(self) -> float:
    """Seconds that no schedule goes below."""
    return max(self.products, self.exposed + self.hidden, self.memory)

  @property
  def in_turn(self) -> float:
    """Seconds where chips multiply at their peak and no exchange hides behind it."""
    return self.products + self.exposed + self.hidden

  @property
  def bound(self) -> str:
    """What the step waits for."""
    if self.predicted == self.memory:
      return "HBM"
    if self.exposed + self.hidden > self.compute + self.exposed:
      return "inter-chip links"
    return "compute" if self.compute > self.exposed else "synchronous collectives"


def estimate(
  cost: Cost, pod: Topology, places: Sequence[tuple[int, ...]], moved: float
) -> Roofline:
  """Predicts one step.

  Args:
    cost: counts of one device.
    pod: the pod.
    places: (slice, *coordinates) of each device, in mesh order.
    moved: bytes of arguments read and outputs written.
  """
  chip, seconds = pod.chip, {True: 0.0, False: 0.0}
  for one in cost.collectives:
    group = [places[i] for i in one.group]
    seconds[one.is_async] += one.total / topology.bandwidth(pod, group)
  kernels = cost.slowest_kernel_flops / chip.flops
  products = cost.flops / chip.flops
  compute = max(cost.cycles / chip.clock, products) + kernels / KERNEL_EFFICIENCY
  return Roofline(
    products=products + kernels,
    compute=compute,
    exposed=seconds[False],
    hidden=seconds[True],
    memory=moved / chip.bandwidth,
  )
