"""LLaMA against the reference, and packed rows."""

import functools

import golden_data
import golden_llama
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.models import llama
from lavit_jax.weights import llama as table
from lavit_jax.weights import rules

SMALL = dict(
  vocab_size=20,
  padded_size=24,
  embed_dim=16,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=4,
  mlp_dim=24,
  rope_base=10000.0,
  norm_eps=1e-5,
)


@functools.cache
def small(**changes):
  model = llama.Llama(**SMALL | changes, dtype="float32")
  ids = jnp.zeros((1, 4), jnp.int32)
  rng, params = np.random.default_rng(0), {}
  tree = golden_data.abstract_params(model, ids, ids, ids, method="everything")
  for path, leaf in rules.flatten(tree).items():
    noise = rng.normal(size=leaf.shape, scale=0.3).astype(np.float32)
    params[path] = noise + path.endswith("scale")
  return model, rules.unflatten(params)


def hidden_states(module, tokens, positions, segment_ids):
  return module(module.embed(tokens), positions, segment_ids)


def test_golden_logits():
  model, params, words, arrays = golden_llama.load()
  run = lambda m, *inputs: m.logits(m(*inputs))
  for case in golden_data.cases(arrays).values():
    mask = case["attention_mask"].astype(np.int32)
    positions = case["position_ids"].astype(np.int32)
    inputs = jnp.asarray(case["inputs_embeds"])
    logits = golden_data.run(model, params, inputs, positions, mask, method=run)
    # What a padded query sees differs: nothing here, the padding in the reference.
    real = np.asarray(logits)[mask > 0]
    expected = case["logits"][mask > 0]
    np.testing.assert_allclose(
      real[:, : words.size], expected, atol=golden_data.ATOL, rtol=golden_data.RTOL
    )
    assert (real[:, words.size :] == -np.inf).all()


def test_padded_vocabulary_is_zero_after_import_and_cut_on_export():
  model, params, words, _ = golden_llama.load()
  embedding, head = params["embedding"]["embedding"], params["head"]["kernel"]
  assert embedding.shape[0] == head.shape[1] == words.padded_size
  assert not embedding[words.size :].any() and not head[:, words.size :].any()
  params["embedding"]["embedding"] = embedding + 1  # training starts them at random
  exported = dict(rules.export_weights(table.table(words.size), params))
  assert exported["model.embed_tokens.weight"].shape == (words.size, model.embed_dim)


def test_weights_of_another_vocabulary_are_refused():
  model, params, words, _ = golden_llama.load()
  exported = dict(rules.export_weights(table.table(words.size), params))
  exported["lm_head.weight"] = exported["lm_head.weight"][:-1]
  with pytest.raises(ValueError, match="lm_head.weight: expected"):
    rules.import_weights(table.table(words.size), exported, params)


def test_packed_documents_do_not_see_each_other():
  model, params = small()
  tokens = np.random.default_rng(1).integers(0, 20, (1, 9)).astype(np.int32)
  segment_ids = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0]], np.int32)
  positions = np.array([[0, 1, 2, 3, 0, 1, 2, 0, 0]], np.int32)
  row = (tokens, positions, segment_ids)
  packed = golden_data.run(model, params, *row, method=hidden_states)
  for span in (slice(0, 4), slice(4, 7)):
    own = [array[:, span] for array in row]
    alone = golden_data.run(model, params, *own, method=hidden_states)
    np.testing.assert_allclose(packed[:, span], alone, atol=1e-5)


def test_attention_is_causal():
  model, params = small()
  tokens = np.arange(6, dtype=np.int32)[None]
  row = (np.arange(6, dtype=np.int32)[None], np.ones((1, 6), np.int32))
  before = golden_data.run(model, params, tokens, *row, method=hidden_states)
  tokens = tokens + (np.arange(6) == 4).astype(np.int32)
  after = golden_data.run(model, params, tokens, *row, method=hidden_states)
  same = np.abs(np.asarray(before - after)).max(-1)[0] < 1e-6
  np.testing.assert_array_equal(same, [True] * 4 + [False] * 2)


def test_gradient_reaches_every_leaf():
  model, params = small()
  tokens = np.arange(24, dtype=np.int32).reshape(2, 12) % 20
  ones = np.ones_like(tokens)

  def loss(params):
    row = (tokens, np.cumsum(ones, 1), ones)
    logits = model.apply({"params": params}, *row, method="everything")
    return jnp.square(jax.nn.softmax(logits)).sum()

  golden_data.assert_all_reached(golden_data.compiled(jax.grad(loss))(params))


def test_holes_have_no_logit():
  model, params = small(holes=((3, 5), (19, 20)))
  hidden = jnp.ones((1, 1, SMALL["embed_dim"]))
  found = model.apply({"params": params}, hidden, method="logits")[0, 0]
  empty = [3, 4, 19, 20, 21, 22, 23]
  assert np.flatnonzero(np.isneginf(found)).tolist() == empty
