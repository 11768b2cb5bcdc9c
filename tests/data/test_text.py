"""Text tokenizers: round trip, special ids, loading, errors."""

import json
import random
import shutil

import pytest
import transformers

from lavit_jax.data import text
from lavit_jax.toy import digits, scenes


def _texts() -> list[str]:
  sources = scenes.Scenes("train", 300), digits.Digits("train", 60)
  records = [source[i] for source in sources for i in range(len(source))]
  turns = [turn for r in records for e in r["texts"] for turn in e["turns"]]
  return [part for turn in turns for part in turn if part]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("text_tokenizer")
  text.train_text_tokenizer(_texts(), 560, path)
  return path


@pytest.fixture(scope="module")
def tokenizer(folder):
  return text.load_text_tokenizer(folder)


def test_texts_survive_the_round_trip(tokenizer):
  others = ["Hello, World! 12 {}", "an unheard-of  word", "<s> is text </s>", ""]
  others += [" two", "\n<0x41>\t ", "caf\u00e9 \u6771\u4eac\r\n", "\U0001f600\u200d\0"]
  for sample in _texts()[:500] + others:
    ids = tokenizer.encode(sample)
    assert tokenizer.decode(ids) == sample
    assert all(2 < i < tokenizer.text_size for i in ids)


def test_common_words_are_single_tokens(tokenizer):
  for word in "red orange circle triangle left bottom center handwritten seven".split():
    assert len(tokenizer.encode(word)) == 1


def test_longest_caption_stays_short(tokenizer):
  source = scenes.Scenes("train", 200, num_objects=6)
  captions = [source[i]["texts"][0]["turns"][0][1] for i in range(200)]
  assert max(len(tokenizer.encode(c)) for c in captions) < 60


def test_decode_skips_specials_images_and_codes(tokenizer):
  ids = tokenizer.encode("a red circle")
  end = tokenizer.text_size
  assert tokenizer.decode([1, end, end + 5, *ids, 2, 0, end + 1]) == "a red circle"


def test_special_ids_follow_llama(tokenizer):
  specials = [tokenizer.definition.backend.id_to_token(i) for i in range(3)]
  assert specials == ["<unk>", "<s>", "</s>"]
  values = [tokenizer.definition.backend.id_to_token(i) for i in range(3, 259)]
  assert values == [f"<0x{value:02X}>" for value in range(256)]


def test_no_letter_is_lost(tmp_path):
  texts = ["<s> and <0x41> </s>", "\u6771\u4eac\u0442\u0430\u043c caf\u00e9"] * 40
  for size in (262, 300):  # with less than all letters of the texts, and with all
    tokenizer = text.train_text_tokenizer(texts, size, tmp_path / str(size))
    assert tokenizer.text_size <= size
    pick = random.Random(size)
    for length in range(200):
      letters = [
        chr(pick.choice((pick.randrange(0xD800), 0x1F600))) for _ in range(length)
      ]
      for sample in ("".join(letters).replace("\u2581", ""), *texts[:2]):
        ids = tokenizer.encode(sample)
        assert tokenizer.decode(ids) == sample
        assert all(2 < i < tokenizer.text_size for i in ids)


def test_a_trained_folder_means_the_same_to_transformers(tokenizer, folder):
  theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
  for sample in ("a red circle", "two  stars\n", "\u6771\u4eac 12"):
    ids = tokenizer.encode(sample)
    assert theirs(sample, add_special_tokens=False)["input_ids"] == ids
    assert theirs.decode(ids) == sample


def test_checksum_tells_definitions_apart(tokenizer, folder, tmp_path):
  shutil.copytree(folder, tmp_path / "copy")
  assert text.load_text_tokenizer(tmp_path / "copy").checksum == tokenizer.checksum
  other = text.train_text_tokenizer(_texts()[:50], 300, tmp_path / "other")
  assert other.checksum != tokenizer.checksum
  assert other.text_size == 300


def test_unfit_folders_end_in_one_sentence(folder, tmp_path):
  with pytest.raises(ValueError, match="expected a text tokenizer folder"):
    text.load_text_tokenizer(tmp_path / "missing")
  shutil.copytree(folder, tmp_path / "shifted")
  definition = json.loads((folder / "tokenizer.json").read_text())
  vocab = definition["model"]["vocab"]
  vocab["<s>"], vocab["</s>"] = vocab["</s>"], vocab["<s>"]
  definition["added_tokens"] = []
  (tmp_path / "shifted" / "tokenizer.json").write_text(json.dumps(definition))
  shifted = text.load_text_tokenizer(tmp_path / "shifted").vocabulary(24)
  assert (shifted.begin, shifted.end) == (2, 1)  # wherever they stand
  with pytest.raises(ValueError, match="vocab_size 50"):
    text.train_text_tokenizer(["a"], 50, tmp_path / "small")
