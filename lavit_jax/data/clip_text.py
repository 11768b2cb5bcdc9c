"""The text tokenizer of OpenAI's CLIP: lower case, byte pairs, a mark at both ends."""

import os
import pathlib
from collections.abc import Callable

from lavit_jax.data import text

MARKS = ("<|startoftext|>", "<|endoftext|>")  # the last two ids
SINGLE, PAIR = "tokenizer.json", ("vocab.json", "merges.txt")


def load(
  folder: str | os.PathLike | None, vocab_size: int, length: int
) -> Callable[[str], list[int]]:
  """Loads the tokenizer of a Hugging Face folder.

  Args:
    folder: holds tokenizer.json, or vocab.json and merges.txt; None has neither.
    vocab_size: ids of the text tower.
    length: room of the text tower. OpenAI's code refuses longer texts; here they lose
      what is beyond, and keep their end mark.

  Returns:
    A function from a text to 2 to `length` ids, the last one the end mark.
  """
  has = lambda name: folder is not None and (pathlib.Path(folder) / name).is_file()
  if not has(SINGLE) and not all(map(has, PAIR)):
    raise ValueError(
      f"expected {SINGLE}, or {' and '.join(PAIR)}, of CLIP, found neither in"
      f" {folder or 'the model directory'}; lay those of clip-vit-large-patch14 beside"
      " the weights and import them again"
    )
  loaded = text.import_transformers().CLIPTokenizer.from_pretrained(
    folder, local_files_only=True
  )
  backend = loaded.backend_tokenizer
  backend.encode_special_tokens = True  # a mark inside a text is mere characters
  begin, end = found = [backend.token_to_id(mark) for mark in MARKS]
  if found != [vocab_size - 2, vocab_size - 1]:
    raise ValueError(
      f"expected the ids {vocab_size - 2}, {vocab_size - 1} for {' and '.join(MARKS)}"
      f" in {folder}, got {found}; use the text tokenizer that belongs to the weights"
    )

  def encode(words: str) -> list[int]:
    ids = backend.encode(words, add_special_tokens=False).ids
    return [begin, *ids[: length - 2], end]

  return encode
