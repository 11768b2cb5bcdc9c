"""The mixture: shares of tokens by source, and what they mean for rows of M slots."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from lavit_jax.data import records
from lavit_jax.data.documents import (
  CHUNK,
  SOURCES,
  Stream,
  documents_at,
  entries_of,
  kind_of,
)

PIXELS = ("caption", "answer")  # sources whose documents take an image slot
LONG_PAIRS = ("refuse", "skip")


def normalized(weights: dict[str, float]) -> dict[str, float]:
  """Checks a mixture and scales it to sum 1."""
  unknown = sorted(n for n in weights if kind_of(n)[0] not in SOURCES)
  known = set(weights) - set(unknown)
  known = sorted(known, key=lambda n: (kind_of(n)[1], SOURCES.index(kind_of(n)[0])))
  positive = {n: float(weights[n]) for n in known if weights[n] > 0}
  if unknown or not positive or min(weights.values()) < 0:
    raise ValueError(
      f"expected shares of tokens for {SOURCES}, got {dict(weights)}; name only these "
      "sources and give at least one a positive share"
    )
  return {name: share / sum(positive.values()) for name, share in positive.items()}


def has_pixels(source: str) -> bool:
  """Whether the documents of a source take an image slot."""
  return kind_of(source)[0] in PIXELS


def is_text(source: str) -> bool:
  """Whether a source gives texts without picture."""
  return kind_of(source)[0] == "text"


def slots_wanted(
  weights: dict[str, float], means: dict[str, float], row_length: int
) -> float:
  """Pictures that a mixture shows per row of `row_length` tokens.

  Args:
    weights: share of tokens by source, of sum 1.
    means: mean length by source.
    row_length: L.
  """
  return sum(w * row_length / means[n] for n, w in weights.items() if has_pixels(n))


def image_slots(
  weights: dict[str, float], means: dict[str, float], row_length: int
) -> int:
  """Chooses M from the mixture: all pictures that it asks for but one in a hundred."""
  return max(1, math.ceil(0.99 * slots_wanted(weights, means, row_length)))


def fit_slots(
  weights: dict[str, float], means: dict[str, float], row_length: int, slots: int
) -> dict[str, float]:
  """Lowers the share of pictures to what the slots of a row can hold."""
  wanted = slots_wanted(weights, means, row_length)
  share = sum(w for name, w in weights.items() if has_pixels(name))
  if wanted <= slots or all(map(has_pixels, weights)):
    return weights
  lower = slots / wanted
  raised = (1.0 - share * lower) / (1.0 - share)
  return {n: w * (lower if has_pixels(n) else raised) for n, w in weights.items()}


def _is_long(lengths, source: str, entries: np.ndarray, limit: int) -> np.ndarray:
  """Which documents are longer than a limit: bool[n]."""
  parts = [np.zeros(0, bool)]
  for start in range(0, len(entries), CHUNK):
    some = documents_at(lengths, source, entries[start : start + CHUNK])
    parts.append(some["length"] > limit)
  return np.concatenate(parts)


def _check_long(lengths, source, long, row_length, long_pairs, name) -> None:
  """Refuses documents with a picture that are longer than a row, by name."""
  if len(long) and long_pairs == "refuse":
    first = documents_at(lengths, source, long[:1])[0]
    raise ValueError(
      f"expected {source} documents of at most {row_length} tokens, got "
      f"{first['length']} in record {name(int(first['record']))} and {len(long) - 1} "
      "others; set a longer row or skip them"
    )


def streams(
  lengths: records.Lengths,
  weights: dict[str, float],
  row_length: int,
  seed: int,
  uncond_fraction: float,
  long_pairs: str,
  name: Callable[[int], str],
  starts: Sequence[int] = (0,),
) -> tuple[dict[str, Stream], int]:
  """Makes the stream of every source; long texts become one of their own.

  Args:
    lengths: lengths of all records.
    weights: share of tokens by source.
    row_length: L.
    seed: seed of order and prompt drop.
    uncond_fraction: share of text_image documents that lose their text.
    long_pairs: one of LONG_PAIRS, for documents with a picture longer than a row.
    name: gives the id of a record, for messages.
    starts: number of the first record of each folder.

  Returns:
    Streams by source, those of long texts under `long_of` their name; and the number of
    documents left out.
  """
  if long_pairs not in LONG_PAIRS:
    raise ValueError(f"expected long_pairs in {LONG_PAIRS}, got {long_pairs!r}; set it")
  found, skipped = {}, 0
  for source in weights:
    entries = entries_of(lengths, source, starts)
    # A text is cut only where it is long beside a row.
    limit = max(row_length // 4, 16) if is_text(source) else row_length
    long = _is_long(lengths, source, entries, limit)
    groups = {source: entries[~long]}
    if is_text(source):
      groups[long_of(source)] = entries[long]
    else:
      _check_long(lengths, source, entries[long], row_length, long_pairs, name)
      skipped += int(long.sum())
    if not sum(map(len, groups.values())):
      raise ValueError(
        f"expected documents for the source {source!r}, got none of at most "
        f"{row_length} tokens; drop it from the mixture or prepare such records"
      )
    for group, chosen in groups.items():
      if len(chosen):
        found[group] = Stream(lengths, source, chosen, seed, uncond_fraction)
  return found, skipped


def long_of(source: str) -> str:
  """Name of the stream of the long texts of a source `text` or `text@folder`."""
  return "text_long" + source.removeprefix("text")


def is_long(stream: str) -> bool:
  """Whether a stream gives long texts."""
  return stream.startswith("text_long")


def split_text(weights: dict[str, float], found: dict[str, Stream]) -> dict[str, float]:
  """Divides the share of each source of text between short and long by their tokens."""
  kept = {name: w for name, w in weights.items() if not is_text(name)}
  for source in filter(is_text, weights):
    groups = [name for name in (source, long_of(source)) if name in found]
    size = {name: found[name].mean * len(found[name]) for name in groups}
    kept |= {n: weights[source] * size[n] / sum(size.values()) for n in groups}
  return kept
