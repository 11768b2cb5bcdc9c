"""Byte-level tokenizers: their own ids and normal form, marks wherever they stand."""

import json
import unicodedata

import byte_level
import numpy as np
import pytest
import toy_shards

from lavit_jax.core import vocabulary
from lavit_jax.data import documents, rows, text


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  folder = tmp_path_factory.mktemp("byte_level")
  return {
    "llama3": (folder / "llama3", byte_level.llama3(folder / "llama3")),
    "qwen": (folder / "qwen", byte_level.qwen(folder / "qwen")),
  }


@pytest.mark.parametrize("kind", ["llama3", "qwen"])
def test_ids_and_texts_are_those_of_the_library(folders, kind):
  folder, judge = folders[kind]
  tokenizer = text.load_text_tokenizer(folder)
  for sample in byte_level.texts(2000, 0):
    ids = tokenizer.encode(sample)
    assert ids == judge.encode(sample, add_special_tokens=False).ids
    normal = unicodedata.normalize("NFC", sample) if kind == "qwen" else sample
    assert tokenizer.decode(ids) == normal


def test_marks_have_any_value(folders):
  ids = {
    kind: judge.get_vocab(with_added_tokens=True)
    for kind, (_, judge) in folders.items()
  }
  llama3 = text.load_text_tokenizer(folders["llama3"][0]).vocabulary(24)
  begin, end = (ids["llama3"][name] for name in byte_level.LLAMA3[:2])
  assert (llama3.begin, llama3.end, llama3.pad) == (begin, end, end)
  qwen = text.load_text_tokenizer(folders["qwen"][0]).vocabulary(24)
  end, pad = ids["qwen"]["<|im_end|>"], ids["qwen"]["<|endoftext|>"]
  assert (qwen.begin, qwen.end, qwen.pad) == (end, end, pad)
  assert llama3.text_size == 404 and qwen.text_size == 384 and not qwen.holes


def test_marks_in_a_text_are_characters_and_are_not_shown(folders):
  for folder, _ in folders.values():
    tokenizer = text.load_text_tokenizer(folder)
    words = tokenizer.vocabulary(24)
    for mark in (*byte_level.LLAMA3, *byte_level.QWEN):
      assert tokenizer.decode(tokenizer.encode(mark + "!")) == mark + "!"
    shown = [words.begin, *tokenizer.encode("!dog"), words.end, words.pad]
    assert tokenizer.decode([*shown, words.image_start, words.code_start]) == "!dog"


def test_rows_of_the_model_beyond_the_tokenizer_are_holes(folders):
  tokenizer = text.load_text_tokenizer(folders["qwen"][0])
  words = tokenizer.vocabulary(24, rows=400)
  assert words.text_size == words.image_start == 400
  assert words.holes == ((384, 400),)
  ids = np.arange(words.padded_size)
  assert ids[words.is_text(ids)].tolist() == list(range(384))
  with pytest.raises(ValueError, match="expected at least the 384 ids .* got 300"):
    tokenizer.vocabulary(24, rows=300)


def test_holes_between_ids_are_ranges():
  assert vocabulary.missing_ranges([0, 1, 4, 5, 7], 9) == ((2, 4), (6, 7), (8, 9))
  assert vocabulary.missing_ranges([1], 2) == ((0, 1),)
  assert vocabulary.missing_ranges(range(5), 5) == ()


def test_a_row_begins_and_ends_its_texts_with_the_vocabularys_marks():
  words = vocabulary.Vocabulary(40, 24, begin=31, end=39, pad=7)
  nothing = np.zeros(0, np.int32)
  document = rows.Document(documents.TEXT, [([], [0, 1, 2])], nothing, None, None, 0, 5)
  tokens, _, _ = rows.spell(document, words)
  assert tokens.tolist() == [31, 0, 1, 2, 39]
  keep = np.arange(toy_shards.PATCHES) < 1
  turns = [([5], [6]), ([7], [8])]
  document = rows.Document(documents.IMAGE_TEXT, turns, np.array([3]), keep, None, 0, 9)
  tokens, _, _ = rows.spell(document, words)
  assert tokens.tolist() == [40, 45, 41, 5, 6, 39, 7, 8, 39]


def test_a_tokenizer_without_an_end_mark_is_refused(folders, tmp_path):
  made = json.loads((folders["qwen"][0] / "tokenizer.json").read_text())
  made["added_tokens"] = []
  (tmp_path / "tokenizer.json").write_text(json.dumps(made))
  with pytest.raises(ValueError, match="an end mark, got none .* eos_token in"):
    text.load_text_tokenizer(tmp_path)
