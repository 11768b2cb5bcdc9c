"""Cached decoding against the reference and against the plain forward pass."""

import functools

import golden_data
import golden_llama
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.generate import decode, logits, prompts
from lavit_jax.vocabulary import END, Vocabulary

golden = functools.cache(golden_llama.load)
SUFFIXES = {"": 3.0, "_scale15": 1.5}  # of the golden arrays, and their guidance
WARPERS = dict(temperature=0.7, top_k=9, top_p=0.8)


@pytest.fixture(autouse=True, scope="module")
def compile_fast():
  """Small programs that run once: compiling is nearly all of their time."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def embed(model, params, ids) -> jax.Array:
  return params["embedding"]["embedding"][np.asarray(ids)]


def keys(count: int, seed: int = 0) -> jax.Array:
  return jax.random.split(jax.random.key(seed), count)


def positions_of(mask) -> np.ndarray:
  return np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32)


def run(inputs, mask, settings, own_keys=None):
  """Generates with the golden model; inputs are vectors f[B, T, D]."""
  model, params, words, _ = golden()
  mask = np.asarray(mask, np.int32)
  own_keys = keys(len(mask)) if own_keys is None else own_keys
  free = embed(model, params, [words.image_start])
  row = (jnp.asarray(inputs), mask, positions_of(mask))
  return decode.generate(model, params, *row, words, settings, own_keys, free)


def run_ids(requests: list[list[int]], settings, own_keys=None):
  model, params, *_ = golden()
  asked = [prompts.Prompt(np.array(r), np.full(len(r), -1)) for r in requests]
  batch = prompts.left_padded(asked, max(map(len, asked)))
  vectors = embed(model, params, batch.tokens)
  return run(vectors, batch.segment_ids, settings, own_keys)


def all_logits(tokens, segment_ids, path) -> np.ndarray:
  """Logits before each id of a path, in one uncached pass: float32[B, n, V]."""
  model, params, *_ = golden()
  tokens = np.concatenate([tokens, path], axis=1).astype(np.int32)
  ones = np.ones(path.shape, np.int32)
  segment_ids = np.concatenate([segment_ids, ones], axis=1).astype(np.int32)
  whole = golden_data.run(
    model, params, tokens, positions_of(segment_ids), segment_ids, method="everything"
  )
  return np.asarray(whole)[:, -path.shape[1] - 1 : -1]


def test_golden_greedy():
  _, _, words, arrays = golden()
  expected = arrays["greedy_ids"][:, 1:]
  settings = logits.Settings(
    end=END, allowed="text", max_new=expected.shape[1], min_new=2
  )
  found = run(arrays["inputs_embeds"], arrays["attention_mask"], settings)
  np.testing.assert_array_equal(found.ids, expected)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_golden_guided_greedy(suffix):
  model, params, words, arrays = golden()
  expected = arrays[f"t2i_greedy_ids{suffix}"][:, 1:]
  settings = logits.Settings(
    end=words.image_end,
    allowed="reference",
    max_new=expected.shape[1],
    min_new=5,
    guidance=SUFFIXES[suffix],
  )
  vectors = embed(model, params, arrays["t2i_prompt_ids"])
  found = run(vectors, arrays["t2i_prompt_mask"], settings)
  np.testing.assert_array_equal(found.ids, expected)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
  "kind, scores, copies, warpers",
  [("greedy", "greedy_scores", 1, {}), ("sample", "sample_warped_scores", 2, WARPERS)],
)
def test_golden_scores_along_a_path(suffix, kind, scores, copies, warpers):
  _, _, words, arrays = golden()
  expected = arrays[f"t2i_{scores}{suffix}"]
  path = arrays[f"t2i_{kind}_ids{suffix}"][:, 1:]
  tokens, mask = (
    np.repeat(arrays[f"t2i_prompt_{name}"], copies, axis=0) for name in ("ids", "mask")
  )
  prompted = all_logits(tokens, mask, path)
  start = np.full((len(path), 1), words.image_start)
  free = all_logits(start, np.ones_like(start), path)
  settings = logits.Settings(
    end=words.image_end,
    allowed="reference",
    max_new=path.shape[1],
    min_new=5,
    guidance=SUFFIXES[suffix],
    **warpers,
  )
  allowed = jnp.asarray(logits.reference_drawing_ids(words))
  for step in range(path.shape[1]):
    open_ = ~(path[:, :step] == words.image_end).any(axis=1)
    streams = (jnp.asarray(prompted[:, step]), jnp.asarray(free[:, step]))
    found = logits.process(*streams, jnp.array(step), allowed, settings)
    np.testing.assert_allclose(
      np.asarray(found)[open_, : words.size],
      expected[open_, step],
      atol=1e-4,
      rtol=1e-4,
      err_msg=f"step {step}",
    )


TEXT = logits.Settings(end=END, allowed="text", max_new=6)


def test_cached_greedy_equals_the_argmax_of_the_plain_pass():
  _, _, words, _ = golden()
  requests = [[5, 9, 11, 3], [7, words.image_start]]
  found = run_ids(requests, TEXT)
  allowed = logits.text_ids(words)
  for row, request in enumerate(requests):
    path = np.asarray(found.ids)[row : row + 1, : int(found.lengths[row])]
    tokens = np.array([request])
    plain = all_logits(tokens, np.ones_like(tokens), path)
    best = np.where(allowed, plain, -np.inf).argmax(-1)
    np.testing.assert_array_equal(best, path)


def test_a_sequence_does_not_depend_on_its_batch():
  _, _, words, _ = golden()
  settings = logits.Settings(
    end=words.image_end,
    allowed="codes",
    max_new=8,
    temperature=1.0,
    top_k=10,
    guidance=2.0,
  )
  requests, own = [[5, 9, 11, 3, 40], [7, 40], list(range(3, 12)) + [40]], keys(3)
  together = run_ids(requests, settings, own)
  for i, request in enumerate(requests):
    alone = run_ids([request], settings, own[i : i + 1])
    np.testing.assert_array_equal(alone.ids[0], together.ids[i])
    np.testing.assert_allclose(alone.scores[0], together.scores[i], atol=1e-5)


def test_only_allowed_ids_come_out():
  _, _, words, _ = golden()
  for kind, end in (("text", END), ("codes", words.image_end)):
    settings = logits.Settings(end=end, allowed=kind, max_new=8, temperature=2.0)
    found = run_ids([[5, 9]] * 4, settings, keys(4, seed=3))
    allowed = logits.ALLOWED[kind](words)
    for ids, length in zip(np.asarray(found.ids), np.asarray(found.lengths)):
      assert allowed[ids[:length]].all()
      assert (ids[length + 1 :] == decode.PAD).all()
      assert end not in ids[:length]


def test_keys_decide_what_is_sampled():
  settings = logits.Settings(end=END, allowed="text", max_new=6, temperature=1.0)
  ids = lambda seed: np.asarray(run_ids([[5, 9]], settings, keys(1, seed)).ids)
  np.testing.assert_array_equal(ids(1), ids(1))
  assert (ids(1) != ids(2)).any()


def test_guidance_of_one_needs_no_second_stream():
  model, params, words, _ = golden()
  guided = run_ids([[5, 40]], TEXT)
  mask = np.ones((1, 2), np.int32)
  row = (embed(model, params, [[5, 40]]), mask, positions_of(mask))
  alone = decode.generate(model, params, *row, words, TEXT, keys(1))
  np.testing.assert_array_equal(guided.ids, alone.ids)
  strong = logits.Settings(end=END, allowed="text", max_new=6, guidance=2.0)
  with pytest.raises(ValueError, match="needs an unconditional prompt"):
    decode.generate(model, params, *row, words, strong, keys(1))


def test_scores_are_log_probabilities_of_the_choice():
  _, _, words, _ = golden()
  settings = logits.Settings(end=END, allowed="text", max_new=2)
  found = run_ids([[5, 9, 3]], settings)
  tokens, path = np.array([[5, 9, 3]]), np.asarray(found.ids)
  plain = all_logits(tokens, np.ones_like(tokens), path)[0, 0, : words.text_size]
  expected = jax.nn.log_softmax(jnp.asarray(plain))[path[0, 0]]
  np.testing.assert_allclose(found.scores[0, 0], expected, atol=1e-5)


def test_new_lengths_reuse_the_program():
  run_ids([[5, 9, 11]], TEXT)
  before = decode._generate._cache_size()
  run_ids([[5, 9, 11, 12, 13, 14]], TEXT)
  assert decode._generate._cache_size() == before
  assert [decode.bucket(n) for n in (1, 32, 33)] == [32, 32, 64]


def test_golden_layout_of_questions():
  """All padding goes left of [IMG] features [/IMG] text, as in the reference."""
  _, _, arrays = golden_data.load("llm_splice.npz")
  words = Vocabulary(text_size=20, num_codes=4)
  lens, dim = arrays["visual_lens"], arrays["visual"].shape[1]
  texts = [
    rows[mask > 0]
    for rows, mask in zip(arrays["prompt_embeds"], arrays["prompt_attns"])
  ]
  table = {END: arrays["emb_eos"], words.image_start: arrays["emb_img"]}
  table[words.image_end] = arrays["emb_img_end"]
  slots = np.zeros((len(lens), max(lens) + 1, dim), np.float32)
  ends, asked = np.cumsum(lens), []
  for i, text in enumerate(texts):
    ids = [3 + 8 * i + j for j in range(len(text))]
    table |= dict(zip(ids, text))
    keep = np.arange(slots.shape[1]) > 0  # the kept patches need not be the first
    keep[1 + lens[i] :] = False
    slots[i, keep] = arrays["visual"][ends[i] - lens[i] : ends[i]]
    asked.append(prompts.understanding(keep, ids, words))
  length = arrays["vqa_attention_mask"].shape[1]
  batch = prompts.left_padded(asked, length)
  np.testing.assert_array_equal(batch.segment_ids, arrays["vqa_attention_mask"])
  for i in range(len(lens)):
    vectors = [
      slots[i, patch] if patch >= 0 else table[token]
      for token, patch in zip(batch.tokens[i].tolist(), batch.feature_index[i])
    ]
    np.testing.assert_allclose(vectors, arrays["vqa_inputs_embeds"][i], atol=1e-6)
    # The reference's captions pad in between; what is not padding is the same.
    real = batch.segment_ids[i] > 0
    other = arrays["caption_inputs_embeds"][i][arrays["caption_attention_mask"][i] > 0]
    np.testing.assert_allclose(np.array(vectors)[real], other, atol=1e-6)


def test_prompts_that_do_not_fit_are_refused():
  words = Vocabulary(text_size=20, num_codes=4)
  with pytest.raises(ValueError, match="at most 3 tokens, got 4"):
    prompts.left_padded([prompts.drawing([3, 4, 5], words)], 3)
