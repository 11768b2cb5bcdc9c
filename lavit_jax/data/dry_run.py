"""A look at data before it is prepared: a sample of its records and the counts."""

import itertools

from lavit_jax.data import bad, conversion, images
from lavit_jax.data.preparation import Plan

PARTS, RECORDS, SHOWN = 4, 50, 8  # parts looked at, records of each, records printed
WIDTH = 100  # characters shown of a text


def describe(plan: Plan) -> str:
  """Reads some records of some parts; writes nothing.

  Args:
    plan: what a run would do.

  Returns:
    What the run would do and what its data look like, in lines.
  """
  jobs = plan.jobs
  step = max(1, len(jobs) // PARTS)
  tally, shown = bad.Tally(), []
  for item in plan.unused:
    tally.add(item.key, item.found)
  for job in jobs[::step][:PARTS]:
    for item in itertools.islice(conversion.read(job), RECORDS):
      if isinstance(item.found, bad.BadRecord):
        tally.add(item.name, item.found)
        continue
      tally.good += 1
      if len(shown) < SHOWN:
        shown.append(_line(item.found))
  size = sum(job.part.size for job in jobs)
  done = sum(job.report.exists() for job in jobs)
  head = [
    f"{len(jobs)} parts of {len({job.part.path for job in jobs})} inputs, {size} bytes,"
    f" {done} finished; each becomes a shard in {plan.target}",
    f"sample of up to {RECORDS} records from {min(PARTS, len(jobs))} parts:",
  ]
  return "\n".join([*head, *shown, tally.summary()])


def _line(record: dict) -> str:
  """Describes one record."""
  picture = "no picture"
  if record["image"]:
    width, height = images.check(record["image"])
    picture = f"{width}x{height}, {len(record['image'])} bytes"
  if not record["texts"]:
    return f"  {record['id']}  {picture}  no text"
  entry = record["texts"][0]
  words = " / ".join(text for turn in entry["turns"] for text in turn if text)
  words = bad.printable(words[:WIDTH])
  return f"  {record['id']}  {picture}  {len(record['texts'])} {entry['task']}: {words}"
