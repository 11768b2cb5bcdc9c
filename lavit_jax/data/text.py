"""Text tokenizers: a small one trained on given texts, and the loading of any.

Both are Hugging Face folders with LLaMA's conventions: byte-pair encoding, a leading
space piece, ids 0 <unk>, 1 <s>, 2 </s>. Marks of images and codes are never strings.
"""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import string
from collections.abc import Iterable

from lavit_jax.core import vocabulary

SPECIALS = ("<unk>", "<s>", "</s>")  # ids 0, 1, 2
ALPHABET = string.ascii_letters + string.digits + string.punctuation
FILES = ("tokenizer.json", "tokenizer.model")
QUESTION = "Question: {} Answer:"  # the reference's prompt (paper section 4.1)


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
  """Turns text into ids and back; special ids are neither made nor shown.

  Attributes:
    backend: the `tokenizers.Tokenizer` that does the work.
    text_size: number of text ids, T of the joint vocabulary.
  """

  backend: object
  text_size: int

  def encode(self, text: str) -> list[int]:
    """Encodes a text without begin and end; "</s>" in a text is mere characters.

    Args:
      text: any string.

    Returns:
      Ids below `text_size`.
    """
    ids = self.backend.encode(text, add_special_tokens=False).ids
    return [i if i < self.text_size else vocabulary.UNKNOWN for i in ids]

  def decode(self, ids: Iterable[int]) -> str:
    """Decodes ids, skipping special ids and ids from `text_size` on.

    Args:
      ids: integers; images and codes may be among them.

    Returns:
      The text.
    """
    kept = [int(i) for i in ids if vocabulary.END < i < self.text_size]
    return self.backend.decode(kept, skip_special_tokens=True)

  @functools.cached_property
  def checksum(self) -> str:
    """SHA-256 of the definition: two tokenizers with one checksum encode alike."""
    definition = json.loads(self.backend.to_str())
    parts = ("model", "normalizer", "pre_tokenizer", "added_tokens")
    text = json.dumps({part: definition[part] for part in parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def import_transformers():
  """Imports late (it takes seconds) and without the advice to install PyTorch."""
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  import transformers

  return transformers


def train_text_tokenizer(
  texts: Iterable[str], vocab_size: int, path: str | os.PathLike
) -> TextTokenizer:
  """Trains a small byte-pair encoding and saves it as a Hugging Face folder.

  Args:
    texts: the training texts.
    vocab_size: largest number of ids; 98 are taken by specials and characters.
    path: folder to write; the saved class is LLaMA's.

  Returns:
    The tokenizer, loaded from the folder.
  """
  import tokenizers
  from tokenizers import models, pre_tokenizers, trainers

  needed = len(SPECIALS) + len(ALPHABET) + 1
  if vocab_size < needed:
    raise ValueError(
      f"vocab_size {vocab_size} is below {needed}, the number of special ids and "
      "characters; raise it to 300 or more"
    )
  learner = tokenizers.Tokenizer(models.BPE(unk_token=SPECIALS[0]))
  learner.pre_tokenizer = pre_tokenizers.Metaspace()  # no merge crosses a space
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=list(SPECIALS),
    initial_alphabet=[*ALPHABET, "\N{LOWER ONE EIGHTH BLOCK}"],
    limit_alphabet=len(ALPHABET) + 1,
    show_progress=False,
  )
  learner.train_from_iterator(texts, trainer)
  model = json.loads(learner.to_str())["model"]
  merges = [tuple(pair) for pair in model["merges"]]
  llama = import_transformers().LlamaTokenizer(vocab=model["vocab"], merges=merges)
  llama.save_pretrained(path)
  return load_text_tokenizer(path)


def load_text_tokenizer(path: str | os.PathLike) -> TextTokenizer:
  """Loads the text tokenizer of a local folder: a trained one, or LLaMA's.

  Args:
    path: a folder that holds tokenizer.json or tokenizer.model.

  Returns:
    The tokenizer.
  """
  present = [name for name in FILES if (pathlib.Path(path) / name).is_file()]
  if not present:
    raise ValueError(
      f"expected a text tokenizer folder with {' or '.join(FILES)}, got {path}; "
      "give the folder of a LLaMA model or of a tokenizer trained by prepare"
    )
  if FILES[0] not in present and importlib.util.find_spec("sentencepiece") is None:
    raise ValueError(
      f"expected {FILES[0]} in {path}, got only {FILES[1]}, which needs the package "
      "sentencepiece; install it with pip install sentencepiece"
    )
  transformers = import_transformers()
  loaded = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
  backend = loaded.backend_tokenizer
  backend.encode_special_tokens = True
  backend.model.unk_token = SPECIALS[0]  # without it unknown characters vanish
  found = [backend.token_to_id(token) for token in SPECIALS]
  if found != [vocabulary.UNKNOWN, vocabulary.BEGIN, vocabulary.END]:
    raise ValueError(
      f"expected the ids 0, 1, 2 for {', '.join(SPECIALS)} as in LLaMA, got "
      f"{found} in {path}; use a LLaMA text tokenizer"
    )
  return TextTokenizer(backend, backend.get_vocab_size(with_added_tokens=False))
