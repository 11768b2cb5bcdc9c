"""Placing documents in rows by their lengths: dealing, completing, cutting.

Every function works on one window of W rows and reduces `space` (free tokens) and
`slots` (documents that a row may still take) of its rows in place.
"""

import collections

import numpy as np

LAST = 2.2  # documents of mean length left out of dealing, to complete a row by fit


def deal(length: np.ndarray, space: np.ndarray, slots: np.ndarray) -> np.ndarray:
  """Deals documents to rows in rounds, the longest to the emptiest row.

  Args:
    length: [n] tokens of each document.
    space: i64[W] free tokens of each row; reduced in place.
    slots: i64[W] documents that each row may take; reduced in place.

  Returns:
    i64[n] row of each document, -1 where none had room.
  """
  length = length.astype(np.int64)
  row_of = np.full(len(length), -1, np.int64)
  order, at = np.argsort(-length, kind="stable"), 0
  while at < len(order):
    rows = np.flatnonzero((slots > 0) & (space > 0))
    if not len(rows):
      break
    rows = rows[np.argsort(-space[rows], kind="stable")]
    documents = order[at : at + len(rows)]
    at += len(documents)
    rows = rows[: len(documents)]
    fits = length[documents] <= space[rows]
    documents, rows = documents[fits], rows[fits]
    row_of[documents] = rows
    space[rows] -= length[documents]
    slots[rows] -= 1
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


def complete(length: np.ndarray, space: np.ndarray, slots: np.ndarray) -> np.ndarray:
  """Fills rows: the oldest documents are dealt, the last two of a row chosen by fit.

  Args:
    length: [n] tokens of each document, oldest first.
    space: i64[W] free tokens of each row; reduced in place.
    slots: i64[W] documents that each row may take; reduced in place.

  Returns:
    i64[n] row of each document, -1 where it was not needed.
  """
  length = length.astype(np.int64)
  row_of = np.full(len(length), -1, np.int64)
  if not len(length):
    return row_of
  surely = max(0, int(space.sum() / length.mean() - LAST * len(space)))
  row_of[:surely] = deal(length[:surely], space, slots)
  rest = np.flatnonzero(row_of < 0)
  stock = np.bincount(length[rest])
  queues = collections.defaultdict(collections.deque)
  for document, tokens in zip(rest.tolist(), length[rest].tolist()):
    queues[tokens].append(document)
  for row in range(len(space)):
    free, room = int(space[row]), int(slots[row])
    while room and (chosen := best_fit(stock, free, room)):
      for tokens in chosen:
        row_of[queues[tokens].popleft()] = row
        stock[tokens] -= 1
        free -= tokens
      room -= len(chosen)
    space[row], slots[row] = free, room
  return row_of


def cut(length: np.ndarray, space: np.ndarray) -> np.ndarray:
  """Cuts texts, laid end to end, at the borders of the free spaces, laid end to end.

  Args:
    length: i64[n] tokens of each text, together at least the space.
    space: i64[W] free tokens of each row; all of them are filled.

  Returns:
    i64[pieces, 4] of text, first token, tokens and row, in order.
  """
  texts, rows = np.cumsum(length), np.cumsum(space)
  borders = np.unique(np.concatenate([[0], texts[texts < rows[-1]], rows]))
  start, size = borders[:-1], np.diff(borders)
  text = np.searchsorted(texts, start, side="right")
  row = np.searchsorted(rows, start, side="right")
  first = start - (texts - length)[text]
  space[:] = 0
  return np.stack([text, first, size, row], 1)
