"""Stage 2: packed rows, where gradients go, micro-batches, and what stays frozen."""

import functools

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_run

from configs import pretrain as config_file
from lavit_jax.core import sharding
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.data import documents, rows
from lavit_jax.inference import frozen_parts
from lavit_jax.stages import pretrain
from lavit_jax.training import optimizer, train_state

pytestmark = pytest.mark.usefixtures("compile_fast")

WORDS = toy_run.WORDS
INPUTS = ("tokens", "segment_ids", "positions", "feature_index")


def stacked(*chosen: dict) -> dict[str, np.ndarray]:
  return {name: np.stack([row[name] for row in chosen]) for name in chosen[0]}


@functools.cache
def logits_of(length: int, slots: int):
  """Compiled logits of rows of one shape."""
  model, tower = toy_run.language_model(), toy_run.tower()

  @golden_data.compiled
  def run(params, frozen, batch):
    features = frozen_parts.merger_inputs(tower, frozen, batch["images"])
    row = [batch[name] for name in INPUTS]
    variables = {"params": params}
    hidden = model.apply(variables, *row, features, batch["keep"])
    head = lambda m, x: m.llama.logits(x)
    return model.apply(variables, hidden, method=head)

  return run


def test_packed_documents_have_the_logits_of_each_alone():
  rng = np.random.default_rng(3)
  kinds = (
    documents.IMAGE_TEXT,
    documents.TEXT_IMAGE,
    documents.IMAGE_TEXT,
    documents.TEXT,
    documents.UNCONDITIONAL,
  )
  chosen = [toy_run.random_document(rng, kind) for kind in kinds]
  params, frozen = toy_run.language_params(), toy_run.frozen()
  row = stacked(toy_run.row_of(chosen, 56, 3))
  packed = np.asarray(logits_of(56, 3)(params, frozen, row))[0, :, : WORDS.size]
  # Each alone in a row of its own, all of one shape.
  own = stacked(*[toy_run.row_of([document], 16, 1) for document in chosen])
  alone = np.asarray(logits_of(16, 1)(params, frozen, own))[..., : WORDS.size]
  start = 0
  for document, expected in zip(chosen, alone):
    span = packed[start : start + document.length]
    np.testing.assert_allclose(span, expected[: document.length], atol=1e-5)
    start += document.length
  assert start > 45 and np.abs(packed).max() > 1


def test_an_image_reaches_only_its_own_document():
  rng = np.random.default_rng(4)
  kinds = (documents.IMAGE_TEXT, documents.IMAGE_TEXT, documents.TEXT_IMAGE)
  chosen = [toy_run.random_document(rng, kind) for kind in kinds]
  row = stacked(toy_run.row_of(chosen, 56, 3))
  changed = row | {"images": row["images"].copy()}
  changed["images"][0, 1] = 255 - changed["images"][0, 1]
  params, frozen = toy_run.language_params(), toy_run.frozen()
  before, after = (
    np.asarray(logits_of(56, 3)(params, frozen, batch))[0, :, : WORDS.size]
    for batch in (row, changed)
  )
  differs = np.abs(before - after).max(-1) > 1e-4
  segments = row["segment_ids"][0]
  assert not differs[(segments > 0) & (segments != 2)].any()
  # Everything after [IMG] of the second document sees the other picture.
  expected = (segments == 2) & (row["positions"][0] > 0)
  np.testing.assert_array_equal(differs[segments > 0], expected[segments > 0])


@functools.cache
def step_of(accumulate: int, chunks: int):
  """Compiled step that leaves its gradient in the optimizer state."""
  model, tx = toy_run.language_model(), toy_run.recorder()
  step = pretrain.make_step(model, toy_run.tower(), tx, WORDS, accumulate, chunks)
  return golden_data.compiled(step)


def gradient(batch, accumulate=1, chunks=2):
  state = train_state.fresh(toy_run.language_params(), toy_run.recorder())
  step = step_of(accumulate, chunks)
  state, metrics = step(state, toy_run.frozen(), batch, jax.random.key(0))
  return jax.device_get((state.opt_state, metrics))


def test_continuous_positions_send_no_gradient_to_code_embeddings():
  rng = np.random.default_rng(5)
  seen = [toy_run.random_document(rng, documents.IMAGE_TEXT) for _ in range(8)]
  drawn = [toy_run.random_document(rng, documents.TEXT_IMAGE) for _ in range(8)]
  batch = stacked(*[toy_run.row_of(seen[i : i + 2], 56, 2) for i in range(0, 8, 2)])
  grads, metrics = gradient(batch)
  codes = slice(WORDS.code_start, WORDS.size)
  assert metrics["loss"] > 0
  table = grads["llama"]["embedding"]["embedding"]
  assert not table[codes].any()
  assert table[[WORDS.image_start, WORDS.image_end]].any(axis=1).all()
  # They are targets nevertheless, and the picture's way in is trained.
  assert grads["llama"]["head"]["kernel"][:, codes].any()
  assert np.abs(grads["vit_proj"]["kernel"]).max() > 1e-6
  # The same codes as text's continuation are inputs.
  batch = stacked(*[toy_run.row_of(drawn[i : i + 2], 56, 2) for i in range(0, 8, 2)])
  table = gradient(batch)[0]["llama"]["embedding"]["embedding"]
  used = np.unique(batch["tokens"][WORDS.is_code(batch["tokens"])])
  assert table[used].any(axis=1).all()


def test_padded_vocabulary_gets_no_gradient():
  grads, _ = gradient(toy_run.packed_batch(4))
  llama = grads["llama"]
  assert WORDS.size < WORDS.padded_size
  assert not llama["embedding"]["embedding"][WORDS.size :].any()
  assert not llama["head"]["kernel"][:, WORDS.size :].any()
  assert llama["head"]["kernel"][:, : WORDS.size].any(axis=0).all()


def test_gradient_reaches_every_other_parameter():
  grads, _ = gradient(toy_run.packed_batch(4))
  golden_data.assert_all_reached(grads)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_changes_nothing(accumulate):
  batch = toy_run.packed_batch(4)
  # Rows of unequal counts: a mean of means would differ.
  batch["loss_mask"][1:, 9:] = False
  grads, values = gradient(batch)
  found, metrics = gradient(batch, accumulate)
  for name in ("loss", "accuracy", "fill"):
    np.testing.assert_allclose(metrics[name], values[name], atol=1e-6, err_msg=name)
  paths = jax.tree_util.tree_flatten_with_path(found)[0]
  for (path, a), b in zip(paths, jax.tree.leaves(grads), strict=True):
    name = jax.tree_util.keystr(path)
    # Sums of float32 in another order: relative where values are large.
    np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-5, err_msg=name)


def test_loss_is_the_mean_over_supervised_tokens():
  batch = toy_run.packed_batch(4)
  _, metrics = gradient(batch)
  logits = logits_of(56, 2)(toy_run.language_params(), toy_run.frozen(), batch)
  log_probs = jax.nn.log_softmax(np.asarray(logits)[..., : WORDS.size])
  targets = np.roll(batch["tokens"], -1, axis=1)
  picked = np.take_along_axis(np.asarray(log_probs), targets[..., None], -1)[..., 0]
  expected = -picked[batch["loss_mask"]].mean()
  np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
  for number, kind in enumerate(pretrain.KINDS, start=1):
    chosen = batch["target_kind"] == number
    one = -picked[chosen].mean()
    np.testing.assert_allclose(metrics[f"loss_{kind}"], one, rtol=1e-5)
    share = chosen.sum() / batch["loss_mask"].sum()
    np.testing.assert_allclose(metrics[f"share_{kind}"], share, rtol=1e-6)
  real = np.asarray(logits)[..., : WORDS.size]
  summed = np.asarray(jax.nn.logsumexp(real, axis=-1))[batch["loss_mask"]].mean()
  np.testing.assert_allclose(metrics["log_normalizer"], summed, rtol=1e-5)
  kept = batch["keep"].sum(-1)
  kept = kept[kept > 0]
  share = kept.mean() / toy_run.PATCHES
  np.testing.assert_allclose(metrics["kept_share"], share, rtol=1e-5)
  assert metrics["kept_p50"] == np.quantile(kept, 0.5, method="inverted_cdf")
  norms = [metrics[f"gradient_norm_{name}"] for name in ("llama", "merger", "vit_proj")]
  total = np.sqrt(np.square(norms).sum())
  np.testing.assert_allclose(metrics["gradient_norm"], total, rtol=1e-5)
  assert metrics["update_norm_llama"] == 0  # the recorder moves nothing
  filled = (batch["segment_ids"] > 0).mean()
  np.testing.assert_allclose(metrics["fill"], filled, rtol=1e-6)


def test_losses_by_kind_sum_to_the_whole():
  batch = toy_run.packed_batch(2)
  model, tower = toy_run.language_model(), toy_run.tower()

  @golden_data.compiled
  def run(params, frozen, batch):
    found = pretrain.token_loss(model, tower, params, frozen, batch, WORDS, 1)
    figures = pretrain.kind_losses(found, batch["target_kind"])
    return figures, found.losses.sum(), found.count

  figures, total, count = run(toy_run.language_params(), toy_run.frozen(), batch)
  sums = [figures[f"{kind}_sum"] for kind in pretrain.KINDS]
  np.testing.assert_allclose(sum(sums), total, rtol=1e-6)
  for number, kind in enumerate(pretrain.KINDS, start=1):
    assert figures[f"{kind}_count"] == (batch["target_kind"] == number).sum() > 0
  assert sum(figures[f"{kind}_count"] for kind in pretrain.KINDS) == count


@pytest.fixture(scope="module")
def stage(tokenized_data, visual_tokenizer_directory):
  config = toy_run.language_run(tokenized_data, visual_tokenizer_directory)
  return pretrain.build(config, sharding.make_mesh(dict(config.mesh)))


def test_frozen_parts_hold_no_optimizer_state(stage):
  trained = train_state.count(stage.abstract.params)
  assert set(stage.abstract.params) == {"llama", "merger", "vit_proj"}
  assert set(stage.frozen) == {"vit", "whitening"}
  # Muon keeps one moment of each kernel, AdamW two of everything else.
  moments = train_state.count(stage.abstract.opt_state)
  assert trained < moments < 2 * trained + 5
  assert {leaf.dtype for leaf in jax.tree.leaves(stage.abstract.params)} == {
    jnp.dtype("float32")
  }


def test_a_step_changes_what_trains_and_nothing_frozen(stage):
  state = stage.initial(0)
  before = jax.device_get((state.params, stage.frozen))
  batch, position = next(stage.batches(0))
  with jax.set_mesh(stage.mesh):
    for number in range(2):  # the first step has learning rate 0
      key = jax.random.fold_in(jax.random.key(0), number)
      state, _ = stage.step(number)(state, stage.frozen, batch, key)
  after = jax.device_get((state.params, stage.frozen))
  assert position == 4 and int(state.step) == 2
  jax.tree.map(np.testing.assert_array_equal, after[1], before[1])
  still = jax.tree.map(lambda a, b: np.array_equal(a, b), after[0], before[0])
  assert not any(jax.tree.leaves(still))
  placed = jax.tree.map(
    lambda a, s: a.sharding.is_equivalent_to(s, a.ndim), state, stage.shardings
  )
  assert all(jax.tree.leaves(placed))


def test_the_merger_starts_as_that_of_stage_1(stage):
  merger = jax.device_get(stage.initial(1).params["merger"])
  expected = toy_run.visual_tokenizer_params()["merger"]
  jax.tree.map(np.testing.assert_array_equal, merger, expected)


def test_learning_rate_groups_of_the_paper():
  config = config_file.get_config("7b")
  rate = optimizer.schedule(config.optimizer, config.num_steps)(2000)
  groups = dict(config.optimizer.groups)
  # 1e-5 level for language model and vocabulary, 1e-4 level for the visual part.
  assert 1e-5 <= rate * groups["llama"] < 1e-4 <= rate


def test_text_of_another_kind_is_no_target():
  """Prompt ids are inputs only: nothing of a question is learnt."""
  rng = np.random.default_rng(6)
  document = toy_run.random_document(rng, documents.IMAGE_TEXT)
  row = toy_run.row_of([document], 24, 1)
  first = len(document.codes) + 2
  prompt = len(document.turns[0][0])
  asked = slice(first - 1, first - 1 + prompt)
  assert prompt == 2 and not row["loss_mask"][asked].any()
  assert (row["target_kind"][asked] == rows.NO_TARGET).all()


def test_vocabulary_of_the_model_is_joint():
  model = toy_run.language_model(words=Vocabulary(100, 30))
  assert (model.llama.vocab_size, model.llama.padded_size) == (132, 256)
