"""The text tokenizer of an export: fast, and with names for marks and codes.

[IMG], [/IMG], <code_0>, <code_1> ... follow the text ids, as in the joint vocabulary.
"""

import json
import pathlib
from typing import Any

from lavit_jax.data import text_files
from lavit_jax.data.text_files import JSON, SPECIALS

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
CONFIG = {
  "tokenizer_class": "PreTrainedTokenizerFast",
  "unk_token": SPECIALS[0],
  "bos_token": SPECIALS[1],
  "eos_token": SPECIALS[2],
  "pad_token": SPECIALS[2],
  "padding_side": "left",
  "clean_up_tokenization_spaces": False,
}


def write(
  source: pathlib.Path, folder: pathlib.Path, text_size: int, num_codes: int
) -> None:
  """Writes tokenizer.json and tokenizer_config.json of the joint vocabulary.

  Args:
    source: a text tokenizer folder: tokenizer.json or tokenizer.model.
    folder: where to write.
    text_size: T.
    num_codes: K.

  Raises:
    ValueError: the tokenizer has another number of ids, or cannot be made fast.
  """
  definition = text_files.read(source)
  if definition.size != text_size:
    raise ValueError(
      f"expected a text tokenizer of {text_size} ids in {source}, got one of"
      f" {definition.size}; restore the tokenizer of the model's training"
    )
  if isinstance(definition, text_files.TokenizerJson):
    whole = json.loads(definition.backend.to_str())
  else:
    whole = _of_pieces(definition.processor)
    _check(whole, definition, source)
  names = ["[IMG]", "[/IMG]", *(f"<code_{k}>" for k in range(num_codes))]
  known = [one for one in whole["added_tokens"] if one["id"] < text_size]
  marks = [_mark(text_size + i, name) for i, name in enumerate(names)]
  whole |= {"added_tokens": known + marks, "post_processor": None}
  (folder / JSON).write_text(json.dumps(whole, ensure_ascii=False))
  (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


def _mark(number: int, name: str) -> dict[str, Any]:
  off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
  return {"id": number, "content": name, **off, "special": True}


def _of_pieces(processor: Any) -> dict[str, Any]:
  """tokenizer.json of a SentencePiece model of byte-pair encoding, as LLaMA's is."""
  import tokenizers
  from tokenizers import decoders, models, normalizers

  count = processor.get_piece_size()
  vocab = {processor.id_to_piece(i): i for i in range(count)}
  merges = []
  for piece, number in vocab.items():
    pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
    pairs = [(a, b) for a, b in pairs if a in vocab and b in vocab]
    pairs.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    merges += [(-processor.get_score(number), pair) for pair in pairs]
  merges.sort(key=lambda scored: scored[0])
  model = models.BPE(
    vocab,
    [pair for _, pair in merges],
    unk_token=SPECIALS[0],
    fuse_unk=True,
    byte_fallback=True,
  )
  made = tokenizers.Tokenizer(model)
  made.normalizer = normalizers.Sequence(
    [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
  )
  made.decoder = decoders.Sequence(
    [
      decoders.Replace(SPACE, " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )
  whole = json.loads(made.to_str())
  whole["added_tokens"] = [_mark(i, name) for i, name in enumerate(SPECIALS)]
  return whole


def _check(whole: dict[str, Any], definition, source: pathlib.Path) -> None:
  """Refuses a fast form that encodes otherwise."""
  import tokenizers

  made = tokenizers.Tokenizer.from_str(json.dumps(whole))
  for probe in text_files.PROBES:
    found = made.encode(probe, add_special_tokens=False).ids
    if found != definition.encode(probe):
      raise ValueError(
        f"expected a SentencePiece model like LLaMA's in {source}, got one whose fast"
        f" form encodes {probe!r} otherwise; add a tokenizer.json to the folder"
      )
