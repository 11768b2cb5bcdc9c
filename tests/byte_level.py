"""Byte-level tokenizer folders like Llama-3's and Qwen's, made where a test runs."""

import json
import pathlib
import random

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

# As published with these models: words, runs of digits, punctuation, white space.
SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_0|>", "<|eot_id|>"]
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LETTERS = "the red dog's 12345  \n\t.,!?(){}<>|" + "éÉßçñø" + "e\u0301o\u0308"
LETTERS += "яжщ漢字東京नमस्तेمرحبا가\u1100\u1161😀👩\u200d🚀…€\u212b\u2126\ufb01\0\u2581"


def _trained(normalizer, number: int) -> tokenizers.Tokenizer:
  made = tokenizers.Tokenizer(models.BPE())
  if normalizer:
    made.normalizer = normalizer
  made.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  made.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=number, initial_alphabet=alphabet, show_progress=False
  )
  made.train_from_iterator(texts(300, 1), trainer)
  return made


def _save(made, folder: pathlib.Path, settings: dict) -> tokenizers.Tokenizer:
  folder.mkdir(parents=True, exist_ok=True)
  made.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))
  return made


def llama3(folder: pathlib.Path) -> tokenizers.Tokenizer:
  """Llama-3-like: marks behind 400 pieces, a begin mark, no pad mark."""
  made = _trained(None, 400)
  made.add_special_tokens(LLAMA3)
  settings = {"bos_token": LLAMA3[0], "eos_token": {"content": LLAMA3[1]}}
  return _save(made, folder, settings)


def qwen(folder: pathlib.Path) -> tokenizers.Tokenizer:
  """Qwen-like: NFC, no begin mark, a pad mark of its own, a mark that is no special."""
  made = _trained(normalizers.NFC(), 380)
  made.add_special_tokens(QWEN)
  made.add_tokens(["<tool_call>"])
  settings = {"bos_token": None, "eos_token": QWEN[2], "pad_token": QWEN[0]}
  return _save(made, folder, settings)


def texts(number: int, seed: int) -> list[str]:
  """Random texts of words, letters of many scripts and any other characters."""
  pick, found = random.Random(seed), []
  for _ in range(number):
    some = pick.choices(LETTERS, k=pick.randint(0, 40))
    some += [chr(pick.choice((pick.randrange(1, 0xD800), 0x1F600))) for _ in range(3)]
    pick.shuffle(some)
    found.append("".join(some) + pick.choice(("", " a red dog", "\n", "<tool_call>")))
  return found
