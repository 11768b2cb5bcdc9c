"""The visual tokenizer end to end against the reference, and its parts together."""

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.core import sequence, sharding, vocabulary
from lavit_jax.layers import linear
from lavit_jax.models import codebook, selector, vit
from lavit_jax.models.visual_tokenizer import VARIANTS, VisualTokenizer
from lavit_jax.models.whitening import fit_whitening, whiten
from lavit_jax.weights import eva, rules, visual_tokenizer

SMALL = dict(
  embed_dim=16,
  num_layers=2,
  num_heads=2,
  head_dim=8,
  mlp_dim=24,
  num_patches=9,
  code_dim=4,
  num_codes=8,
)
REFERENCE = vocabulary.Vocabulary(text_size=32000, num_codes=16384)


def golden_models(state, dims):
  encoder = vit.VisionTransformer(
    image_size=dims["img"],
    patch_size=dims["patch"],
    clip_dim=state["encoder.head.weight"].shape[0],
    dtype="float32",
    **golden_data.trunk_sizes(state, dims, "encoder."),
  )
  num_codes, code_dim = state["quantize.embedding.weight"].shape
  tokenizer = VisualTokenizer(
    num_patches=encoder.num_patches,
    code_dim=code_dim,
    num_codes=num_codes,
    dtype="float32",
    **golden_data.trunk_sizes(state, dims, "causal_encoder."),
  )
  outputs, inputs = state["vit_proj.weight"].shape
  return encoder, tokenizer, linear.dense(inputs, outputs, dtype="float32")


def golden_params(state, encoder, tokenizer, vit_proj, images):
  features = jnp.zeros((1, tokenizer.num_patches, tokenizer.embed_dim))
  parts = golden_data.abstract_params(tokenizer, features, features[..., 0] > 0)
  del parts["feature_decoder"]  # in a file of its own
  rows = (tokenizer.num_codes, tokenizer.code_dim)
  target = parts | {
    "encoder": golden_data.abstract_params(encoder, images),
    "codebook": {"embedding": jax.ShapeDtypeStruct(rows, "float32")},
    "vit_proj": golden_data.abstract_params(vit_proj, features),
  }
  table = rules.prefixed(eva.ENCODER, "encoder.", "encoder/")
  table += visual_tokenizer.TOKENIZER
  return golden_data.import_checked(table, state, target)


def test_golden_end_to_end():
  state, dims, arrays = golden_data.load("tokenizer_e2e.npz")
  models = golden_models(state, dims)
  encoder, tokenizer, vit_proj = models
  for case in golden_data.cases(arrays).values():
    images = jnp.asarray(case["image"]).transpose(0, 2, 3, 1)
    params = golden_params(state, *models, images)
    features = golden_data.run(encoder, params["encoder"], images)[:, 1:]
    log_probs = golden_data.run(tokenizer, params, features, features, method="select")
    noise = jnp.asarray(case["gumbel_noise"])
    empty = ~case["keep"].any(axis=-1, keepdims=True)  # the reference rescues none
    assert selector.count_empty(log_probs, noise) == empty.sum()
    keep = np.where(empty, 0, selector.sample(log_probs, noise))
    np.testing.assert_array_equal(keep, case["keep"])
    z = golden_data.run(tokenizer, params, features, keep, method="encode")
    embedding = params["codebook"]["embedding"]
    kept_codes = [
      np.asarray(codes)[kept]
      for codes, kept in zip(codebook.lookup(embedding, z), keep > 0)
    ]
    ids = [codes + REFERENCE.code_start for codes in kept_codes]
    start, end = [REFERENCE.image_start], [REFERENCE.image_end]
    wrapped = [part for image in ids for part in (start, image, end)]
    merge = lambda module, *inputs: module.merger(*inputs)
    merged = golden_data.run(tokenizer, params, features, keep, method=merge)
    continuous = golden_data.run(vit_proj, params["vit_proj"], merged)
    actual = {
      "keep": keep,
      "token_nums": [len(codes) for codes in kept_codes],
      "llm_ids": np.concatenate(ids),
      "llm_ids_with_special": np.concatenate(wrapped),
      "quantized": embedding[np.concatenate(kept_codes)],
      "continuous": np.asarray(continuous)[keep > 0],
    }
    golden_data.check(actual, case, inputs=("image", "gumbel_noise"))


def small(remat="none"):
  model = VisualTokenizer(**SMALL, dtype="float32", remat=remat)
  features = jax.random.normal(jax.random.key(0), (3, 9, 16))
  params = golden_data.random_params(model, features, jnp.ones((3, 9), bool))
  return model, params, features


def stage_one_loss(model, params, features, noise, rows, quantize):
  """The objective of stage 1 in miniature."""
  call = lambda method, *inputs: model.apply({"params": params}, *inputs, method=method)
  keep = selector.sample(call("select", features, features), noise)
  z = call("encode", features, keep)
  if quantize:
    codes = codebook.lookup(rows, jax.lax.stop_gradient(z))
    z = codebook.straight_through(z, rows[codes])
  vectors, lengths = sequence.left_align(z * keep[..., None], keep > 0.5)
  x_rec = call("decode", vectors, lengths)
  cosine = codebook.l2_normalize(x_rec) * codebook.l2_normalize(features)
  return (1 - cosine.sum(-1)).mean() + 2 * jnp.square(1 / 3 - keep.mean())


@pytest.mark.parametrize("quantize", [False, True])
def test_gradient_reaches_every_leaf_and_the_selector_by_reconstruction(quantize):
  model, params, features = small(remat="full" if quantize else "none")
  noise = jax.random.gumbel(jax.random.key(1), (3, 9, 2))
  rows = codebook.l2_normalize(jax.random.normal(jax.random.key(2), (8, 4)))
  loss = lambda params: stage_one_loss(model, params, features, noise, rows, quantize)
  golden_data.assert_all_reached(golden_data.compiled(jax.grad(loss))(params))


def test_mesh_result_equals_no_mesh():
  model, params, features = small()
  features = jnp.concatenate([features, features[:1]])
  keep = jnp.ones((4, 9), bool).at[:, ::2].set(False)
  alone = golden_data.run(model, params, features, keep)
  mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, jax.devices()[:8])
  with jax.set_mesh(mesh):
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), features, keep))
    abstract, axes = linear.split_boxes(boxed["params"])
    params = jax.device_put(params, sharding.parameter_shardings(abstract, axes, mesh))
    rows = sharding.batch_sharding(mesh)
    inputs = jax.device_put((features, keep), rows)
    spread = golden_data.run(model, params, *inputs)
  np.testing.assert_allclose(spread, alone, atol=1e-5)


def test_init_makes_every_part():
  model = VisualTokenizer(**VARIANTS["tiny"])
  inputs = jnp.zeros((1, 64, 128))
  params = golden_data.abstract_params(model, inputs, jnp.ones((1, 64), bool))
  expected = {"selector", "merger", "encode_task_layer", "feature_decoder"}
  assert set(params) == expected


def test_codes_are_unit_length_and_features_keep_their_shape():
  model, params, features = small()
  keep = jnp.ones((3, 9), bool).at[:, ::2].set(False)
  z = golden_data.run(model, params, features, keep, method="encode")
  assert z.shape == (3, 9, 4) and z.dtype == jnp.float32
  np.testing.assert_allclose(jnp.linalg.norm(z, axis=-1), 1, rtol=1e-5)
  x_rec = golden_data.run(model, params, features, keep)
  assert x_rec.shape == features.shape


@pytest.mark.parametrize("given", [{}, {"selector_input": "raw"}], ids=str)
def test_the_selector_sees_what_its_field_names_and_whitened_features_without_one(
  given,
):
  model = VisualTokenizer(**SMALL, **given, dtype="float32")
  _, params, features = small()
  whitened = jax.random.normal(jax.random.key(4), features.shape)
  found = golden_data.run(model, params, features, whitened, method="select")
  seen = features if given else whitened
  alone = lambda module, x: module.selector(x)
  expected = golden_data.run(model, params, seen, method=alone)
  np.testing.assert_array_equal(found, expected)
  assert np.abs(features - whitened).max() > 0.1


def test_an_unknown_selector_input_is_refused():
  model = VisualTokenizer(**SMALL, selector_input="white")
  features = jnp.zeros((1, 9, 16))
  with pytest.raises(ValueError, match="expected selector_input to be one of"):
    model.init(jax.random.key(0), features, jnp.ones((1, 9), bool))


def test_whitening_gives_uncorrelated_features():
  rng = np.random.default_rng(0)
  mixing = rng.normal(size=(8, 8)) * np.geomspace(1, 3, 8)
  features = jnp.asarray(rng.normal(size=(4000, 8)) @ mixing + 5, jnp.float32)
  whitening = fit_whitening(features)
  white = np.asarray(whiten(whitening, features))
  np.testing.assert_allclose(white.mean(0), 0, atol=1e-3)
  variances = np.linalg.eigvalsh(np.cov(white.T))
  assert variances.max() < 1.01  # the ridge keeps weak directions below 1
  spectrum = np.linalg.eigvalsh(np.cov(np.asarray(features, np.float64).T))
  ridge = spectrum / (spectrum + 0.02 * spectrum.mean())
  np.testing.assert_allclose(variances, ridge, rtol=2e-2)
  np.testing.assert_allclose(whitening.matrix, whitening.matrix.T, atol=1e-5)


def test_without_whitening_features_pass():
  features = jnp.ones((2, 3))
  assert whiten(None, features) is features
