"""A text tokenizer trained on the texts of a prepared folder."""

import os
import pathlib
import shutil
from collections.abc import Iterator

from lavit_jax.data import records, text

FOLDER = "text_tokenizer"
MOST = 100_000  # records that are read for it, spread over the folder


def texts_of(prepared: records.Records, most: int = MOST) -> Iterator[str]:
  """Every prompt and text of at most `most` records, evenly from first to last."""
  count = len(prepared)
  for number in range(min(count, most)):
    record = prepared[number * count // min(count, most)]
    for entry in record["texts"]:
      for turn in entry["turns"]:
        yield from filter(None, turn)


def train(folder: str | os.PathLike, vocab_size: int) -> text.TextTokenizer:
  """Trains `folder`/text_tokenizer; one that stands there is kept.

  Args:
    folder: prepared records.
    vocab_size: largest number of ids.

  Raises:
    ValueError: the size is too small, or no record has a text.
  """
  target = pathlib.Path(folder) / FOLDER
  if not target.exists():
    prepared = records.Records(folder)
    if next(texts_of(prepared), None) is None:
      raise ValueError(
        f"expected records with texts to train a text tokenizer on, got none in"
        f" {folder}; leave --train_text_tokenizer out"
      )
    writing = target.with_name(f"{FOLDER}.{os.getpid()}.writing")
    shutil.rmtree(writing, ignore_errors=True)
    try:
      text.train_text_tokenizer(texts_of(prepared), vocab_size, writing)
      writing.rename(target)
    finally:
      shutil.rmtree(writing, ignore_errors=True)
  return text.load_text_tokenizer(target)
