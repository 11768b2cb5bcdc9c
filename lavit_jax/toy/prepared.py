"""The toy mixture as prepared shards: scenes, digits, and texts without picture."""

import itertools
import pathlib
import sys
from collections.abc import Iterator

from tqdm import tqdm

from lavit_jax.data import (
  records,
  text,
)
from lavit_jax.toy import digits, scenes, world

DIGIT_EVERY, TEXT_EVERY = 6, 16
RECORDS_PER_SHARD = 4000
TEXT_TOKENIZER_RECORDS = 4000
TEXT_TOKENIZER_SIZE = 560


def texts_of(record: dict) -> list[str]:
  """Every prompt and text of a record."""
  turns = [turn for entry in record["texts"] for turn in entry["turns"]]
  return [words for turn in turns for words in turn if words]


def toy_records(split: str, count: int) -> Iterator[dict]:
  """Yields the toy mixture of a split: scenes, digits, and texts without picture.

  Args:
    split: one of `world.SPLITS`; novel scenes come without digits.
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
  """Writes the four splits and the text tokenizer; finished splits are kept."""
  folder = pathlib.Path(target)
  for split in world.SPLITS:
    count = train if split == "train" else test
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
