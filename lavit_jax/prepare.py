"""Writes prepared shards: `python -m lavit_jax.prepare --source=toy --target=DIR`.

The toy source needs no download: drawn scenes with captions and questions; every sixth
record is one of scikit-learn's handwritten digits and every sixteenth a text without
picture. A target then holds

    train/  test/  novel/    array_record shards and their manifest
    text_tokenizer/          a small text tokenizer trained on the training captions

"novel" scenes show only color-shape pairs that training never does.
"""

import itertools
import pathlib
import sys
from collections.abc import Iterator

from absl import app, flags
from tqdm import tqdm

from lavit_jax.data import digits, records, scenes, text

SOURCE = flags.DEFINE_enum("source", "toy", ["toy"], "Where the records come from.")
TARGET = flags.DEFINE_string("target", None, "Folder to write.")
TRAIN = flags.DEFINE_integer("train", 24_000, "Training records.")
TEST = flags.DEFINE_integer("test", 1_600, "Held-out records, and as many novel ones.")

DIGIT_EVERY, TEXT_EVERY = 6, 16
RECORDS_PER_SHARD = 4000
TEXT_TOKENIZER_RECORDS = 4000
TEXT_TOKENIZER_SIZE = 400


def toy_records(split: str, count: int) -> Iterator[dict]:
  """Yields the toy mixture of a split: scenes, digits, and texts without picture.

  Args:
    split: "train", "test" or "novel"; novel scenes come without digits.
    count: records.
  """
  drawn = scenes.Scenes(split, count)
  if split == "novel":
    yield from (drawn[i] for i in range(count))
    return
  written = digits.Digits(split, count)
  for i in range(count):
    if i % DIGIT_EVERY == DIGIT_EVERY - 1:
      yield written[i // DIGIT_EVERY]
    elif i % TEXT_EVERY == 0:
      yield _without_picture(drawn[i])
    else:
      yield drawn[i]


def _without_picture(record: dict) -> dict:
  """The caption of a record as a document of its own."""
  caption = record["texts"][0]["turns"]
  return {
    "id": record["id"],
    "image": b"",
    "texts": [{"task": "text", "turns": caption}],
  }


def prepare_toy(target: str, train: int, test: int) -> None:
  """Writes the three splits and the text tokenizer; finished splits are kept."""
  folder = pathlib.Path(target)
  for split, count in (("train", train), ("test", test), ("novel", test)):
    if (folder / split / records.MANIFEST).exists():
      continue
    progress = tqdm(
      toy_records(split, count), split, count, disable=not sys.stderr.isatty()
    )
    records.write_shards(progress, folder / split, "toy", RECORDS_PER_SHARD)
  if not (folder / "text_tokenizer").exists():
    some = itertools.islice(toy_records("train", train), TEXT_TOKENIZER_RECORDS)
    writing = folder / "text_tokenizer.writing"
    text.train_text_tokenizer(
      (words for record in some for words in texts_of(record)),
      TEXT_TOKENIZER_SIZE,
      writing,
    )
    writing.rename(folder / "text_tokenizer")


def texts_of(record: dict) -> list[str]:
  """Every prompt and text of a record."""
  turns = [turn for entry in record["texts"] for turn in entry["turns"]]
  return [words for turn in turns for words in turn if words]


def main(argv: list[str]) -> None:
  """Command line entry."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}")
  try:
    prepare_toy(TARGET.value, TRAIN.value, TEST.value)
  except ValueError as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  flags.mark_flag_as_required("target")
  app.run(main)
