"""Deals work of unequal size to machines, the same way on each of them."""

from collections.abc import Sequence


def deal(sizes: Sequence[float], machines: int) -> list[list[int]]:
  """Deals the largest first, each to the machine that has least.

  Args:
    sizes: of each piece of work.
    machines: how many share them.

  Returns:
    Numbers of the pieces of each machine, rising.
  """
  load, found = [0.0] * machines, [[] for _ in range(machines)]
  for number in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
    least = min(range(machines), key=lambda m: (load[m], m))
    load[least] += sizes[number]
    found[least].append(number)
  return [sorted(own) for own in found]
