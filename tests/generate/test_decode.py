"""Greedy decoding and sampling against the reference and the plain forward pass."""

import functools

import generating
import golden_data
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.core import sharding
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.generate import beam, decode, engine, logits, prompts, serving

SUFFIXES = {"": 3.0, "_scale15": 1.5}  # of the golden arrays, and their guidance
WARPERS = dict(temperature=0.7, top_k=9, top_p=0.8)
TEXT = logits.Settings(end=Vocabulary.end, allowed="text", max_new=6)


pytestmark = pytest.mark.usefixtures("compile_fast")


def positions_of(mask) -> np.ndarray:
  return np.maximum(np.cumsum(mask, axis=1) - 1, 0).astype(np.int32)


@functools.cache
def plain_program():
  """One compiled uncached pass: logits float32[B, T, V]."""
  model, params, *_ = generating.golden()
  apply = lambda params, *row: model.apply(
    {"params": params}, *row, method="everything"
  )
  return functools.partial(golden_data.compiled(apply), params)


def all_logits(tokens, segment_ids, path) -> np.ndarray:
  """Logits before each id of a path: float32[B, n, V]."""
  tokens = np.concatenate([tokens, path], axis=1).astype(np.int32)
  ones = np.ones(path.shape, np.int32)
  segment_ids = np.concatenate([segment_ids, ones], axis=1).astype(np.int32)
  whole = plain_program()(tokens, positions_of(segment_ids), segment_ids)
  return np.asarray(whole)[:, -path.shape[1] - 1 : -1]


def drawing(**changes) -> logits.Settings:
  words = generating.golden()[2]
  fields = dict(end=words.image_end, allowed="codes", max_new=6)
  return logits.Settings(**fields | changes)


def test_golden_greedy():
  *_, arrays = generating.golden()
  expected = arrays["greedy_ids"][:, 1:]
  how = logits.Settings(
    end=Vocabulary.end, allowed="text", max_new=expected.shape[1], min_new=2
  )
  found = generating.from_vectors(
    arrays["inputs_embeds"], arrays["attention_mask"], how
  )
  ids = generating.padded(found, Vocabulary.end, expected.shape[1])
  np.testing.assert_array_equal(ids, expected)


def test_golden_guided_greedy():
  """Both scales in one batch."""
  _, _, words, arrays = generating.golden()
  asked, how, expected = [], [], []
  for suffix, guidance in SUFFIXES.items():
    rows = zip(arrays["t2i_prompt_ids"], arrays["t2i_prompt_mask"])
    asked += [row[mask > 0] for row, mask in rows]
    expected += [*arrays[f"t2i_greedy_ids{suffix}"][:, 1:]]
    own = dict(allowed="reference", max_new=12, min_new=5, guidance=guidance)
    how += [drawing(**own)] * arrays["t2i_prompt_ids"].shape[0]
  found = generating.from_ids(asked, how)
  ids = generating.padded(found, words.image_end, len(expected[0]))
  np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
  "kind, scores, copies, warpers",
  [("greedy", "greedy_scores", 1, {}), ("sample", "sample_warped_scores", 2, WARPERS)],
)
def test_golden_scores_along_a_path(suffix, kind, scores, copies, warpers):
  _, _, words, arrays = generating.golden()
  expected = arrays[f"t2i_{scores}{suffix}"]
  path = arrays[f"t2i_{kind}_ids{suffix}"][:, 1:]
  tokens, mask = (
    np.repeat(arrays[f"t2i_prompt_{name}"], copies, axis=0) for name in ("ids", "mask")
  )
  prompted = all_logits(tokens, mask, path)
  start = np.full((len(path), 1), words.image_start)
  free = all_logits(start, np.ones_like(start), path)
  own = drawing(
    allowed="reference", max_new=12, min_new=5, guidance=SUFFIXES[suffix], **warpers
  )
  rows = logits.rows([own] * len(path))

  @golden_data.compiled
  def process(prompted, free, step):
    found = logits.score(prompted, free, None, step, words, rows)
    if not warpers:
      return found
    ranked, ids = logits.warp(found, found.shape[1], rows)
    put = lambda row, at: jnp.full_like(row, -jnp.inf).at[at].set(row)
    return jax.vmap(put)(ranked, ids)

  for step in range(path.shape[1]):
    open_ = ~(path[:, :step] == words.image_end).any(axis=1)
    found = process(prompted[:, step], free[:, step], step)
    np.testing.assert_allclose(
      np.asarray(found)[open_, : words.size],
      expected[open_, step],
      atol=1e-4,
      rtol=1e-4,
      err_msg=f"step {step}",
    )


def test_cached_greedy_equals_the_argmax_of_the_plain_pass():
  *_, words, _ = generating.golden()
  asked = [[5, 9, 11, 3], [7, words.image_start]]
  allowed = logits.text_ids(words)
  for request, (reply,) in zip(asked, generating.from_ids(asked, TEXT)):
    path, tokens = np.array([[*reply.ids, 0]])[:, :6], np.array([request])
    plain = all_logits(tokens, np.ones_like(tokens), path)
    plain = np.where(allowed, plain, -np.inf)[0, : len(reply.ids)]
    np.testing.assert_array_equal(plain.argmax(-1), reply.ids)
    sums = np.asarray(jax.nn.log_softmax(plain)).max(-1).sum()
    if not reply.ended:
      np.testing.assert_allclose(reply.score, sums, atol=1e-4)


def mixture() -> tuple[list, list]:
  """Captions, a search, drawings with and without guidance, and a penalty."""
  asked = [[5, 9, 11, 3, 40], [7, 40], [*range(3, 12), 40], [6], [8, 9], [4, 40]]
  warm = dict(temperature=1.0, top_k=10)
  how = [
    drawing(max_new=8, guidance=2.0, **warm),
    TEXT,
    drawing(guidance=5.0, **warm, top_p=0.7),
    beam.Beams(TEXT, 2),
    logits.Settings(
      end=Vocabulary.end, allowed="text", max_new=6, repetition_penalty=1.5
    ),
    drawing(temperature=0.5, min_new=3),
  ]
  return asked, how


def test_a_batch_mixes_requests_and_replies_do_not_depend_on_it():
  asked, how = mixture()
  together = generating.from_ids(asked, how)
  for i in (0, 1, 3):  # a guided drawing, a text, a search
    alone = generating.from_ids([asked[i]], [how[i]], seeds=[i])[0]
    assert len(alone) == len(together[i])
    for one, other in zip(alone, together[i]):
      np.testing.assert_array_equal(one.ids, other.ids)
      np.testing.assert_allclose(one.score, other.score, atol=1e-4)


def test_only_allowed_ids_come_out():
  words = generating.golden()[2]
  warm = dict(max_new=8, temperature=2.0)
  for own in (
    logits.Settings(end=Vocabulary.end, allowed="text", **warm),
    drawing(**warm),
  ):
    allowed = logits.ALLOWED[own.allowed](words)
    for (reply,) in generating.from_ids([[5, 9]] * 4, own):
      assert allowed[reply.ids].all() and own.end not in reply.ids


def test_keys_decide_what_is_sampled():
  own = logits.Settings(end=Vocabulary.end, allowed="text", max_new=6, temperature=1.0)
  ids = lambda seed: generating.from_ids([[5, 9]], own, [seed])[0][0].ids.tolist()
  assert ids(1) == ids(1)
  assert ids(1) != ids(2)


def test_a_repetition_penalty_forbids_what_was_chosen():
  own = dict(end=Vocabulary.end, allowed="text", max_new=6, min_new=5)
  strong = logits.Settings(**own, repetition_penalty=1e6)
  for how in (strong, beam.Beams(strong, 2)):
    ids = generating.from_ids([[5, 9]], how)[0][0].ids.tolist()
    assert len(set(ids)) == len(ids) >= 5
  plain = logits.Settings(**own)
  unique = {len(set(r[0].ids)) for r in generating.from_ids([[5, 9], [7]], plain)}
  assert min(unique) < 5


def test_streams_end_at_the_reply():
  *_, words, _ = generating.golden()
  own = drawing(max_new=11, temperature=1.0)
  request = engine.Request(generating.text([5, 9]), own, generating.key_data(0))
  stream = engine.stream(generating.side(), request, generating.vectors)
  seen = [ids.tolist() for ids in stream]
  (reply,) = generating.from_ids([[5, 9]], own, [0])[0]
  assert seen[-1] == reply.ids.tolist()
  assert len(seen) > 1 and len(seen[0]) <= 1
  assert all(b[: len(a)] == a for a, b in zip(seen, seen[1:]))
  search = engine.Request(generating.text([5]), beam.Beams(TEXT, 2))
  with pytest.raises(ValueError, match="no text before its end"):
    next(engine.stream(generating.side(), search, generating.vectors))


def compilations(run) -> int:
  """How many programs are compiled while `run` runs."""
  found = []
  listen = lambda event, seconds, **_: found.append(event)
  jax.monitoring.register_event_duration_secs_listener(listen)
  run()
  jax.monitoring.unregister_event_duration_listener(listen)
  return sum("backend_compile" in event for event in found)


def test_other_lengths_and_settings_of_a_bucket_compile_nothing():
  asked, how = mixture()
  generating.from_ids(asked, how)
  warm = dict(temperature=0.3, top_k=7)
  other = [
    drawing(max_new=7, guidance=1.5, **warm),
    logits.Settings(end=Vocabulary.end, allowed="text", max_new=5, min_new=2),
    drawing(guidance=3.0, **warm),
    beam.Beams(TEXT, 2, length_penalty=0.5, early_stopping=True),
    logits.Settings(
      end=Vocabulary.end, allowed="text", max_new=4, repetition_penalty=2.0
    ),
    drawing(max_new=8, temperature=0.9),
  ]
  longer = [[*ids, *range(3, 23)] for ids in asked]
  assert compilations(lambda: generating.from_ids(longer, other)) == 0
  assert compilations(lambda: generating.from_ids([list(range(3, 36))], TEXT)) > 0


def test_buckets_are_few():
  sizes = lambda least, steps, numbers: [
    engine.bucket(n, least, steps) for n in numbers
  ]
  assert sizes(32, 2, (1, 32, 33, 49, 65, 97)) == [32, 32, 48, 64, 96, 128]
  assert sizes(32, 4, (1, 33, 49, 65, 97, 113)) == [32, 40, 56, 80, 112, 128]
  assert sizes(8, 2, (1, 9, 12, 13, 36, 200)) == [8, 12, 12, 16, 48, 256]
  assert sizes(1, 2, (1, 2, 3, 5)) == [1, 2, 3, 6]
  assert len({engine.bucket(n, 32) for n in range(1, 2049)}) == 13
  assert len({engine.bucket(n, 32, 4) for n in range(1, 2049)}) == 25


def test_batches_are_full_and_no_longer_than_they_must_be():
  asked = [
    engine.Request(prompts.Prompt(np.zeros(n, np.int32), np.zeros(n, np.int32)), TEXT)
    for n in (97, 65, 100, 128, 90)
  ]
  assert list(engine.groups(asked, 2)) == [(96, [1, 4]), (112, [0, 2]), (128, [3])]


def test_the_cache_is_donated():
  state = engine._start(
    generating.side(),
    [engine.Request(generating.text([5, 9]), TEXT)],
    [0],
    generating.vectors,
    32,
  )
  before, rows, keys, shape = state
  after = decode.advance(generating.side(), before, rows, keys, jnp.int32(3), shape)
  assert before.cache.key[0].is_deleted() and before.cache.value[-1].is_deleted()
  assert not after.cache.key[0].is_deleted()


def test_a_mesh_gives_the_same_replies():
  model, params, words, _ = generating.golden()
  mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
  spread = serving.prepare(model, params, words, mesh)
  asked, how = (both[:4] for both in mixture())
  requests = [
    engine.Request(generating.text(ids), own, generating.key_data(i))
    for i, (ids, own) in enumerate(zip(asked, how))
  ]
  embed = lambda batch, members: generating.embed(model, spread.weights, batch.tokens)
  with jax.set_mesh(mesh):
    found = engine.generate(spread, requests, embed, 8)
  for one, other in zip(found, generating.from_ids(asked, how)):
    assert [r.ids.tolist() for r in one] == [r.ids.tolist() for r in other]


def test_grouped_queries_are_laid_out_with_their_key_heads():
  import test_llama

  model, params = test_llama.small(rope_scaling=(8.0, 1.0, 4.0, 16.0))
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  side = serving.prepare(model, params, Vocabulary(10, 8), mesh)
  tokens = np.random.default_rng(0).integers(0, 20, (2, 7)).astype(np.int32)
  segment_ids = np.array([[1] * 7, [0] * 2 + [1] * 5], np.int32)
  row = (tokens, positions_of(segment_ids), segment_ids)
  whole = golden_data.run(model, params, *row, method="everything")

  @golden_data.compiled
  def cached(side):
    inputs = serving.embed(model, side.weights, tokens[:, :6])
    first = (inputs, segment_ids[:, :6], row[1][:, :6], 3)
    before, cache = serving.prefill(model, side.weights, *first)
    mask = np.pad(segment_ids > 0, ((0, 0), (0, 2)))[:, None]
    last = (cache, tokens[:, 6:], row[1][:, 6:], mask, 6)
    return before, serving.extend(model, side.weights, *last)[0][:, 0]

  before, after = cached(side)
  np.testing.assert_allclose(before, whole[:, 5], atol=2e-5)
  np.testing.assert_allclose(after, whole[:, 6], atol=2e-5)


def test_golden_layout_of_questions():
  """All padding goes left of [IMG] features [/IMG] text, as in the reference."""
  _, _, arrays = golden_data.load("llm_splice.npz")
  words = Vocabulary(text_size=20, num_codes=4)
  lens, dim = arrays["visual_lens"], arrays["visual"].shape[1]
  texts = [
    rows[mask > 0]
    for rows, mask in zip(arrays["prompt_embeds"], arrays["prompt_attns"])
  ]
  table = {Vocabulary.end: arrays["emb_eos"], words.image_start: arrays["emb_img"]}
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
  batch = prompts.left_padded(asked, length, words.pad)
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
    prompts.left_padded([prompts.drawing([3, 4, 5], words)], 3, words.pad)
