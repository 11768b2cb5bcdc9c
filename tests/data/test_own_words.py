"""A text tokenizer of a prepared folder's own texts: it loses no letter of any text."""

import random

import pytest

from lavit_jax.data import own_words, records

CAPTIONS = ("ein großes Haus am Fluß", "東京の夜 🌃", "два кота, naïve!")


def write(folder, captions):
  """Records with a text each."""
  made = (
    {"id": f"r{i}", "image": b"", "texts": [{"task": "text", "turns": [["", words]]}]}
    for i, words in enumerate(captions)
  )
  records.write_shards(made, folder, "s", 50)


def test_own_letters_and_all_others_survive(tmp_path):
  write(tmp_path, CAPTIONS * 40)
  tokenizer = own_words.train(tmp_path, 400)
  pick = random.Random(0)
  others = [
    "".join(chr(pick.randrange(1, 0xD800)) for _ in range(30)) for _ in range(9)
  ]
  for sample in (*CAPTIONS, *others):
    sample = sample.replace("\u2581", "")
    assert tokenizer.decode(tokenizer.encode(sample)) == sample
  assert 260 < tokenizer.text_size <= 400
  # Its own words are short, and a second call keeps what stands there.
  assert len(tokenizer.encode(CAPTIONS[0])) <= 8
  assert own_words.train(tmp_path, 300).checksum == tokenizer.checksum
  assert not list(tmp_path.glob("*.writing"))


def test_texts_are_taken_from_first_to_last(tmp_path):
  write(tmp_path, [str(i) for i in range(100)])
  found = list(own_words.texts_of(records.Records(tmp_path), most=10))
  assert found == [str(10 * i) for i in range(10)]


def test_records_without_texts_end_in_one_sentence(tmp_path):
  made = [{"id": "a", "image": b"x", "texts": []}]
  records.write_shards(iter(made), tmp_path, "s", 5)
  with pytest.raises(ValueError, match="records with texts .* got none"):
    own_words.train(tmp_path, 400)
