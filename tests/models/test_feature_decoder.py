"""The feature decoder and its heads against the reference, and their edges."""

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.layers import linear
from lavit_jax.models import condition_heads, feature_decoder
from lavit_jax.weights import visual_tokenizer

SIZES = dict(
  embed_dim=16,
  num_layers=2,
  num_heads=2,
  head_dim=8,
  mlp_dim=24,
  num_patches=6,
  code_dim=4,
)


def left_packed(packed, lengths):
  """[sum T, C] rows of all images -> [B, max T, C], zero padded."""
  padded = np.zeros((len(lengths), max(lengths), packed.shape[-1]), packed.dtype)
  for image, rows in enumerate(np.split(packed, np.cumsum(lengths)[:-1])):
    padded[image, : len(rows)] = rows
  return padded


def golden_decoder(state, dims):
  decoder = feature_decoder.FeatureDecoder(
    **golden_data.trunk_sizes(state, dims),
    num_patches=state["query_embed"].shape[1],
    code_dim=state["in_proj.weight"].shape[1],
    dtype="float32",
  )
  if "unet_proj.weight" in state:
    head = condition_heads.LowResHead(state["unet_proj.weight"].shape[0], "float32")
    return decoder, head, visual_tokenizer.LOWRES
  head = condition_heads.HighResHead(
    first_dim=state["unet_proj_1.weight"].shape[0],
    second_dim=state["unet_proj_2.weight"].shape[0],
    pooled_dim=state["unet_attnpool.c_proj.weight"].shape[0],
    num_heads=decoder.num_heads,
    head_dim=decoder.head_dim,
    dtype="float32",
  )
  return decoder, head, visual_tokenizer.HIGHRES


@pytest.mark.parametrize("name", golden_data.names("decoder_*.npz"))
def test_golden_decoder(name):
  state, dims, arrays = golden_data.load(name)
  decoder, head, table = golden_decoder(state, dims)
  for case in golden_data.cases(arrays).values():
    lengths = np.asarray(case["token_nums"], np.int32)
    vectors = left_packed(case["x"], lengths)
    x_rec = jnp.zeros((len(lengths), decoder.num_patches, decoder.embed_dim))
    target = {
      "feature_decoder": golden_data.abstract_params(decoder, vectors, lengths),
      "head": golden_data.abstract_params(head, x_rec),
    }
    params = golden_data.import_checked(table, state, target)
    x_rec, sown = golden_data.run_sown(
      decoder, params["feature_decoder"], vectors, lengths
    )
    filled = np.arange(vectors.shape[1]) < lengths[:, None]
    actual = {
      "in_proj_out": golden_data.sown(sown, "in_proj_out")[filled],
      "norm_out": golden_data.sown(sown, "norm_out"),
      "rec_features": x_rec,
    }
    for i, out in enumerate(golden_data.sown(sown, "blocks/out")):
      actual[f"block{i}_out"] = out
    condition = golden_data.run(head, params["head"], x_rec)
    if isinstance(condition, tuple):
      actual["prompt_embeds"], actual["pooled"] = condition
    else:
      actual["out"] = condition
    compare(actual, case, lengths)


def compare(actual, case, lengths):
  """Images with codes tightly; those without loosely, as -10000 loses digits."""
  inputs = ("x", "token_nums")
  empty = lengths == 0
  by_image = {k: v for k, v in case.items() if k not in (*inputs, "in_proj_out")}
  pick = lambda arrays, images: {k: np.asarray(arrays[k])[images] for k in by_image}
  golden_data.check(pick(actual, ~empty), pick(case, ~empty), inputs=())
  if empty.any():
    golden_data.check(pick(actual, empty), pick(case, empty), inputs=(), atol=2e-3)
  rest = {k: v for k, v in case.items() if k not in by_image}
  if "in_proj_out" in rest:
    golden_data.check(actual, rest, inputs=inputs)


def small(lengths=(3, 5), size=5):
  model = feature_decoder.FeatureDecoder(**SIZES, dtype="float32")
  vectors = jax.random.normal(jax.random.key(0), (len(lengths), size, 4))
  lengths = jnp.array(lengths, jnp.int32)
  filled = jnp.arange(size) < lengths[:, None]
  vectors = jnp.where(filled[..., None], vectors, 0)
  params = golden_data.random_params(model, vectors, lengths)
  return model, params, vectors, lengths


def test_rank_matters_and_padding_does_not():
  model, params, vectors, lengths = small()
  garbage = vectors.at[0, 3:].set(7.0)
  turned = vectors.at[0, :3].set(vectors[0, 2::-1])
  program = golden_data.compiled(
    lambda *inputs: model.apply({"params": params}, *inputs)
  )
  x_rec = program(vectors, lengths)
  np.testing.assert_allclose(program(garbage, lengths), x_rec, atol=1e-5)
  wide = jnp.pad(vectors, ((0, 0), (0, 1), (0, 0)))
  np.testing.assert_allclose(program(wide, lengths), x_rec, atol=1e-5)
  changed = program(turned, lengths)
  assert np.abs(changed[0] - x_rec[0]).max() > 1e-3
  np.testing.assert_allclose(changed[1], x_rec[1], atol=1e-6)


def test_an_image_without_codes_attends_to_shifted_padding():
  model, params, vectors, lengths = small(lengths=(0, 5))
  x_rec, sown = golden_data.run_sown(model, params, vectors, lengths)
  assert np.isfinite(x_rec).all()
  weights = golden_data.sown(sown, "blocks/cross_attn/weights")[:, 0]
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
  assert (weights > 0).all()
  # Padding is zero plus its rank: vectors behind the length change nothing.
  garbage = golden_data.run(model, params, vectors.at[0].set(3.0), lengths)
  np.testing.assert_array_equal(garbage, x_rec)


def test_initial_scales():
  sizes = dict(embed_dim=256, head_dim=128, num_layers=1, mlp_dim=8)
  model = feature_decoder.FeatureDecoder(**SIZES | sizes)
  vectors, lengths = jnp.zeros((1, 6, 4)), jnp.array([6])
  init = golden_data.compiled(
    lambda key: linear.split_boxes(model.init(key, vectors, lengths))[0]
  )
  params = init(jax.random.key(0))["params"]
  assert abs(np.std(params["in_proj"]["kernel"]) - 1.0) < 0.1
  assert abs(np.std(params["pos_embed"]) - 0.02) < 0.002
  assert abs(np.std(params["query_embed"]) - 1.0) < 0.1


def test_gradient_reaches_every_leaf():
  model, params, vectors, lengths = small(lengths=(6, 5), size=6)
  heads = {
    "low": condition_heads.LowResHead(6, "float32"),
    "high": condition_heads.HighResHead(6, 10, 10, 2, 8, "float32"),
  }
  square = condition_heads.GridHead(6, 5, 3, "float32")
  features = jnp.zeros((2, 6, 16))
  params = {"decoder": params}
  for name, head in heads.items():
    params[name] = golden_data.random_params(head, features)
  params["square"] = golden_data.random_params(square, features[:, :4])

  def loss(params):
    x_rec = model.apply({"params": params["decoder"]}, vectors, lengths)
    low = heads["low"].apply({"params": params["low"]}, x_rec)
    embeds, pooled = heads["high"].apply({"params": params["high"]}, x_rec)
    both = square.apply({"params": params["square"]}, x_rec[:, :4])
    return sum(jnp.square(out - 1).sum() for out in (low, embeds, pooled, *both))

  golden_data.assert_all_reached(golden_data.compiled(jax.grad(loss))(params))


def test_a_grid_lies_as_the_patches_lie():
  head = condition_heads.GridHead(6, 5, 3, "float32")
  x_rec = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 2)), jnp.float32)
  with pytest.raises(ValueError, match="a square of patches, got 6 of them"):
    head.init(jax.random.key(0), x_rec)
  params = golden_data.random_params(head, x_rec[:, :4])
  _, grid = head.apply({"params": params}, x_rec[:, :4])
  assert grid.shape == (1, 2, 2, 3)
  moved = x_rec[:, :4].at[0, 2].add(1.0)
  _, other = head.apply({"params": params}, moved)
  changed = np.abs(other - grid)[0].max(-1) > 1e-3
  np.testing.assert_array_equal(changed, [[False, False], [True, False]])


def test_too_many_codes_are_refused():
  model, params, _, lengths = small()
  with pytest.raises(ValueError, match="at most 6, 4"):
    model.apply({"params": params}, jnp.zeros((2, 7, 4)), lengths)
