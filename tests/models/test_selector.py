"""The token selector against the reference, and sampling by hand."""

import golden_data
import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax.models import selector
from lavit_jax.weights import visual_tokenizer


def test_golden_selector():
  state, _, arrays = golden_data.load("token_predictor.npz")
  model = selector.Selector(state["in_conv.0.weight"].shape[0])
  for case in golden_data.cases(arrays).values():
    x, noise = jnp.asarray(case["x"]), jnp.asarray(case["gumbel_noise"])
    target = golden_data.abstract_params(model, x)
    params = golden_data.import_checked(visual_tokenizer.SELECTOR, state, target)
    policy = jnp.asarray(case["policy"])[..., 0]
    log_probs = golden_data.run(model, params, x, policy)
    without = golden_data.run(model, params, x)
    np.testing.assert_allclose(log_probs, without, atol=golden_data.ATOL)
    keep = selector.sample(log_probs, noise)
    noisy = log_probs + noise
    actual = {
      "logp": log_probs,
      "y_soft": jax.nn.softmax(noisy / case["tau"]),
      "y_hard": jax.nn.one_hot(jnp.argmax(noisy, -1), 2),
      "keep": keep,
      "keep_argmax": selector.most_probable(log_probs),
    }
    if "policy2" in case:
      second = jnp.asarray(case["policy2"])[..., 0]
      actual["logp2"] = golden_data.run(model, params, x, second)
    for name, noise_used in (("keep", noise), ("keep_argmax", 0 * noise)):
      if name in case and not case[name].any(-1).all():  # the reference rescues none
        empty = ~case[name].any(-1)
        assert selector.count_empty(log_probs, noise_used) == empty.sum()
        np.testing.assert_array_equal(np.asarray(actual[name])[empty].sum(-1), 1)
        actual[name] = jnp.where(empty[:, None], 0, actual[name])
    golden_data.check(
      actual, case, inputs=("x", "policy", "gumbel_noise", "tau", "policy2")
    )
    for name in {"keep", "keep_argmax", "y_hard"} & set(case):
      np.testing.assert_array_equal(actual[name], case[name], err_msg=name)


def log_probs_of(keep_probs):
  p = jnp.array(keep_probs)
  return jnp.log(jnp.stack([p, 1 - p], axis=-1))


def test_sample_is_exactly_zero_or_one():
  key = jax.random.key(0)
  log_probs = jax.nn.log_softmax(jax.random.normal(key, (64, 32, 2)))
  keep = selector.sample(log_probs, jax.random.gumbel(key, log_probs.shape))
  assert set(np.unique(keep)) == {0.0, 1.0}


def test_sample_keeps_at_the_stated_rate():
  log_probs = jnp.broadcast_to(log_probs_of([[0.3]]), (1, 20000, 2))
  noise = jax.random.gumbel(jax.random.key(0), log_probs.shape)
  assert abs(float(selector.sample(log_probs, noise).mean()) - 0.3) < 0.015


def test_most_probable_keeps_the_likelier():
  keep = selector.most_probable(log_probs_of([[0.9, 0.2, 0.6]]))
  np.testing.assert_array_equal(keep, [[1, 0, 1]])


def test_an_empty_image_keeps_its_most_probable_patch_and_is_counted():
  log_probs = log_probs_of([[0.1, 0.3, 0.2], [0.9, 0.2, 0.1]])
  noise = jnp.zeros_like(log_probs)
  keep = selector.sample(log_probs, noise)
  np.testing.assert_array_equal(keep, [[0, 1, 0], [1, 0, 0]])
  assert selector.count_empty(log_probs, noise) == 1


def test_gradient_is_that_of_the_soft_sample():
  log_probs = log_probs_of([[0.7, 0.4, 0.2]])
  noise = jax.random.gumbel(jax.random.key(1), log_probs.shape)
  weight = jnp.array([1.0, -2.0, 3.0])
  hard = jax.grad(lambda lp: (selector.sample(lp, noise) * weight).sum())
  soft = jax.grad(lambda lp: (jax.nn.softmax(lp + noise)[..., 0] * weight).sum())
  np.testing.assert_allclose(hard(log_probs), soft(log_probs), atol=1e-6)


def test_gradient_reaches_every_leaf():
  model = selector.Selector(16)
  features = jax.random.normal(jax.random.key(0), (2, 9, 16))
  params = golden_data.random_params(model, features)
  noise = jax.random.gumbel(jax.random.key(2), (2, 9, 2))

  def loss(params):
    keep = selector.sample(model.apply({"params": params}, features), noise)
    return jnp.square(keep.mean() - 1 / 3)

  golden_data.assert_all_reached(golden_data.compiled(jax.grad(loss))(params))


def test_output_is_float32_whatever_comes():
  model = selector.Selector(8)
  features = jnp.ones((1, 4, 8), jnp.bfloat16)
  params = golden_data.random_params(model, features)
  assert golden_data.run(model, params, features).dtype == jnp.float32
