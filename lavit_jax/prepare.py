"""Writes prepared shards: `python -m lavit_jax.prepare --source=KIND --target=DIR`.

    --source=webdataset --input='cc12m/*.tar'        KEY.jpg, KEY.txt, KEY.json
    --source=folder     --input=photos               a.jpg beside a.txt
    --source=jsonl      --input=chat.jsonl,text.jsonl
    --source=parquet    --input='laion/*.parquet'    bytes in a column
    --source=tfds       --input=~/tensorflow_datasets/coco_captions/2014/1.1.0:train

Every part of the input becomes one array_record shard. A killed run goes on where it
stopped when the same command is given again. Bad records are left out, counted by
reason in TARGET/report.json, and stop the run where they are too many.

The toy source needs no input: drawn scenes with captions and questions; every sixth
record is one of scikit-learn's handwritten digits and every sixteenth a text without
picture. Its target holds

    train/  validation/  test/  novel/    array_record shards and their manifest
    text_tokenizer/    a small text tokenizer trained on the training captions

"novel" scenes show only color-shape pairs that training never does. Whatever is chosen
by figures is chosen on "validation"; "test" is for the figures that are stated.
"""

import contextlib
import os
import sys

from absl import app, flags
from tqdm import tqdm

from lavit_jax.core import command_line
from lavit_jax.data import (
  bad,
  conversion,
  dry_run,
  inspection,
  on_beam,
  workers,
)
from lavit_jax.data.sources import fields as naming

SOURCE = flags.DEFINE_enum(
  "source", "toy", ["toy", *conversion.SOURCES], "Kind of the input."
)
INPUT = flags.DEFINE_list("input", [], "Files, folders or patterns, with commas.")
TARGET = flags.DEFINE_string("target", None, "Folder to write.")
IMAGE_FIELD = flags.DEFINE_string("image_field", "", "Picture's field, if unusual.")
TEXT_FIELD = flags.DEFINE_string("text_field", "", "Text's field, if unusual.")
PER_SHARD = flags.DEFINE_integer(
  "records_per_shard", 10_000, "Records per part, about; a tar is always one."
)
MAX_BAD = flags.DEFINE_float(
  "max_bad", 0.01, "Share of bad records that stops a run.", allow_override=True
)
PROCESSES = flags.DEFINE_integer("processes", 0, "Local workers; 0 is one per core.")
BEAM = flags.DEFINE_string(
  "beam", "", "Apache Beam's pipeline options instead of local workers."
)
DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Only show a sample and the counts.")
INSPECT = flags.DEFINE_boolean(
  "inspect", False, "Only write TARGET/inspect.html about what stands in TARGET."
)
TRAIN = flags.DEFINE_integer("train", 24_000, "Toy: training records.")
TEST = flags.DEFINE_integer(
  "test", 1_600, "Toy: records of each of the three held-out splits."
)

ENOUGH = 1000  # records seen before a run that still goes on is stopped


def run(
  jobs: list[conversion.Job], max_bad: float = 0.01, processes: int = 1, beam: str = ""
) -> dict:
  """Does all jobs that are not done yet and finishes the folder.

  Args:
    jobs: `conversion.plan` of the input.
    max_bad: largest share of bad records.
    processes: local workers, 0 for one per core.
    beam: pipeline options of Apache Beam, which then replaces the local workers.

  Returns:
    The manifest.
  """
  with contextlib.closing(conversion.Run(jobs)) as progress:
    if beam:
      on_beam.convert(progress.missing(), beam)
    else:
      _convert_here(progress, max_bad, processes or os.cpu_count() or 1)
    return progress.finish(max_bad)


def _convert_here(progress: conversion.Run, max_bad: float, processes: int) -> None:
  """Does what is missing on this machine; stops early where too much is bad."""
  missing, tally = progress.missing(), progress.tally()
  total, quiet = len(progress.jobs), not sys.stderr.isatty()
  with (
    contextlib.closing(workers.convert(missing, processes)) as converted,
    tqdm(total=total, initial=total - len(missing), disable=quiet) as bar,
  ):
    bar.set_description("prepare parts")
    for job in converted:
      tally = bad.merge([tally, conversion.tally_of(job)])
      bar.update(1)
      if tally.good + tally.bad >= ENOUGH:
        conversion.check(tally, max_bad, progress.target)


def _prepare() -> None:
  """Does what the flags say."""
  if INSPECT.value:
    print(inspection.write(TARGET.value))
    return
  if SOURCE.value == "toy":
    from lavit_jax.toy import prepared  # only where it is asked for

    prepared.prepare_toy(TARGET.value, TRAIN.value, TEST.value)
    return
  if not INPUT.value:
    raise ValueError("expected inputs, got none; name files or folders with --input")
  fields = naming.Fields(IMAGE_FIELD.value, TEXT_FIELD.value)
  jobs = conversion.plan(
    SOURCE.value, INPUT.value, TARGET.value, fields, PER_SHARD.value
  )
  if DRY_RUN.value:
    print(dry_run.describe(jobs))
    return
  manifest = run(jobs, MAX_BAD.value, PROCESSES.value, BEAM.value)
  print(
    f"{manifest['count']} records, {manifest['pictures']} with a picture, in"
    f" {len(manifest['shards'])} shards"
  )
  print(conversion.summary(TARGET.value))


def main(argv: list[str]) -> None:
  """Command line entry."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}")
  with command_line.in_sentences():
    _prepare()


if __name__ == "__main__":
  flags.mark_flag_as_required("target")
  app.run(main)
