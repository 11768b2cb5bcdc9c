"""Writes prepared shards: `python -m lavit_jax.prepare --source=KIND --target=DIR`.

    --source=webdataset --input='cc12m/{00000..01241}.tar'   KEY.jpg, KEY.txt, KEY.json
    --source=folder     --input=photos               a.jpg beside a.txt
    --source=jsonl      --input=chat.json,text.jsonl  lines, or LLaVA's list
    --source=parquet    --input='laion/*.parquet'    bytes in a column
    --source=tfds       --input=~/tensorflow_datasets/coco_captions/2014/1.1.0:train
    --source=coco       --input=annotations/captions_train2017.json
    --source=vqa        --input=QUESTIONS.json,ANNOTATIONS.json

Every part of the input becomes one array_record shard. The same command goes on where a
killed run stopped, makes again what was lost, damaged, or made of an input that has
changed, and adds inputs that are new. What is not used is named in TARGET/report.json
with its reason; where too much of it is bad, by number or by bytes, the run stops.
`--part=3/16` makes the parts of one of 16 machines, which need not wait for each other.

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

from absl import app, flags

from lavit_jax.core import command_line
from lavit_jax.data import (
  bad,
  choosing,
  conversion,
  dry_run,
  inspection,
  on_beam,
  own_words,
  preparation,
  progress,
  shares,
  workers,
)
from lavit_jax.data.sources import fields as naming

SOURCE = flags.DEFINE_enum(
  "source", "toy", ["toy", *conversion.SOURCES], "Kind of the input."
)
INPUT = flags.DEFINE_multi_string(
  "input", [], "Files, folders or patterns with * ? [] {}, with commas."
)
TARGET = flags.DEFINE_string("target", None, "Folder to write.")
IMAGE_FIELD = flags.DEFINE_string("image_field", "", "Picture's field, if unusual.")
TEXT_FIELD = flags.DEFINE_string("text_field", "", "Text's field, if unusual.")
IMAGE_ROOT = flags.DEFINE_string(
  "image_root", "", "Folder of the pictures that paths in the data are below."
)
FILTER = flags.DEFINE_multi_string(
  "filter", [], "What is wanted: size>=256,aspect<=3,similarity>=0.28,language=en"
)
MAX_IMAGE_SIZE = flags.DEFINE_integer(
  "max_image_size", 0, "Longest edge of stored pictures; larger ones are encoded again."
)
HOLDOUT = flags.DEFINE_float(
  "holdout", 0.0, "Share of the pictures for TARGET/validation; others in TARGET/train."
)
PER_SHARD = flags.DEFINE_integer(
  "records_per_shard", 10_000, "Records per part, about; a tar is always one."
)
MAX_BAD = flags.DEFINE_float(
  "max_bad",
  0.01,
  "Share of bad records, or bytes, that stops a run.",
  allow_override=True,
)
PROCESSES = flags.DEFINE_integer("processes", 0, "Local workers; 0 is one per core.")
PART = flags.DEFINE_string(
  "part",
  "",
  "Share of this machine, 3/16 from 0/16; auto asks SLURM.",
  allow_override=True,
)
BEAM = flags.DEFINE_string(
  "beam", "", "Apache Beam's pipeline options instead of local workers."
)
DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Only show a sample and the counts.")
INSPECT = flags.DEFINE_boolean(
  "inspect", False, "Only write TARGET/inspect.html about what stands in TARGET."
)
TRAIN_TEXT_TOKENIZER = flags.DEFINE_integer(
  "train_text_tokenizer", 0, "Ids of a text tokenizer trained on the texts; 0: none."
)
TRAIN = flags.DEFINE_integer("train", 24_000, "Toy: training records.")
TEST = flags.DEFINE_integer(
  "test", 1_600, "Toy: records of each of the three held-out splits."
)

ENOUGH = 1000  # records seen before a run that still goes on is stopped
TOY = {"train", "test"}
CHOOSING = {"image_field", "text_field", "image_root", "filter", "max_image_size"}
RUNNING = {"max_bad", "processes", "part", "beam"}
EVERY = {"input", "holdout", "records_per_shard", "dry_run", "inspect", "source"}
NO_EFFECT = {  # flags of `prepare` that a source has no use for
  "webdataset": {"image_root", "records_per_shard"},
  "tfds": {"image_root"},
  "coco": {"image_field", "text_field"},
  "vqa": {"image_field", "text_field"},
}


def run(
  plan: preparation.Plan,
  max_bad: float = 0.01,
  processes: int = 1,
  beam: str = "",
  share: shares.Share = shares.ALL,
) -> dict | None:
  """Does all jobs that are not done yet and finishes the folder.

  Args:
    plan: `preparation.plan` of the input.
    max_bad: largest share of bad records, and of bad bytes.
    processes: local workers, 0 for one per core.
    beam: pipeline options of Apache Beam, which then replaces the local workers.
    share: which parts this machine makes.

  Returns:
    The manifest; None where other shares are not finished.
  """
  with contextlib.closing(preparation.Run(plan, share)) as begun:
    if beam:
      on_beam.convert(begun.own, beam)
    else:
      _convert_here(begun, max_bad, processes or os.cpu_count() or 1)
    return begun.finish(max_bad)


def _convert_here(begun: preparation.Run, max_bad: float, processes: int) -> None:
  """Does what is missing on this machine; stops early where too much is bad."""
  tally = bad.Tally()
  with (
    contextlib.closing(workers.convert(begun.own, processes)) as converted,
    contextlib.closing(progress.Progress("parts", len(begun.own))) as told,
  ):
    for job in converted:
      tally = bad.merge([tally, preparation.tally_of(job)])
      told.step(f"{tally.good} records, {tally.bad} bad")
      if tally.good + tally.bad >= ENOUGH:
        preparation.check(tally, max_bad, begun.target)


def check_flags(given: set[str], source: str) -> None:
  """Refuses flags that would have no effect.

  Args:
    given: names of the flags of this verb on the command line.
    source: kind of the input.
  """
  if "inspect" in given:
    useful, why = {"inspect"}, "--inspect only looks at TARGET"
  elif source == "toy":
    useful, why = TOY | {"source"}, "the toy world is drawn; --source=KIND reads data"
  elif "dry_run" in given:
    useful, why = CHOOSING | EVERY, "--dry_run writes nothing"
  elif "beam" in given:
    useful, why = CHOOSING | EVERY | {"beam", "max_bad"}, "--beam has its own workers"
  else:
    useful, why = CHOOSING | EVERY | RUNNING, f"--source={source} has no use for them"
  if source != "toy" and "inspect" not in given:
    useless = NO_EFFECT.get(source, set()) & given
    if useless:
      useful, why = useful - useless, f"--source={source} has no use for them"
  useless = sorted(given - useful)
  if useless:
    raise ValueError(
      f"expected flags with an effect, got {', '.join(f'--{n}' for n in useless)}"
      f" without one: {why}"
    )


def _given() -> set[str]:
  """The flags of this verb that stand on the command line with a value of their own."""
  ours = {*TOY, *CHOOSING, *RUNNING, *EVERY}
  found = {name for name in ours if flags.FLAGS[name].present}
  off = {name for name in ("dry_run", "inspect") if not flags.FLAGS[name].value}
  return found - off


def _prepare() -> None:
  """Does what the flags say."""
  check_flags(_given(), SOURCE.value)
  target = os.path.expanduser(TARGET.value)
  if INSPECT.value:
    print(inspection.write(target))
    return
  if SOURCE.value == "toy":
    from lavit_jax.toy import prepared  # only where it is asked for

    prepared.prepare_toy(target, TRAIN.value, TEST.value)
    return
  share = shares.parse(PART.value, os.environ)
  if not HOLDOUT.value:
    _prepare_side(target, _choice(), share)
    return
  for folder, held in (("train", False), ("validation", True)):
    _prepare_side(f"{target}/{folder}", _choice(HOLDOUT.value, held), share)


def _choice(holdout: float = 0.0, held: bool = False) -> choosing.Choice:
  rules = [rule.strip() for given in FILTER.value for rule in given.split(",")]
  rules = tuple(rule for rule in rules if rule)
  return choosing.Choice(rules, MAX_IMAGE_SIZE.value, holdout, held)


def _prepare_side(target: str, choice: choosing.Choice, share: shares.Share) -> None:
  """Prepares one folder and says what is in it."""
  given = [one for text in INPUT.value for one in command_line.split(text)]
  if not given:
    raise ValueError("expected inputs, got none; name files or folders with --input")
  root = os.path.expanduser(IMAGE_ROOT.value)
  fields = naming.Fields(IMAGE_FIELD.value, TEXT_FIELD.value, root)
  plan = preparation.plan(SOURCE.value, given, target, fields, PER_SHARD.value, choice)
  if DRY_RUN.value:
    print(dry_run.describe(plan))
    return
  manifest = run(plan, MAX_BAD.value, PROCESSES.value, BEAM.value, share)
  if manifest is None:
    print(f"part {share.index}/{share.of} of {target} stands; others are still missing")
    return
  print(
    f"{manifest['count']} records, {manifest['pictures']} with a picture, in"
    f" {len(manifest['shards'])} shards"
  )
  if manifest["pictures_without_text"]:
    print(
      f"{manifest['pictures_without_text']} pictures have no text: only stages 1 and 1b"
      " use them; --text_field names an unusual field"
    )
  print(preparation.summary(target))
  if TRAIN_TEXT_TOKENIZER.value:
    words = own_words.train(target, TRAIN_TEXT_TOKENIZER.value)
    print(f"{target}/{own_words.FOLDER}: {words.text_size} ids")


def main(argv: list[str]) -> None:
  """Command line entry."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}")
  with command_line.in_sentences():
    _prepare()


if __name__ == "__main__":
  flags.mark_flag_as_required("target")
  app.run(main)
