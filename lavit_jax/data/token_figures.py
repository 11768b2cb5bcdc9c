"""What tokenizing has found: kept tokens by picture, use of the codes, bad records."""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from lavit_jax.data import bad, shards

FAR = 1.5  # times more or less than in training is worth a warning
ENOUGH = 100  # pictures that say something
UNKNOWN = 0.001  # share of text ids


@dataclasses.dataclass
class Figures:
  """Counts over the records of one shard or of many.

  Attributes:
    kept: i64[P + 1] pictures by number of kept tokens.
    codes: i64[K] uses of every code.
    tally: good and bad records.
    texts: i64[2] text ids, and how many of them are the unknown id.
  """

  kept: np.ndarray
  codes: np.ndarray
  tally: bad.Tally
  texts: np.ndarray

  def add(self, codes: np.ndarray) -> None:
    """Counts a picture's codes [T]."""
    self.kept[len(codes)] += 1
    np.add.at(self.codes, codes, 1)

  def add_texts(self, entries: list[dict], unknown: int | None) -> None:
    """Counts the text ids of a record."""
    for entry in entries:
      for ids in itertools.chain(*entry["turns"]):
        self.texts += len(ids), sum(i == unknown for i in ids)

  def save(self, path: epath.PathLike) -> None:
    """Writes the figures of a shard."""
    tally = np.array(json.dumps(self.tally.as_dict()))
    counts = {"kept": self.kept, "codes": self.codes.astype(np.uint32)}
    counts["texts"] = self.texts
    shards.write_arrays(path, tally=tally, **counts)

  def report(self) -> dict:
    """Returns what JSON holds: sums, the histogram and the use of the codebook."""
    pictures, tokens = int(self.kept.sum()), int(self.codes.sum())
    patches, share = len(self.kept) - 1, self.codes / max(tokens, 1)
    used = share[share > 0]
    return {
      "pictures": pictures,
      "visual_tokens": tokens,
      "kept_mean": tokens / max(pictures, 1),
      "kept_share": tokens / max(pictures * patches, 1),
      "kept_histogram": self.kept.tolist(),
      "codes_used": len(used),
      "codes_used_share": len(used) / len(self.codes),
      "codes_perplexity": float(np.exp(-(used * np.log(used)).sum())),
      "text_ids": int(self.texts[0]),
      "unknown_share": float(self.texts[1] / max(self.texts[0], 1)),
      "records": self.tally.as_dict(),
    }


def new(patches: int, num_codes: int) -> Figures:
  """Figures of nothing yet."""
  kept = np.zeros(patches + 1, np.int64)
  codes, texts = np.zeros(num_codes, np.int64), np.zeros(2, np.int64)
  return Figures(kept, codes, bad.Tally(), texts)


def load(path: epath.PathLike) -> Figures:
  """Reads what `Figures.save` wrote."""
  arrays = shards.read_arrays(path)
  tally = json.loads(str(arrays["tally"]))
  counts = bad.Tally(tally["good"], tally["reasons"])
  texts = arrays.get("texts", np.zeros(2, np.int64))  # earlier versions have none
  return Figures(arrays["kept"], arrays["codes"].astype(np.int64), counts, texts)


def join(parts: Iterable[Figures]) -> Figures:
  """Adds the figures of shards."""
  parts = list(parts)
  kept = np.sum([part.kept for part in parts], axis=0)
  codes = np.sum([part.codes for part in parts], axis=0)
  texts = np.sum([part.texts for part in parts], axis=0)
  return Figures(kept, codes, bad.merge(part.tally for part in parts), texts)


def outside(report: dict, trained: Mapping[str, Any]) -> list[str]:
  """Says where a set lies outside of what a visual tokenizer was trained on.

  Args:
    report: of the set.
    trained: what the model says of its training: `kept_share`, `codes_perplexity`;
      what it does not say is not compared.
  """
  found = []
  for name, words in (
    ("kept_share", "of the patches are kept"),
    ("codes_perplexity", "codes are in even use"),
  ):
    usual, own = trained.get(name), report[name]
    if usual and report["pictures"] >= ENOUGH and not usual / FAR < own < usual * FAR:
      found.append(
        f"{own:.3g} {words}, in training {usual:.3g}: these pictures are unlike those"
        " that the visual tokenizer was trained on; look at --inspect, or train it on"
        " them"
      )
  if report["unknown_share"] > UNKNOWN:
    found.append(
      f"{report['unknown_share']:.1%} of the text ids are unknown: the text tokenizer"
      " cannot spell these texts; use one that can, such as prepare"
      " --train_text_tokenizer makes"
    )
  return found


def summary(report: dict, width: int = 40) -> str:
  """Draws the histogram of kept tokens in ten rows and says how the codes are used."""
  histogram = np.array(report["kept_histogram"])
  edges = np.linspace(0, len(histogram), 11).astype(int)
  bars = [int(histogram[a:b].sum()) for a, b in zip(edges, edges[1:])]
  lines = [
    f"{report['pictures']} pictures, {report['kept_mean']:.1f} tokens each"
    f" ({report['kept_share']:.1%} of the patches)"
  ]
  for a, b, count in zip(edges, edges[1:], bars):
    if a < b:
      bar = "#" * round(width * count / max(*bars, 1))
      lines.append(f"  {a:>4} to {b - 1:>4}  {count:>10}  {bar}".rstrip())
  lines.append(
    f"{report['codes_used']} codes used ({report['codes_used_share']:.1%}), perplexity"
    f" {report['codes_perplexity']:.1f}"
  )
  return "\n".join(lines)
