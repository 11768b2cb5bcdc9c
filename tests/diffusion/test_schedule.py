"""The noise schedule: shares of the picture, sampling steps, targets."""

import numpy as np
import pytest

from lavit_jax.diffusion import schedule

SD = schedule.from_config(schedule.STABLE_DIFFUSION)


def test_stable_diffusion_noise_is_the_known_one():
  alphas = SD.alphas_cumprod
  assert alphas.dtype == np.float32 and alphas.shape == (1000,)
  np.testing.assert_allclose(alphas[0], 1 - 0.00085, rtol=1e-6)
  np.testing.assert_allclose(alphas[999], 0.0046600, atol=1e-6)
  assert SD.final_alpha == alphas[0]
  assert schedule.from_config({"beta_schedule": "linear"}).final_alpha == 1


def test_ddim_steps_lead_and_are_offset():
  steps = schedule.timesteps(SD, 25)
  assert steps.dtype == np.int32
  np.testing.assert_array_equal(steps[:2], [961, 921])
  assert steps[-1] == 1 and len(steps) == 25


def test_multistep_steps_keep_a_stride_to_the_clean_picture():
  steps = schedule.multistep_timesteps(SD, 4)
  np.testing.assert_array_equal(steps, [801, 601, 401, 201])
  even = schedule.from_config(
    schedule.STABLE_DIFFUSION | {"timestep_spacing": "linspace"}
  )
  np.testing.assert_array_equal(schedule.multistep_timesteps(even, 3), [999, 666, 333])
  np.testing.assert_array_equal(schedule.timesteps(even, 4), [999, 666, 333, 0])


@pytest.mark.parametrize("spacing", schedule.SPACINGS)
@pytest.mark.parametrize("num_steps", [1, 7, 30])
def test_every_spacing_gives_as_many_steps_as_asked(spacing, num_steps):
  chosen = schedule.from_config(
    schedule.STABLE_DIFFUSION | {"timestep_spacing": spacing}
  )
  for function in (schedule.timesteps, schedule.multistep_timesteps):
    steps = function(chosen, num_steps)
    assert steps.shape == (num_steps,)
    assert (np.diff(steps) < 0).all() and 0 <= steps[-1] and steps[0] < 1000


def test_noise_and_picture_share_the_variance():
  clean, noise = np.full((2, 3), 2.0), np.full((2, 3), -1.0)
  t = np.array([0, 999])
  noisy = schedule.add_noise(SD, clean, noise, t)
  a = SD.alphas_cumprod[t][:, None]
  np.testing.assert_allclose(
    noisy, np.sqrt(a) * clean + np.sqrt(1 - a) * noise, rtol=1e-6
  )


def test_the_target_is_the_noise_or_v():
  clean, noise, t = np.full((1, 2), 2.0), np.full((1, 2), -1.0), np.array([300])
  np.testing.assert_array_equal(schedule.target(SD, clean, noise, t), noise)
  turned = schedule.from_config(
    schedule.STABLE_DIFFUSION | {"prediction_type": "v_prediction"}
  )
  v = schedule.target(turned, clean, noise, t)
  a = SD.alphas_cumprod[300]
  np.testing.assert_allclose(v, -np.sqrt(a) - 2 * np.sqrt(1 - a), rtol=1e-6)


@pytest.mark.parametrize(
  "change",
  [
    {"clip_sample": True},
    {"prediction_type": "sample"},
    {"timestep_spacing": "karras"},
    {"use_karras_sigmas": True},
    {"algorithm_type": "dpmsolver++", "solver_order": 3},
    {"beta_schedule": "squaredcos_cap_v2"},
  ],
)
def test_a_scheduler_of_another_kind_is_refused(change):
  with pytest.raises(ValueError, match=str(list(change)[-1])):
    schedule.from_config(schedule.STABLE_DIFFUSION | change)


@pytest.mark.parametrize("num_steps", [0, 1000])
def test_sampling_steps_that_cannot_be_are_refused(num_steps):
  with pytest.raises(ValueError, match="sampling takes 1 to 999 steps"):
    schedule.timesteps(SD, num_steps)
