"""Bad data: one typed error, counts by reason with examples and bytes, and a limit.

Every reader raises `BadRecord` for data it cannot use, and nothing else; `LeftOut` for
data that is sound but of another kind than is wanted. A `Tally` keeps the counts; past
a stated share of the records or of the bytes the run stops.
"""

from collections.abc import Iterable

EXAMPLES = 5  # names kept by reason
DETAIL = 200  # characters kept of an example
OTHER_KIND = "a file of another kind"


class BadRecord(ValueError):
  """Data that cannot be used: skipped or replaced, and counted.

  Attributes:
    reason: what it is, in few words and the same for all such data: the counts go by
      it.
    detail: what is wrong with this one.
  """

  def __init__(self, reason: str, detail: str = ""):
    found = f"{reason} ({detail})" if detail else reason
    super().__init__(f"expected usable data, got {found}; replace or drop it")
    self.reason, self.detail = reason, detail

  def __reduce__(self):  # exceptions of two arguments do not pickle by themselves
    return type(self), (self.reason, self.detail)


class LeftOut(BadRecord):
  """Sound data that is not wanted here: counted and named, but nothing is wrong."""


class Tally:
  """Counts good records and others by reason, with the first examples of each.

  Attributes:
    good: records that can be used.
    kept: bytes of the input that they and the format around them take.
    lost: bytes that broken inputs most likely held beyond their end.
    reasons: {reason: {"count", "bytes", "examples": ["name: detail", ...]}}, with
      "left_out": True where nothing is wrong.
  """

  def __init__(
    self,
    good: int = 0,
    reasons: dict[str, dict] | None = None,
    kept: int = 0,
    lost: int = 0,
  ):
    self.good, self.kept, self.lost = good, kept, lost
    self.reasons = reasons or {}

  def _sum(self, what: str, left_out: bool) -> int:
    return sum(
      entry.get(what, 0)
      for reason, entry in self.reasons.items()
      if entry.get("left_out", reason == OTHER_KIND) == left_out
    )

  @property
  def bad(self) -> int:
    """Bad records of all reasons."""
    return self._sum("count", False)

  @property
  def left_out(self) -> int:
    """Sound records and files of other kinds."""
    return self._sum("count", True)

  def add(self, name: str, error: BadRecord, size: int = 0) -> None:
    """Counts one record that is not kept, with the bytes of input that it takes."""
    blank = {"count": 0, "bytes": 0, "examples": []}
    if isinstance(error, LeftOut):
      blank["left_out"] = True
    entry = self.reasons.setdefault(error.reason, blank)
    entry["count"] += 1
    entry["bytes"] = entry.get("bytes", 0) + size
    if len(entry["examples"]) < EXAMPLES:
      example = f"{name}: {error.detail}" if error.detail else name
      entry["examples"].append(printable(example)[:DETAIL])

  def as_dict(self) -> dict:
    """Returns what JSON holds; kept + bad + left out are the bytes of the input."""
    size = {
      "kept": self.kept,
      "bad": self._sum("bytes", False),
      "left_out": self._sum("bytes", True),
      "lost": self.lost,
    }
    counts = {"good": self.good, "bad": self.bad, "left_out": self.left_out}
    return counts | {"bytes": size, "reasons": self.reasons}

  def summary(self) -> str:
    """Describes the counts, the commonest reason first."""
    ranked = sorted(self.reasons.items(), key=lambda item: (-item[1]["count"], item[0]))
    lines = [f"{self.good} good records, {self.bad} bad"]
    if self.left_out:
      lines[0] += f", {self.left_out} left out as of another kind"
    if self.lost:
      lines.append(f"  broken inputs lost some {self.lost} bytes beyond their end")
    for reason, entry in ranked:
      first = entry["examples"][0] if entry["examples"] else ""
      lines.append(f"  {entry['count']:>8}  {reason}, first {first}")
    return "\n".join(lines)

  def check(self, limit: float, remedy: str) -> None:
    """Refuses more bad records, or more bad bytes, than a share of all.

    Args:
      limit: largest share.
      remedy: what the user may do, for the message.
    """
    total = self.good + self.bad
    if self.bad > limit * total:
      raise ValueError(
        f"expected at most {limit:.2%} bad records, got {self.bad} of {total}; {remedy}"
        f"\n{self.summary()}"
      )
    size = self.as_dict()["bytes"]
    gone = size["bad"] + size["lost"]
    if gone > limit * (whole := gone + size["kept"]) and whole:
      raise ValueError(
        f"expected at most {limit:.2%} of the bytes bad, got {gone} of {whole} bad or"
        f" lost; {remedy}\n{self.summary()}"
      )


def merge(parts: Iterable[Tally]) -> Tally:
  """Adds tallies; the examples are those of the first."""
  total = Tally()
  for part in parts:
    total.good += part.good
    total.kept += part.kept
    total.lost += part.lost
    for reason, found in part.reasons.items():
      blank = {"count": 0, "bytes": 0, "examples": []}
      if "left_out" in found:
        blank["left_out"] = found["left_out"]
      entry = total.reasons.setdefault(reason, blank)
      entry["count"] += found["count"]
      entry["bytes"] += found.get("bytes", 0)
      left = EXAMPLES - len(entry["examples"])
      entry["examples"] += found["examples"][:left]
  return total


def printable(text: str) -> str:
  """Replaces what UTF-8 cannot hold and what would break a line of a report."""
  text = text.encode("utf-8", "backslashreplace").decode("utf-8")
  return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
