"""Bad data: one typed error, counts by reason with examples, and a limit.

Every reader raises `BadRecord` for data it cannot use, and nothing else. A `Tally`
keeps the counts; past a stated share of the records the run stops.
"""

from collections.abc import Iterable

EXAMPLES = 5  # names kept by reason
DETAIL = 200  # characters kept of an example
OTHER_KIND = "a file of another kind"  # counted, but nothing is wrong with it


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
    return BadRecord, (self.reason, self.detail)


class Tally:
  """Counts good records and bad ones by reason, with the first examples of each.

  Attributes:
    good: records that can be used.
    reasons: {reason: {"count", "examples": ["name: detail", ...]}}.
  """

  def __init__(self, good: int = 0, reasons: dict[str, dict] | None = None):
    self.good = good
    self.reasons = reasons or {}

  @property
  def bad(self) -> int:
    """Bad records of all reasons; files of other kinds are none."""
    return sum(e["count"] for r, e in self.reasons.items() if r != OTHER_KIND)

  def add(self, name: str, error: BadRecord) -> None:
    """Counts one bad record."""
    entry = self.reasons.setdefault(error.reason, {"count": 0, "examples": []})
    entry["count"] += 1
    if len(entry["examples"]) < EXAMPLES:
      example = f"{name}: {error.detail}" if error.detail else name
      entry["examples"].append(printable(example)[:DETAIL])

  def as_dict(self) -> dict:
    """Returns what JSON holds: {"good", "bad", "reasons"}."""
    return {"good": self.good, "bad": self.bad, "reasons": self.reasons}

  def summary(self) -> str:
    """Describes the counts, the commonest reason first."""
    ranked = sorted(self.reasons.items(), key=lambda item: (-item[1]["count"], item[0]))
    lines = [f"{self.good} good records, {self.bad} bad"]
    for reason, entry in ranked:
      first = entry["examples"][0] if entry["examples"] else ""
      lines.append(f"  {entry['count']:>8}  {reason}, first {first}")
    return "\n".join(lines)

  def check(self, limit: float, remedy: str) -> None:
    """Refuses more bad records than a share of all.

    Args:
      limit: largest share of bad records.
      remedy: what the user may do, for the message.
    """
    total = self.good + self.bad
    if self.bad > limit * total:
      raise ValueError(
        f"expected at most {limit:.2%} bad records, got {self.bad} of {total}; {remedy}"
        f"\n{self.summary()}"
      )


def merge(parts: Iterable[Tally]) -> Tally:
  """Adds tallies; the examples are those of the first."""
  total = Tally()
  for part in parts:
    total.good += part.good
    for reason, found in part.reasons.items():
      entry = total.reasons.setdefault(reason, {"count": 0, "examples": []})
      entry["count"] += found["count"]
      left = EXAMPLES - len(entry["examples"])
      entry["examples"] += found["examples"][:left]
  return total


def printable(text: str) -> str:
  """Replaces what UTF-8 cannot hold and what would break a line of a report."""
  text = text.encode("utf-8", "backslashreplace").decode("utf-8")
  return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
