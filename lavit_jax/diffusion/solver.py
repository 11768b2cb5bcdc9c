"""Solvers from noise to latents: DDIM, and DPM-Solver++ of second order (2M).

Both are linear in the noisy sample x, in the clean latents that the model's output
implies and in those of the step before, so a solver is a table of coefficients and
one step serves both:

    clean = clean_from_sample x + clean_from_output output
    x'    = keep x + toward clean + before (clean of the step before)

The tables are computed on the host in float64; the loop is one `lax.scan`.
DDIM: arXiv 2010.02502, eta 0. DPM-Solver++ 2M: arXiv 2211.01095, algorithm 2.
"""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax.diffusion import schedule as schedules
from lavit_jax.diffusion.schedule import Schedule


@flax.struct.dataclass
class Steps:
  """One row per sampling step, noisiest first.

  Attributes:
    timesteps: int32[n] training step of each.
    clean_from_sample: float32[n].
    clean_from_output: float32[n].
    keep: float32[n] weight of the sample.
    toward: float32[n] weight of the clean latents.
    before: float32[n] weight of the clean latents of the step before; first 0.
  """

  timesteps: np.ndarray
  clean_from_sample: np.ndarray
  clean_from_output: np.ndarray
  keep: np.ndarray
  toward: np.ndarray
  before: np.ndarray


def _table(schedule, timesteps, alpha, keep, toward, before) -> Steps:
  signal, spread = np.sqrt(alpha), np.sqrt(1 - alpha)
  if schedule.prediction == "epsilon":
    from_sample, from_output = 1 / signal, -spread / signal
  else:
    from_sample, from_output = signal, -spread
  columns = (from_sample, from_output, keep, toward, before)
  return Steps(timesteps, *(np.asarray(c, np.float32) for c in columns))


def ddim(schedule: Schedule, num_steps: int) -> Steps:
  """The steps of DDIM with eta 0, as the reference samples.

  Args:
    schedule: the noise schedule, with its spacing and offset.
    num_steps: model evaluations.

  Raises:
    ValueError: the config left clip_sample to DDIM's default, which is to clip.
  """
  if schedule.clips:
    raise ValueError(
      "expected clip_sample: false in the scheduler config for DDIM, got none, which"
      " means true; add it where the model was trained on latents, or sample with dpm"
    )
  timesteps = schedules.timesteps(schedule, num_steps)
  # A step leads one stride further, wherever the offset and rounding put it.
  following = timesteps - schedule.num_train_timesteps // num_steps
  alphas = schedule.alphas_cumprod.astype(np.float64)
  final = np.float64(schedule.final_alpha)
  now = alphas[timesteps]
  then = np.where(following >= 0, alphas[np.maximum(following, 0)], final)
  keep = np.sqrt((1 - then) / (1 - now))
  toward = np.sqrt(then) - keep * np.sqrt(now)
  return _table(schedule, timesteps, now, keep, toward, np.zeros(num_steps))


def dpm_solver(schedule: Schedule, num_steps: int) -> Steps:
  """The steps of DPM-Solver++ 2M (midpoint): first and last of first order.

  Args:
    schedule: the noise schedule, with its spacing and offset.
    num_steps: model evaluations.
  """
  timesteps = schedules.multistep_timesteps(schedule, num_steps)
  now = schedule.alphas_cumprod.astype(np.float64)[timesteps]
  then = np.append(now[1:], 1.0)  # the last step leads to clean latents
  ratio_now, ratio_then = np.sqrt(1 / now - 1), np.sqrt(1 / then - 1)
  keep = np.sqrt((1 - then) / (1 - now))
  first_order = np.sqrt(then) * (1 - ratio_then / ratio_now)
  # Half the step times the slope of the clean latents over the step before.
  stride = np.log(ratio_now[:-1]) - np.log(ratio_now[1:])  # [n - 1]
  slope = np.zeros(num_steps)
  slope[1:-1] = 0.5 * stride[1:] / stride[:-1]
  before = -first_order * slope
  return _table(schedule, timesteps, now, keep, first_order - before, before)


def step(
  row: Steps, sample: jax.Array, before: jax.Array, output: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """One step toward the clean latents.

  Args:
    row: one row of the table: every field a scalar.
    sample: float32[...] noisy latents.
    before: float32[...] clean latents that the step before implied; any at first.
    output: float32[...] the model's prediction at `sample` and `row.timesteps`.

  Returns:
    The less noisy sample, and the clean latents that this output implies.
  """
  clean = row.clean_from_sample * sample + row.clean_from_output * output
  return row.keep * sample + row.toward * clean + row.before * before, clean


def solve(
  steps: Steps, predict: Callable[[jax.Array, jax.Array], jax.Array], noise: jax.Array
) -> jax.Array:
  """Walks all steps as one scan.

  Args:
    steps: the table of a solver.
    predict: (float32[...] sample, int32[] training step) -> float32[...] output.
    noise: float32[...] standard normal.

  Returns:
    float32[...] clean latents, still times the VAE's scaling factor.
  """

  def body(carry, row):
    sample, before = carry
    return step(row, sample, before, predict(sample, row.timesteps)), None

  rows = jax.tree.map(jnp.asarray, steps)
  (sample, _), _ = jax.lax.scan(body, (noise, jnp.zeros_like(noise)), rows)
  return sample
