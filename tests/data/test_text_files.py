"""Text tokenizers as published: SentencePiece's ids whatever lies beside its model."""

import io
import itertools
import json
import logging
import pickle
import random
import shutil

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from lavit_jax.data import text, text_files
from lavit_jax.weights import exchange, llama, model_directory

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
CLASS = {"tokenizer_class": "LlamaTokenizer"}
EMPTY_MARKS = {"bos_token": "", "eos_token": "", "unk_token": ""}
FORMS = {
  "alone": {},
  "config": {"config.json": LLAMA},
  "no class": {"config.json": LLAMA, "tokenizer_config.json": {"legacy": False}},
  "old": {"tokenizer_config.json": {"tokenizer_class": "LLaMATokenizer"} | EMPTY_MARKS},
  "marks": {"special_tokens_map.json": EMPTY_MARKS, "config.json": LLAMA},
} | {
  f"legacy {legacy}, prefix {prefix}": {
    "config.json": LLAMA,
    "tokenizer_config.json": CLASS
    | {
      k: v for k, v in zip(("legacy", "add_prefix_space"), (legacy, prefix)) if v != ""
    },
  }
  for legacy, prefix in itertools.product((True, False, None, ""), repeat=2)
}
LETTERS = "nlda cr" * 6 + "   \n\t\r0123456789.,<>/s_\u2581\u00a0\u3000\ufeff\0"
WIDE = "éßñçøžя漢字東京नमस्तेمرحبا😀👩\u200d🚀…€\U0001f1ef\U0001f1f5e\u0301"


def train_pieces(path, **settings) -> None:
  """A SentencePiece model with LLaMA's settings."""
  pick, content = random.Random(0), io.BytesIO()
  words = [
    "".join(pick.choices("nldarcesto", k=pick.randint(2, 7))) for _ in range(200)
  ]
  lines = [" ".join(pick.choices(words, k=8)) for _ in range(1000)]
  llamas = dict(
    vocab_size=500,
    model_type="bpe",
    byte_fallback=True,
    split_digits=True,
    normalization_rule_name="identity",
    add_dummy_prefix=True,
    remove_extra_whitespaces=False,
    allow_whitespace_only_pieces=True,
    unk_id=0,
    bos_id=1,
    eos_id=2,
    pad_id=-1,
  )
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines),
    model_writer=content,
    num_threads=1,
    minloglevel=2,
    **llamas | settings,
  )
  path.write_bytes(content.getvalue())


def random_texts(count: int) -> list[str]:
  """Texts with leading and doubled spaces, line breaks, marks and wide characters."""
  pick = random.Random(1)
  ends = ["", " ", "  ", "\n", "\u2581", "<s>", "</s> "]
  body = lambda: "".join(pick.choices(LETTERS + WIDE, k=pick.randint(0, 40)))
  return [pick.choice(ends) + body() + pick.choice(ends) for _ in range(count)]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
  path = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
  train_pieces(path)
  return path


@pytest.fixture(scope="module")
def judge(pieces):
  return sentencepiece.SentencePieceProcessor(model_file=str(pieces))


def write_json(judge, path, first_only: bool = False, prefix: bool = True) -> None:
  """tokenizer.json of a SentencePiece model, as transformers 4 or 5 writes it."""
  vocab = {judge.id_to_piece(i): i for i in range(len(judge))}
  halves = lambda piece: [(piece[:i], piece[i:]) for i in range(1, len(piece))]
  merges = [
    pair
    for piece in sorted(vocab, key=lambda piece: vocab[piece])
    for pair in sorted(halves(piece), key=lambda pair: [vocab.get(p, 0) for p in pair])
    if all(part in vocab for part in pair) and not piece.startswith("<")
  ]
  made = tokenizers.Tokenizer(
    models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
  )
  if first_only:
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
  else:
    steps = [normalizers.Prepend("\u2581")] if prefix else []
    steps.append(normalizers.Replace(" ", "\u2581"))
    made.normalizer = normalizers.Sequence(steps)
  made.decoder = decoders.Sequence(
    [
      decoders.Replace("\u2581", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(" ", 1, 0),
    ]
  )
  made.add_special_tokens(list(text_files.SPECIALS))
  made.save(str(path))


@pytest.mark.parametrize("form", FORMS)
def test_ids_and_texts_are_those_of_sentencepiece(form, pieces, judge, tmp_path):
  shutil.copy(pieces, tmp_path)
  for name, content in FORMS[form].items():
    (tmp_path / name).write_text(json.dumps(content))
  tokenizer = text.load_text_tokenizer(tmp_path)
  assert tokenizer.text_size == len(judge) == llama.text_size(tmp_path)
  for sample in ["nlddaa cr", *random_texts(2000)]:
    ids = tokenizer.encode(sample)
    assert ids == judge.encode(sample)
    assert all(2 < i < tokenizer.text_size for i in ids)
    assert tokenizer.decode(ids) == sample.replace("\u2581", " ")
  ids = tokenizer.encode("a dog")
  end = tokenizer.text_size
  assert tokenizer.decode([1, end, *ids, end + 7, 2, 0]) == "a dog"


def test_a_model_without_bytes_or_of_another_kind_keeps_its_ids(tmp_path):
  kinds = (dict(byte_fallback=False), dict(model_type="unigram", vocab_size=300))
  for number, settings in enumerate(kinds):
    folder = tmp_path / str(number)
    folder.mkdir()
    train_pieces(folder / "tokenizer.model", **settings)
    kept = sentencepiece.SentencePieceProcessor(
      model_file=str(folder / "tokenizer.model")
    )
    tokenizer = text.load_text_tokenizer(folder)
    for sample in random_texts(300):
      assert tokenizer.encode(sample) == kept.encode(sample)


@pytest.mark.parametrize("first_only", [False, True])
def test_the_same_tokenizer_in_both_files(pieces, judge, first_only, tmp_path):
  shutil.copy(pieces, tmp_path)
  write_json(judge, tmp_path / "tokenizer.json", first_only)
  tokenizer = text.load_text_tokenizer(tmp_path)
  for sample in random_texts(300):
    assert tokenizer.encode(sample) == judge.encode(sample)


def test_tokenizer_json_alone_follows_its_own_steps(judge, tmp_path):
  write_json(judge, tmp_path / "tokenizer.json")
  stored = json.loads((tmp_path / "tokenizer.json").read_text())
  stored["truncation"] = dict(
    direction="Right", max_length=4, strategy="LongestFirst", stride=0
  )
  (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
  settings = CLASS | EMPTY_MARKS
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
  tokenizer = text.load_text_tokenizer(tmp_path)
  for sample in ["  two dogs", "a cat", "no dog and no cat", "<s>", "\u6771 \n"]:
    assert tokenizer.encode(sample) == judge.encode(sample)
    assert tokenizer.decode(tokenizer.encode(sample)) == sample


def test_two_files_that_disagree_are_refused(pieces, judge, tmp_path):
  shutil.copy(pieces, tmp_path)
  write_json(judge, tmp_path / "tokenizer.json", prefix=False)
  with pytest.raises(ValueError, match=r"to be one text tokenizer, got \[\d.*; remove"):
    text.load_text_tokenizer(tmp_path)


@pytest.mark.parametrize(
  "content", [b"", b"<!DOCTYPE html><html></html>", b"version https://git-lfs\noid 1"]
)
def test_files_that_are_no_tokenizers_end_in_one_sentence(content, tmp_path):
  for name in ("tokenizer.json", "tokenizer.model"):  # both: the model is read first
    (tmp_path / name).write_bytes(content)
    expected = "a SentencePiece model|a text tokenizer"
    with pytest.raises(ValueError, match=f"expected ({expected}) in .*{name}, got .*;"):
      text.load_text_tokenizer(tmp_path)
  with pytest.raises(ValueError, match="expected a SentencePiece model in"):
    llama.text_size(tmp_path)


def test_other_special_ids_are_taken_as_they_are(tmp_path):
  train_pieces(tmp_path / "tokenizer.model", pad_id=0, unk_id=3, bos_id=-1)
  tokenizer = text.load_text_tokenizer(tmp_path)
  words = tokenizer.vocabulary(24)
  assert (words.begin, words.end, words.pad) == (2, 2, 2)  # without one, the end begins
  assert tokenizer.decode([3, 2, *tokenizer.encode("nlddaa cr"), 2]) == "nlddaa cr"


def test_a_model_without_an_end_mark_is_refused(tmp_path):
  train_pieces(tmp_path / "tokenizer.model", eos_id=-1)
  with pytest.raises(ValueError, match="with an end mark, got none"):
    text.load_text_tokenizer(tmp_path).vocabulary(24)


def test_settings_that_are_not_followed_are_named(pieces, tmp_path, caplog):
  shutil.copy(pieces, tmp_path)
  for settings, said in ((CLASS, 0), ({"add_prefix_space": False}, 1)):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with caplog.at_level(logging.WARNING):
      text.load_text_tokenizer(tmp_path)
    assert caplog.text.count("add_prefix_space is false in") == said


def test_tokenizers_pass_between_processes(pieces, judge, tmp_path):
  write_json(judge, tmp_path / "tokenizer.json")
  for folder in (pieces.parent, tmp_path):
    tokenizer = text.load_text_tokenizer(folder)
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert (
      copy.encode("a cat\n") == tokenizer.encode("a cat\n") == judge.encode("a cat\n")
    )
    assert copy.checksum == tokenizer.checksum


def test_the_file_survives_import_and_export(pieces, judge, tmp_path):
  (tmp_path / "source").mkdir()
  shutil.copy(pieces, tmp_path / "source")
  model_directory.save(tmp_path / "model", {}, text_tokenizer=tmp_path / "source")
  exchange._add_text_tokenizer(tmp_path / "model", tmp_path / "out")
  assert (tmp_path / "out/tokenizer.model").read_bytes() == pieces.read_bytes()
  assert text.load_text_tokenizer(tmp_path / "out").encode("nlddaa cr") == judge.encode(
    "nlddaa cr"
  )
