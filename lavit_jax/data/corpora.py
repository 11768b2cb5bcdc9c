"""Several prepared folders in one run, each with its share of the tokens.

    data/cc12m=3,data/books=1                              shares of folders
    data/cc12m=caption:2+text_image:1,data/books=text:1    shares of folders and kinds

A folder with a share alone takes the kinds of the mixture that it has records of. The
folders are one behind another: a record is known by its number in all of them, so plan,
rows and position are those of a single folder.
"""

import bisect
import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lavit_jax.data import records
from lavit_jax.data.documents import SOURCES


@dataclasses.dataclass(frozen=True)
class Corpus:
  """One folder of several.

  Attributes:
    folder: prepared and tokenized records.
    share: of the tokens of all folders, in any unit; shared out by the mixture.
    kinds: shares by kind instead, in the same unit.
  """

  folder: str
  share: float = 1.0
  kinds: Mapping[str, float] = dataclasses.field(default_factory=dict)


def parse(given: str) -> list[Corpus]:
  """Reads folders with shares; a folder alone, whatever its name, is taken as it is.

  Args:
    given: what a config says of `data.train`, as in the module docstring.
  """
  if os.path.isdir(given) or not set(given) & set("=,"):
    return [Corpus(given)]
  found = []
  for part in given.split(","):
    folder, _, said = part.strip().rpartition("=")
    try:
      if ":" in said:
        pairs = (kind.split(":") for kind in said.split("+"))
        found.append(Corpus(folder, kinds={kind: float(n) for kind, n in pairs}))
      else:
        found.append(Corpus(folder, float(said)))
      own = found[-1].kinds
      if not folder or found[-1].share <= 0 or set(own) - set(SOURCES):
        raise ValueError
      if any(share < 0 for share in own.values()):
        raise ValueError
    except ValueError:
      raise ValueError(
        f"expected FOLDER=SHARE or FOLDER=KIND:SHARE+KIND:SHARE with kinds of"
        f" {SOURCES}, got {part!r} in data.train; give each folder a share above 0"
      ) from None
  return found


def weights(
  corpora: Sequence[Corpus], mixture: Mapping[str, float], parts: Sequence
) -> dict[str, float]:
  """Shares of tokens by source: `kind`, or `kind@number` where folders are several.

  Args:
    corpora: the folders.
    mixture: shares by kind of a folder that names none.
    parts: the `records.Records` of each.
  """
  if len(corpora) == 1 and not corpora[0].kinds:
    return dict(mixture)
  found = {}
  for number, (corpus, prepared) in enumerate(zip(corpora, parts, strict=True)):
    has = prepared.manifest["entries"]
    own = corpus.kinds or {
      kind: share
      for kind, share in mixture.items()
      if share > 0 and has["caption" if kind == "text_image" else kind]
    }
    total = 1.0 if corpus.kinds else sum(own.values()) / corpus.share
    if not total:
      raise ValueError(
        f"expected records of {dict(mixture)} in {corpus.folder}, got {has}; name the"
        " kinds that it shall give, as in FOLDER=text:1"
      )
    tail = f"@{number}" if len(corpora) > 1 else ""
    found |= {f"{kind}{tail}": share / total for kind, share in own.items()}
  return found


class Chain:
  """Records, or sidecars, of several folders one behind another.

  Attributes:
    parts: `records.Records` or `records.Sidecar` of each folder.
    starts: number of the first record of each.
    manifest: that of the first, with a fingerprint of all and their counts added up.
    folder: that of the first.
  """

  def __init__(self, parts: Sequence[Any]):
    self.parts, first = tuple(parts), parts[0]
    self.starts = np.cumsum([0, *map(len, parts)])[:-1].tolist()
    self.folder = first.folder
    marks = [part.manifest["fingerprint"] for part in parts]
    for part in parts:
      for fact in records.SIDECAR_FACTS:
        if part.manifest.get(fact) != first.manifest.get(fact):
          raise ValueError(
            f"expected folders of one {fact}, got {first.manifest.get(fact)} in"
            f" {first.folder} and {part.manifest.get(fact)} in {part.folder}; tokenize"
            " them alike"
          )
    joined = hashlib.sha256("".join(marks).encode()).hexdigest()
    self.manifest = first.manifest | {"fingerprint": joined, "count": len(self)}

  @property
  def lengths(self) -> records.Lengths:
    """Lengths of all records."""
    return records.join_lengths([part.lengths for part in self.parts])

  def __len__(self) -> int:
    return self.starts[-1] + len(self.parts[-1])

  def __getitem__(self, index: int) -> dict:
    number = bisect.bisect_right(self.starts, index) - 1
    return self.parts[number][int(index) - self.starts[number]]

  def spread(self, indices: np.ndarray) -> list[tuple[Any, np.ndarray]]:
    """What to read for rising i64 positions: folders and positions in them."""
    cuts = np.searchsorted(indices, self.starts[1:])
    return [
      (part, own - start)
      for part, own, start in zip(self.parts, np.split(indices, cuts), self.starts)
      if len(own)
    ]


def chain(parts: Sequence[Any]) -> Any:
  """One folder as it is, several as a `Chain`."""
  return parts[0] if len(parts) == 1 else Chain(parts)
