"""The two files that define a text tokenizer, behind one set of methods.

    tokenizer.model   a SentencePiece model: encoded by SentencePiece itself
    tokenizer.json    the whole definition of a tokenizer of Hugging Face's `tokenizers`

Where both lie in a folder, the first decides and the second must agree with it.
tokenizer_config.json changes no id: LaVIT's own code encodes as tokenizer.model says
whatever stands there, and releases of transformers disagree about its settings.
"""

import dataclasses
import functools
import importlib.util
import json
import os
import pathlib

from absl import logging

from lavit_jax.core import vocabulary
from lavit_jax.data import text_marks
from lavit_jax.data.text_marks import SETTINGS, SPECIALS, Marks

JSON, MODEL = FILES = ("tokenizer.json", "tokenizer.model")
# Texts that both files must encode alike. None begins with a space: there the files
# differ by one space piece, depending on which release of transformers wrote the JSON.
PROBES = (
  "a photo of two dogs, one of them asleep on the grass",
  "Question: How many objects are there? Answer:",
  "In 1998, 23% paid $4,567.80 for it!",
  "na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve stra\N{LATIN SMALL LETTER SHARP S}e",
  "\N{CYRILLIC SMALL LETTER YA} \u6771\u4eac \N{GRINNING FACE}",
  "two  spaces, a\ttab\nand a line break ",
)


@dataclasses.dataclass(frozen=True)
class SentencePieceModel:
  """tokenizer.model: every method is SentencePiece's own.

  Attributes:
    processor: the `sentencepiece.SentencePieceProcessor`.
  """

  processor: object

  @property
  def size(self) -> int:
    """Number of ids."""
    return self.processor.get_piece_size()

  @property
  def marks(self) -> Marks:
    """Its begin, end and unknown id; texts are padded by the end mark, as in LLaMA."""
    begin, end = self.processor.bos_id(), self.processor.eos_id()
    if end < 0:
      raise ValueError(
        f"expected a SentencePiece model with an end mark, got none in {MODEL}; train"
        " it with eos_id set"
      )
    return Marks(end if begin < 0 else begin, end, end, self.processor.unk_id())

  @property
  def hidden(self) -> frozenset[int]:
    """Ids that are not shown."""
    return frozenset(dataclasses.astuple(self.marks))

  @property
  def holes(self) -> tuple[tuple[int, int], ...]:
    """Ranges of ids without a token: none."""
    return ()

  @property
  def content(self) -> bytes:
    """What the ids depend on."""
    return self.processor.serialized_model_proto()

  def encode(self, text: str) -> list[int]:
    """Ids of a text; marks in it are mere characters."""
    return self.processor.encode(text)

  def decode(self, ids: list[int]) -> str:
    """The text of ids; the space piece that begins a text is not shown."""
    return self.processor.decode(ids)


@dataclasses.dataclass(frozen=True)
class TokenizerJson:
  """tokenizer.json: the steps that are written in it, and no others.

  Attributes:
    backend: the `tokenizers.Tokenizer`.
    marks: its begin, end, pad and unknown id.
  """

  backend: object
  marks: Marks

  @property
  def size(self) -> int:
    """Number of ids up to the last one.

    Beside LLaMA's marks, tokens that were added to the vocabulary do not count: the
    reference's has none. Others have their very marks there.
    """
    own = self.backend.get_vocab(with_added_tokens=False)
    whole = self.backend.get_vocab(with_added_tokens=True)
    return 1 + max((own if all(t in own for t in SPECIALS) else whole).values())

  @functools.cached_property
  def hidden(self) -> frozenset[int]:
    """Ids that are not shown."""
    added = self.backend.get_added_tokens_decoder().items()
    special = {i for i, token in added if token.special}
    return frozenset({*special, *dataclasses.astuple(self.marks)})

  @property
  def holes(self) -> tuple[tuple[int, int], ...]:
    """Ranges of ids below `size` without a token."""
    size, known = self.size, self.backend.get_vocab(with_added_tokens=True).values()
    return vocabulary.missing_ranges((i for i in known if i < size), size)

  @property
  def content(self) -> bytes:
    """What the ids depend on."""
    whole = json.loads(self.backend.to_str())
    parts = ("model", "normalizer", "pre_tokenizer", "added_tokens")
    return json.dumps({part: whole[part] for part in parts}, sort_keys=True).encode()

  def encode(self, text: str) -> list[int]:
    """Ids of a text; special marks in it are mere characters."""
    return self.backend.encode(text, add_special_tokens=False).ids

  def decode(self, ids: list[int]) -> str:
    """The text of ids; the space piece that begins a text is not shown."""
    return self.backend.decode(ids, skip_special_tokens=True)


def read(folder: str | os.PathLike) -> SentencePieceModel | TokenizerJson:
  """Opens the definition in a folder: tokenizer.model, else tokenizer.json.

  Args:
    folder: holds one of the two, or both.

  Returns:
    The definition.

  Raises:
    ValueError: no such file, one that cannot be read, or two that disagree.
  """
  folder = pathlib.Path(folder)
  present = [name for name in FILES if (folder / name).is_file()]
  if not present:
    raise ValueError(
      f"expected a text tokenizer folder with {' or '.join(FILES)}, got {folder}; "
      "give the folder of a LLaMA model or of a tokenizer trained by prepare"
    )
  if MODEL not in present:
    return _read_json(folder / JSON)
  pieces = _read_model(folder / MODEL)
  _warn_of_prefix(folder / SETTINGS)
  if JSON in present:
    _check_alike(pieces, _read_json(folder / JSON), folder)
  return pieces


def _read_model(path: pathlib.Path) -> SentencePieceModel:
  if importlib.util.find_spec("sentencepiece") is None:
    raise ValueError(
      f"expected the package sentencepiece, which reads {path}, got none; install it"
      " with pip install sentencepiece"
    )
  import sentencepiece

  content = path.read_bytes()
  try:
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    if content and processor.get_piece_size():
      return SentencePieceModel(processor)
  except RuntimeError:
    pass
  raise ValueError(
    f"expected a SentencePiece model in {path}, got {len(content)} bytes that are none;"
    " download it again"
  )


def _read_json(path: pathlib.Path) -> TokenizerJson:
  import tokenizers

  try:
    backend = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the library raises bare Exception
    raise ValueError(
      f"expected a text tokenizer in {path}, got a file that tokenizers cannot read"
      f" ({error}); download it again"
    ) from error
  backend.no_truncation()  # a limit on the length may be stored with the definition
  backend.no_padding()
  backend.encode_special_tokens = True
  ids = backend.get_vocab(with_added_tokens=True)
  if isinstance(backend.model, tokenizers.models.BPE) and SPECIALS[0] in ids:
    backend.model.unk_token = SPECIALS[0]  # without it unknown characters vanish
  marks = text_marks.find(ids, text_marks.settings_of(path.parent), path.parent)
  return TokenizerJson(backend, marks)


def _warn_of_prefix(path: pathlib.Path) -> None:
  """Says so where settings ask for texts without the space piece before them."""
  try:
    settings = json.loads(path.read_bytes()) if path.is_file() else {}
  except ValueError:
    return
  if isinstance(settings, dict) and settings.get("add_prefix_space") is False:
    logging.warning(
      "add_prefix_space is false in %s; texts are encoded as %s says all the same",
      path,
      MODEL,
    )


def _check_alike(pieces, other, folder: pathlib.Path) -> None:
  """Refuses a tokenizer.json that is not the tokenizer.model beside it."""
  for probe in PROBES:
    right, found = pieces.encode(probe), other.encode(probe)
    if right != found:
      raise ValueError(
        f"expected {MODEL} and {JSON} in {folder} to be one text tokenizer, got"
        f" {_first(right)} of the first, {_first(found)} of the second for {probe!r};"
        " remove the file that the model was not trained with"
      )


def _first(ids: list[int]) -> str:
  return f"[{', '.join(map(str, ids[:8]))}, ...]"
