"""Generation against transformers on PyTorch: the same weights, random prompts."""

import functools

import generating
import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.core import sharding
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.generate import beam, engine, logits, serving
from lavit_jax.models import llama
from lavit_jax.weights import llama as table
from lavit_jax.weights import rules

pytestmark = pytest.mark.judge
WORDS = Vocabulary(text_size=40, num_codes=24)
SIZES = dict(embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=56)
PROMPTS = 200
SEARCHES = [
  dict(count=2),
  dict(count=5, length_penalty=0.0, early_stopping=True),
  dict(count=3, length_penalty=2.0),
]


@functools.cache
def peer():
  """A random model, its logits wide enough to have no ties."""
  import torch
  import transformers

  torch.manual_seed(0)
  torch.set_grad_enabled(False)
  config = transformers.LlamaConfig(
    vocab_size=WORDS.size,
    hidden_size=SIZES["embed_dim"],
    intermediate_size=SIZES["mlp_dim"],
    num_hidden_layers=SIZES["num_layers"],
    num_attention_heads=SIZES["num_heads"],
    num_key_value_heads=SIZES["num_kv_heads"],
    initializer_range=0.2,
    bos_token_id=1,
    eos_token_id=Vocabulary.end,
    pad_token_id=Vocabulary.end,
  )
  model = transformers.LlamaForCausalLM(config).eval()
  model.lm_head.weight[Vocabulary.end] *= 2  # so that sequences do end
  return model


@functools.cache
def ours() -> serving.Serving:
  """The same weights, laid out."""
  sizes = dict(head_dim=8, rope_base=10000.0, norm_eps=1e-6, dtype="float32")
  padded = dict(vocab_size=WORDS.size, padded_size=WORDS.padded_size)
  model = llama.Llama(**SIZES, **padded, **sizes)
  ids = jnp.zeros((1, 4), jnp.int32)
  tree = golden_data.abstract_params(model, ids, ids, ids, method="everything")
  state = {name: tensor.numpy() for name, tensor in peer().state_dict().items()}
  params = rules.import_weights(table.table(WORDS.size), state, tree)
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  return serving.prepare(model, params, WORDS, mesh)


@functools.cache
def prompts() -> list[list[int]]:
  rng = np.random.default_rng(0)
  draw = lambda: rng.integers(3, WORDS.size, rng.integers(1, 61)).tolist()
  return [draw() for _ in range(PROMPTS)]


def padded(width: int):
  import torch

  ids = torch.full((PROMPTS, width), Vocabulary.end)
  mask = torch.zeros_like(ids)
  for row, prompt in enumerate(prompts()):
    ids[row, width - len(prompt) :] = torch.tensor(prompt)
    mask[row, width - len(prompt) :] = 1
  return dict(input_ids=ids, attention_mask=mask)


def asked_of_peer(max_new: int, min_new: int, **own) -> list[list[int]]:
  batch = padded(60)
  found = peer().generate(
    **batch,
    max_new_tokens=max_new,
    min_new_tokens=min_new,
    suppress_tokens=list(range(WORDS.text_size, WORDS.size)),
    do_sample=False,
    **own,
  )
  rows = np.asarray(found)[:, 60:].tolist()
  cut = lambda row: row[: row.index(Vocabulary.end)] if Vocabulary.end in row else row
  return [cut(row) for row in rows]


def asked_of_us(how) -> list[list[engine.Reply]]:
  requests = [engine.Request(generating.text(ids), how) for ids in prompts()]
  side = ours()
  vectors = lambda batch, members: generating.embed(
    side.model, side.weights, batch.tokens
  )
  return engine.generate(side, requests, vectors, batch_size=64)


def settings(max_new: int, min_new: int) -> logits.Settings:
  return logits.Settings(
    end=Vocabulary.end, allowed="text", max_new=max_new, min_new=min_new
  )


def test_logits():
  batch = padded(60)
  mask = np.asarray(batch["attention_mask"])
  positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
  expected = peer()(**batch, position_ids=batch["input_ids"].new_tensor(positions))
  side = ours()

  @golden_data.compiled
  def prefill(weights):
    inputs = serving.embed(side.model, weights, np.asarray(batch["input_ids"]))
    row = (inputs, mask.astype(np.int32), positions.astype(np.int32), 1)
    return serving.prefill(side.model, weights, *row)[0]

  found = np.asarray(prefill(side.weights))[:, : WORDS.size]
  last = np.asarray(expected.logits)[:, -1]
  assert np.abs(last).max() > 1
  np.testing.assert_allclose(found, last, atol=2e-5, rtol=2e-5)


def test_greedy():
  expected = asked_of_peer(12, 2)
  found = [replies[0].ids.tolist() for replies in asked_of_us(settings(12, 2))]
  assert found == expected
  assert 20 < sum(len(ids) < 12 for ids in found) < PROMPTS - 20


@pytest.mark.parametrize("search", SEARCHES)
def test_beams(search):
  """Every beam of every prompt, in order."""
  own = {name: value for name, value in search.items() if name != "count"}
  count = search["count"]
  expected = asked_of_peer(10, 2, num_beams=count, num_return_sequences=count, **own)
  how = beam.Beams(settings(10, 2), **search, length_offset=0, today=True)
  found = [reply.ids.tolist() for replies in asked_of_us(how) for reply in replies]
  assert found == expected
