"""A stage-2 step on byte-level tokenizers: their marks train, holes do not."""

import byte_level
import golden_data
import jax
import numpy as np
import pytest
import toy_run

from lavit_jax.data import documents, rows, text
from lavit_jax.models import lavit
from lavit_jax.stages import pretrain, warm_start
from lavit_jax.training import base, train_state
from lavit_jax.weights import model_directory

ROWS = 410  # of text in the language model, beyond either tokenizer's ids


def text_row(tokenizer, words, sample: str) -> dict:
  """A row of one text, with its marks."""
  ids = np.array(tokenizer.encode(sample), np.int32)
  nothing = np.zeros(0, np.int32)
  kind, length = documents.TEXT, len(ids) + 2
  document = rows.Document(kind, [(nothing, ids)], nothing, None, None, 0, length)
  return toy_run.row_of([document], 40, 1, words)


@pytest.mark.parametrize("make", [byte_level.llama3, byte_level.qwen])
def test_a_step_trains_and_leaves_holes_alone(make, tmp_path):
  make(tmp_path)
  tokenizer = text.load_text_tokenizer(tmp_path)
  words = tokenizer.vocabulary(24, ROWS)
  model, tx = toy_run.language_model(words=words), toy_run.recorder()
  boxed = jax.eval_shape(lavit.init_function(model, toy_run.PATCHES), jax.random.key(0))
  tree = base.train_state.linear.split_boxes(boxed["params"])[0]
  params = toy_run.random_tree(tree, 3)
  samples = [
    "the red dog's 12345",
    "e\u0301 \u6771\u4eac!",
    "a dog\n",
    "\U0001f600 (x)",
  ]
  made = [text_row(tokenizer, words, sample) for sample in samples]
  batch = {name: np.stack([row[name] for row in made]) for name in made[0]}
  step = golden_data.compiled(
    pretrain.make_step(model, toy_run.tower(), tx, words, 1, 1)
  )
  state = train_state.fresh(params, tx)
  state, metrics = step(state, toy_run.frozen(), batch, jax.random.key(0))
  grads = jax.device_get(state.opt_state)["llama"]
  assert np.isfinite(metrics["loss"])
  to_head = grads["head"]["kernel"]
  real = words.is_text(np.arange(words.text_size))
  assert real.sum() == tokenizer.text_size < words.text_size
  assert to_head[:, : words.text_size][:, real].any(axis=0).all()
  assert not to_head[:, : words.text_size][:, ~real].any()
  table = grads["embedding"]["embedding"]
  assert table[words.begin].any() and table[batch["tokens"][0, 1]].any()


def test_text_has_the_rows_of_the_model_it_starts_from(tmp_path):
  byte_level.qwen(tmp_path / "words")
  tokenizer = text.load_text_tokenizer(tmp_path / "words")
  for name, sizes in (
    ("plain", dict(vocab_size=ROWS, text_size=380)),
    ("joint", dict(vocab_size=ROWS + 2 + 24, text_size=ROWS)),
  ):
    part = model_directory.Part({"norm": {"scale": np.ones(2, np.float32)}}, sizes)
    model_directory.save(tmp_path / name, {"llama": part})
    words = warm_start.vocabulary(str(tmp_path / name), tokenizer, 24)
    assert words.text_size == ROWS and words.holes == ((384, ROWS),)
  assert warm_start.vocabulary("", tokenizer, 24).text_size == 384
