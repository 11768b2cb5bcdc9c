"""A look at data before it is prepared: a sample of its records and the counts."""

import itertools

from lavit_jax.data import bad, conversion, images
from lavit_jax.data.conversion import Job

PARTS, RECORDS, SHOWN = 4, 50, 8  # parts looked at, records of each, records printed
WIDTH = 100  # characters shown of a text


def describe(jobs: list[Job]) -> str:
  """Reads some records of some parts; writes nothing.

  Args:
    jobs: jobs of the run.

  Returns:
    What the run would do and what its data look like, in lines.
  """
  step = max(1, len(jobs) // PARTS)
  tally, shown = bad.Tally(), []
  for job in jobs[::step][:PARTS]:
    for name, found in itertools.islice(conversion.read(job), RECORDS):
      if isinstance(found, bad.BadRecord):
        tally.add(name, found)
        continue
      tally.good += 1
      if len(shown) < SHOWN:
        shown.append(_line(found))
  size = sum({job.part.path: job.part.size for job in jobs}.values())
  done = sum(job.report.exists() for job in jobs)
  head = [
    f"{len(jobs)} parts of {len({job.part.path for job in jobs})} inputs, size {size},"
    f" {done} finished; each becomes a shard in {jobs[0].target}",
    f"sample of up to {RECORDS} records from {min(PARTS, len(jobs))} parts:",
  ]
  return "\n".join([*head, *shown, tally.summary()])


def _line(record: dict) -> str:
  """Describes one record."""
  picture = "no picture"
  if record["image"]:
    width, height = images.check(record["image"])
    picture = f"{width}x{height}, {len(record['image'])} bytes"
  entry = record["texts"][0]
  words = " / ".join(text for turn in entry["turns"] for text in turn if text)
  words = bad.printable(words[:WIDTH])
  return f"  {record['id']}  {picture}  {len(record['texts'])} {entry['task']}: {words}"
