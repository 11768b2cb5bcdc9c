"""The vision encoder against the reference, and its properties."""

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lavit_jax.models import vit
from lavit_jax.weights import eva

SMALL = dict(
  image_size=16,
  patch_size=4,
  embed_dim=16,
  num_layers=2,
  num_heads=2,
  head_dim=8,
  mlp_dim=24,
  clip_dim=6,
)


def test_golden_encoder():
  state, dims, arrays = golden_data.load("encoder.npz")
  model = vit.VisionTransformer(
    image_size=dims["img"],
    patch_size=dims["patch"],
    clip_dim=state["head.weight"].shape[0],
    dtype="float32",
    **golden_data.trunk_sizes(state, dims),
  )
  for case in golden_data.cases(arrays).values():
    images = jnp.asarray(case["image"]).transpose(0, 2, 3, 1)
    target = golden_data.abstract_params(model, images)
    params = golden_data.import_checked(eva.ENCODER, state, target)
    features, sown = golden_data.run_sown(model, params, images)
    clip = golden_data.run(model, params, features, method="clip_embedding")
    actual = {
      "patch_embed_out": golden_data.sown(sown, "patch_embed_out"),
      "out_all_features": features,
      "out_clip_embed": clip,
    }
    for i in range(model.num_layers):
      actual[f"block{i}_attn_out"] = golden_data.sown(sown, "blocks/attn_out")[i]
      actual[f"block{i}_out"] = golden_data.sown(sown, "blocks/out")[i]
    golden_data.check(actual, case, inputs=("image",))


def test_normalize_uses_clip_statistics():
  pixels = vit.normalize(jnp.array([[[[0, 255, 128]]]], jnp.uint8))
  expected = [
    -0.48145466 / 0.26862954,
    (1 - 0.4578275) / 0.26130258,
    (128 / 255 - 0.40821073) / 0.27577711,
  ]
  np.testing.assert_allclose(pixels[0, 0, 0], expected, rtol=1e-5)


def test_patches_are_in_raster_order():
  model = vit.VisionTransformer(**SMALL | {"num_layers": 1}, dtype="float32")
  images = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
  params = golden_data.random_params(model, images)
  changed = images.at[0, 5, 9].add(1.0)  # patch row 1, column 2
  both = jnp.concatenate([images, changed])
  _, sown = golden_data.run_sown(model, params, both)
  before, after = golden_data.sown(sown, "patch_embed_out")
  differs = np.abs(after - before).max(-1) > 1e-6
  np.testing.assert_array_equal(np.flatnonzero(differs), [6])


def test_image_size_must_be_a_multiple_of_the_patch():
  model = vit.VisionTransformer(**SMALL | {"image_size": 18})
  with pytest.raises(ValueError, match="18 is not a multiple of patch size 4"):
    model.init(jax.random.key(0), jnp.zeros((1, 18, 18, 3)))


def test_wrong_image_shape_is_refused():
  model = vit.VisionTransformer(**SMALL)
  with pytest.raises(ValueError, match="resize them first"):
    model.init(jax.random.key(0), jnp.zeros((1, 20, 16, 3)))


def test_gradient_reaches_every_leaf():
  model = vit.VisionTransformer(**SMALL, dtype="float32", remat="full")
  images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
  params = golden_data.random_params(model, images)

  def loss(params):
    features = model.apply({"params": params}, images)
    clip = model.apply({"params": params}, features, method="clip_embedding")
    return jnp.square(features).sum() + jnp.square(clip - 1).sum()

  golden_data.assert_all_reached(golden_data.compiled(jax.grad(loss))(params))


def test_bfloat16_output_keeps_the_dtype():
  model = vit.VisionTransformer(**SMALL)
  images = jnp.zeros((1, 16, 16, 3))
  params = golden_data.random_params(model, images)
  assert golden_data.run(model, params, images).dtype == jnp.bfloat16
