"""Text tokenizers: a small one trained on given texts, and the loading of any.

The small one is a Hugging Face folder with LLaMA's conventions: byte-pair encoding, a
leading space piece, ids 0 <unk>, 1 <s>, 2 </s>. Any other, LLaMA's or a byte-level one,
says itself which ids begin and end a text. Marks of images and codes are never strings.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable

from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.data import text_files
from lavit_jax.data.text_marks import SPECIALS

QUESTION = "Question: {} Answer:"  # the reference's prompt (paper section 4.1)
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))  # ids 3 to 258
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


@dataclasses.dataclass(frozen=True)
class TextTokenizer:
  """Turns text into ids and back; special ids are neither made nor shown.

  Attributes:
    definition: the file that says how, opened.
    text_size: number of text ids, T of the joint vocabulary.
  """

  definition: text_files.SentencePieceModel | text_files.TokenizerJson
  text_size: int

  def encode(self, text: str) -> list[int]:
    """Encodes a text without begin and end; "</s>" in a text is mere characters.

    Args:
      text: any string.

    Returns:
      Ids below `text_size`.
    """
    ids, unknown = self.definition.encode(text), self.definition.marks.unknown
    return [i if i < self.text_size else unknown for i in ids]

  def decode(self, ids: Iterable[int]) -> str:
    """Decodes ids, skipping special ids and ids from `text_size` on.

    Args:
      ids: integers; images and codes may be among them.

    Returns:
      The text.
    """
    hidden = self.definition.hidden
    kept = [int(i) for i in ids if 0 <= i < self.text_size and i not in hidden]
    return self.definition.decode(kept)

  def vocabulary(self, num_codes: int, rows: int | None = None) -> Vocabulary:
    """The joint vocabulary of this tokenizer's ids and of visual codes.

    Args:
      num_codes: K.
      rows: rows of the language model's embedding that are text's; those beyond the
        tokenizer's ids are holes. As many as it has ids if None.

    Raises:
      ValueError: fewer rows than ids.
    """
    size, marks = self.text_size, self.definition.marks
    rows = size if rows is None else rows
    if rows < size:
      raise ValueError(
        f"expected at least the {size} ids of the text tokenizer in the language"
        f" model, got {rows}; use the text tokenizer of this language model"
      )
    holes = self.definition.holes + ((size, rows),) * (rows > size)
    return Vocabulary(rows, num_codes, marks.begin, marks.end, marks.pad, holes)

  @functools.cached_property
  def checksum(self) -> str:
    """SHA-256 of the definition: two tokenizers with one checksum encode alike."""
    return hashlib.sha256(self.definition.content).hexdigest()


def import_transformers():
  """Imports late (it takes seconds) and without the advice to install PyTorch."""
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  import transformers

  return transformers


def train_text_tokenizer(
  texts: Iterable[str], vocab_size: int, path: str | os.PathLike
) -> TextTokenizer:
  """Trains a small byte-pair encoding and saves it as a Hugging Face folder.

  As in LLaMA, characters without an id of their own become the ids of their UTF-8
  bytes: every text survives, except that U+2581, the space piece, becomes a space.

  Args:
    texts: the training texts.
    vocab_size: largest number of ids; 260 are taken by specials, bytes and the space.
    path: folder to write; the saved class is LLaMA's.

  Returns:
    The tokenizer, loaded from the folder.
  """
  import tokenizers
  from tokenizers import models, pre_tokenizers, trainers

  fixed = [*SPECIALS, *BYTES]
  if vocab_size <= len(fixed):
    raise ValueError(
      f"vocab_size {vocab_size} is below {len(fixed) + 1}, the number of special ids,"
      " bytes and the space; raise it to 500 or more"
    )
  learner = tokenizers.Tokenizer(models.BPE())
  # No merge crosses a space; none makes a piece that is named like a mark or a byte.
  learner.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Metaspace(), pre_tokenizers.Split("<", "isolated")]
  )
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=fixed,
    initial_alphabet=[SPACE],
    limit_alphabet=vocab_size - len(fixed),
    show_progress=False,
  )
  learner.train_from_iterator(texts, trainer)
  _save_like_llama(json.loads(learner.to_str())["model"], pathlib.Path(path))
  return load_text_tokenizer(path)


def _save_like_llama(model: dict, path: pathlib.Path) -> None:
  """Writes learned pieces with the steps of LLaMA's own tokenizer.json."""
  from tokenizers import normalizers

  merges = [tuple(pair) for pair in model["merges"]]
  llama = import_transformers().LlamaTokenizer(vocab=model["vocab"], merges=merges)
  llama.save_pretrained(path)
  backend = llama.backend_tokenizer
  # The class's own step adds no space piece to a text that begins with a space.
  backend.pre_tokenizer = None
  backend.normalizer = normalizers.Sequence(
    [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
  )
  backend.save(str(path / text_files.JSON))


def load_text_tokenizer(path: str | os.PathLike) -> TextTokenizer:
  """Loads the text tokenizer of a local folder.

  Args:
    path: a folder that holds tokenizer.json or tokenizer.model.

  Returns:
    The tokenizer.

  Raises:
    ValueError: the folder has no such file, a damaged one, two that disagree, or one
      that does not say which id ends a text.
  """
  definition = text_files.read(path)
  return TextTokenizer(definition, definition.size)
