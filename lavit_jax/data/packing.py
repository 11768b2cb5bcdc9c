"""Placing documents in rows by their lengths: dealing and completing.

Every function works on one window of W rows and reduces `space` (free tokens) and
`slots` (free image slots) of its rows in place.
"""

import collections
import heapq

import numpy as np


def deal(
  length: np.ndarray, pixels: np.ndarray, space: np.ndarray, slots: np.ndarray
) -> np.ndarray:
  """Deals documents to rows, the longest to the emptiest row.

  Args:
    length: [n] tokens of each document.
    pixels: bool[n], whether it takes an image slot.
    space: i64[W] free tokens of each row; reduced in place.
    slots: i64[W] free image slots of each row; reduced in place.

  Returns:
    i64[n] row of each document, -1 where none had room.
  """
  row_of = np.full(len(length), -1, np.int64)
  # Pictures first: they alone are bound to slots; the others level the rows out.
  for wants in (True, False):
    ids = np.flatnonzero(pixels == wants)
    ids = ids[np.argsort(-length[ids].astype(np.int64), kind="stable")]
    heap = [(-int(s), r) for r, s in enumerate(space) if not wants or slots[r] > 0]
    heapq.heapify(heap)
    for document, tokens in zip(ids.tolist(), length[ids].tolist()):
      if not heap:
        break
      free, row = -heap[0][0] - tokens, heap[0][1]
      if free < 0:
        continue
      row_of[document], space[row] = row, free
      slots[row] -= wants
      if wants and slots[row] == 0:
        heapq.heappop(heap)
      else:
        heapq.heapreplace(heap, (-free, row))
  return row_of


def best_fit(stock: np.ndarray, space: int, number: int) -> tuple[int, ...]:
  """Finds the one or two lengths in stock that fill a space best.

  Args:
    stock: i64[maximum + 1], documents in stock by length.
    space: tokens to fill.
    number: documents allowed, at least 1.

  Returns:
    Lengths, their sum <= space; empty where nothing fits.
  """
  space_1 = min(space, len(stock) - 1)
  sizes = np.flatnonzero(stock[: space_1 + 1])
  if not len(sizes):
    return ()
  best = int(sizes[-1])
  if number == 1 or best == space:
    return (best,)
  # partner[i]: the largest length in stock that fits beside sizes[i], as an index.
  partner = np.searchsorted(sizes, space - sizes, side="right") - 1
  alone = (partner == np.arange(len(sizes))) & (stock[sizes] < 2)
  partner = partner - alone
  total = np.where(partner >= 0, sizes + sizes[np.maximum(partner, 0)], 0)
  first = int(np.argmax(total))
  if total[first] <= best:
    return (best,)
  return int(sizes[first]), int(sizes[partner[first]])


def complete(
  length: np.ndarray, pixels: bool, space: np.ndarray, slots: np.ndarray
) -> np.ndarray:
  """Fills rows one after the other, the oldest documents first, the last two by fit.

  Args:
    length: [n] tokens of each document, oldest first.
    pixels: whether each takes an image slot.
    space: i64[W] free tokens of each row; reduced in place.
    slots: i64[W] free image slots of each row; reduced in place.

  Returns:
    i64[n] row of each document, -1 where it was not needed.
  """
  length = length.astype(np.int64)
  row_of = np.full(len(length), -1, np.int64)
  longest, oldest = int(length.max(initial=0)), 0
  stock = np.bincount(length, minlength=longest + 1)
  queues = collections.defaultdict(collections.deque)
  for document, tokens in enumerate(length.tolist()):
    queues[tokens].append(document)
  for row in range(len(space)):
    while not pixels or slots[row] > 0:
      while oldest < len(length) and row_of[oldest] >= 0:
        oldest += 1
      number = int(slots[row]) if pixels else 3
      if oldest < len(length) and space[row] > 2 * longest and number > 2:
        chosen = (int(length[oldest]),)
      else:
        chosen = best_fit(stock, int(space[row]), number)
      if not chosen:
        break
      for tokens in chosen:
        row_of[queues[tokens].popleft()] = row
        stock[tokens] -= 1
        space[row] -= tokens
        slots[row] -= pixels
  return row_of
