"""The token merger against the reference, and its softmax at the edges."""

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.layers import linear
from lavit_jax.models import merger
from lavit_jax.weights import visual_tokenizer

SIZES = dict(embed_dim=16, num_layers=2, num_heads=2, head_dim=8, mlp_dim=24)


def with_details(model, params, features, keep):
  """The output, and what every golden array is called."""
  out, sown = golden_data.run_sown(model, params, features, keep)
  details = {"out": out, "x_origin": golden_data.sown(sown, "origin")}
  for name, path in {
    "causal_out": "blocks/causal_out",
    "cross_out": "blocks/cross_out",
    "out": "blocks/out",
    "causal_probs": "blocks/causal_attn/weights",
    "cross_probs": "blocks/cross_attn/weights",
  }.items():
    for i, array in enumerate(golden_data.sown(sown, path)):
      details[f"block{i}_{name}"] = array
  return out, details


@pytest.mark.parametrize("name", golden_data.names("token_merger*.npz"))
def test_golden_merger(name):
  state, dims, arrays = golden_data.load(name)
  model = merger.Merger(**golden_data.trunk_sizes(state, dims), dtype="float32")
  for case in golden_data.cases(arrays).values():
    x, keep = jnp.asarray(case["x"]), jnp.asarray(case["decisions"])
    target = golden_data.abstract_params(model, x, keep)
    params = golden_data.import_checked(visual_tokenizer.MERGER, state, target)
    _, details = with_details(model, params, x, keep)
    atol = 2e-4 if "stress" in name else golden_data.ATOL
    golden_data.check(details, case, inputs=("x", "decisions"), atol=atol)


def test_golden_vit_proj():
  state, _, arrays = golden_data.load("vit_proj.npz")
  outputs, inputs = state["vit_proj.weight"].shape
  layer = linear.dense(inputs, outputs, dtype="float32")
  for case in golden_data.cases(arrays).values():
    x = jnp.asarray(case["x"])
    target = {"vit_proj": golden_data.abstract_params(layer, x)}
    params = golden_data.import_checked(visual_tokenizer.VIT_PROJ, state, target)
    out = np.asarray(golden_data.run(layer, params["vit_proj"], x))
    _, _, selected = golden_data.load("token_predictor.npz")
    packed = out[selected["keep"] > 0]
    golden_data.check({"out": out, "packed_out": packed}, case, inputs=("x",))


def numpy_policy_softmax(scores, allowed, eps=1e-6):
  """An independent policy softmax: one row at a time, in float64."""
  out = np.empty(scores.shape, np.float64)
  for index in np.ndindex(scores.shape[:-1]):
    row = scores[index].astype(np.float64)
    weight = np.exp(row - row.max())
    weight[allowed[index] == 0] = 0.0
    out[index] = (weight + eps / len(row)) / (weight.sum() + eps)
  return out


def test_policy_softmax_leaks_to_a_large_forbidden_score():
  scores = np.array([[[[20.0, 0.0, 1.0]]]], np.float32)
  allowed = np.array([[[[0.0, 1.0, 1.0]]]], np.float32)
  weights = merger.policy_softmax(jnp.asarray(scores), jnp.asarray(allowed))
  np.testing.assert_allclose(weights, numpy_policy_softmax(scores, allowed), rtol=1e-4)
  assert weights[0, 0, 0, 0] > 0.3  # forbidden, yet almost uniform
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


def test_policies_by_hand():
  keep = jnp.array([[1.0, 0.0, 1.0]])
  causal = [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
  np.testing.assert_array_equal(merger.causal_policy(keep)[0], causal)
  np.testing.assert_array_equal(merger.cross_policy(keep), [[[0, 1, 0]]])


def initialized(gain=1.0, patches=9):
  model = merger.Merger(**SIZES, dtype="float32")
  features = 2 * jax.random.normal(jax.random.key(0), (2, patches, 16))
  keep = jnp.ones((2, patches))
  params = golden_data.random_params(model, features, keep)
  return model, jax.tree.map(lambda leaf: leaf * gain, params), features


def test_all_kept_cross_attention_is_uniform():
  model, params, features = initialized()
  _, details = with_details(model, params, features, jnp.ones((2, 9), bool))
  for i in range(2):
    np.testing.assert_allclose(details[f"block{i}_cross_probs"], 1 / 9, rtol=1e-5)


def test_one_kept_is_all_that_others_see():
  model, params, features = initialized()
  keep = jnp.zeros((2, 9)).at[:, 4].set(1)
  _, details = with_details(model, params, features, keep)
  for i in range(2):
    weights = details[f"block{i}_causal_probs"]  # [B, N, T, S]
    seen = np.eye(9, dtype=bool) | (
      np.tril(np.ones((9, 9), bool)) & (np.arange(9) == 4)
    )
    assert weights[:, :, ~seen].max() < 1e-3
    np.testing.assert_allclose(details[f"block{i}_cross_probs"][..., 4], 0, atol=1e-3)


def test_none_kept_sees_only_itself():
  model, params, features = initialized()
  _, details = with_details(model, params, features, jnp.zeros((2, 9)))
  for i in range(2):
    weights = details[f"block{i}_causal_probs"]
    itself = np.broadcast_to(np.eye(9), weights.shape)
    np.testing.assert_allclose(weights, itself, atol=1e-3)


def test_large_weights_leak_as_the_policy_softmax_says():
  model, params, features = initialized(gain=2.2)
  keep = (jax.random.uniform(jax.random.key(3), (2, 9)) < 0.4).astype(jnp.float32)
  _, details = with_details(model, params, features, keep)
  wide = np.asarray(features, np.float64)
  centered = wide - wide.mean(-1, keepdims=True)
  normed = centered / np.sqrt(np.square(centered).mean(-1, keepdims=True) + 1e-5)
  first = jax.tree.map(lambda leaf: leaf[0], params["blocks"])
  normed = normed * first["norm0"]["scale"] + first["norm0"]["bias"]
  qkv = first["causal_attn"]["qkv"]
  query, key = (
    np.einsum("btd,dnh->bnth", normed, qkv["kernel"][:, c]) + qkv["bias"][c][:, None]
    for c in (0, 1)
  )
  scores = np.einsum("bnth,bnsh->bnts", query, key) / np.sqrt(8)
  allowed = np.zeros((2, 9, 9))
  for b, i, j in np.ndindex(2, 9, 9):
    allowed[b, i, j] = j <= i and (keep[b, j] > 0 or i == j)
  allowed = np.broadcast_to(allowed[:, None], scores.shape)
  expected = numpy_policy_softmax(scores, allowed)
  actual = np.asarray(details["block0_causal_probs"])
  np.testing.assert_allclose(actual, expected, rtol=1e-3)
  assert actual[allowed == 0].max() > 1e-2  # it does leak


def test_bool_and_float_keep_agree():
  model, params, features = initialized()
  keep = jax.random.uniform(jax.random.key(3), (2, 9)) < 0.5
  run = lambda keep: golden_data.run(model, params, features, keep)
  np.testing.assert_array_equal(run(keep), run(keep.astype(jnp.float32)))


def test_gradient_reaches_every_leaf_and_the_mask():
  _, params, features = initialized()
  model = merger.Merger(**SIZES, dtype="float32", remat="full")
  keep = (jax.random.uniform(jax.random.key(3), (2, 9)) < 0.5).astype(jnp.float32)

  def loss(params, keep):
    out = model.apply({"params": params}, features, keep)
    return (out * jax.random.normal(jax.random.key(4), out.shape)).sum()

  grads, keep_grad = golden_data.compiled(jax.grad(loss, argnums=(0, 1)))(params, keep)
  golden_data.assert_all_reached(grads)
  assert (np.abs(keep_grad) > 0).all()


def test_features_of_another_width_are_refused():
  model, params, _ = initialized()
  with pytest.raises(ValueError, match="width 16, got 8"):
    model.apply({"params": params}, jnp.zeros((1, 9, 8)), jnp.ones((1, 9)))
