"""How much noise each training step holds, read from diffusers' scheduler_config.json.

A noisy latent is sqrt(a_t) x + sqrt(1 - a_t) noise, with a_t = `alphas_cumprod[t]`
falling from almost 1 at t = 0 to almost 0 at the last step.
"""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

# What Stable Diffusion 1.5 and SDXL publish, and what the reference samples with.
STABLE_DIFFUSION = dict(
  num_train_timesteps=1000,
  beta_start=0.00085,
  beta_end=0.012,
  beta_schedule="scaled_linear",
  prediction_type="epsilon",
  timestep_spacing="leading",
  steps_offset=1,
  set_alpha_to_one=False,
  clip_sample=False,
)
PREDICTIONS = ("epsilon", "v_prediction")
SPACINGS = ("leading", "linspace", "trailing")
# How diffusers' solvers spread their steps where a config does not say.
SILENT_SPACING = {"ddim": "leading", "multistep": "linspace"}
# Options that change the noise or the samples, and that no published LaVIT uses.
_OFF = (
  "clip_sample", "rescale_betas_zero_snr", "thresholding", "trained_betas",
  "use_beta_sigmas", "use_exponential_sigmas", "use_flow_sigmas", "use_karras_sigmas",
  "use_lu_lambdas",
)  # fmt: skip
# What the multistep solver here does, where a config speaks of it.
_MULTISTEP = dict(
  algorithm_type="dpmsolver++",
  solver_order=2,
  solver_type="midpoint",
  lower_order_final=True,
  final_sigmas_type="zero",
  euler_at_final=False,
)


@flax.struct.dataclass
class Schedule:
  """The noise of every training step.

  Attributes:
    alphas_cumprod: float32[num_train_timesteps] share of the picture's variance.
    final_alpha: float32[] share after the last sampling step.
    prediction: what the model predicts, one of `PREDICTIONS`.
    spacing: how sampling steps are spread, one of `SPACINGS`; None where the config
      does not say, and each solver has its own.
    steps_offset: added to the sampling steps of the "leading" spacing.
    clips: whether DDIM would clip clean samples: its default where a config is silent.
  """

  alphas_cumprod: np.ndarray
  final_alpha: np.ndarray
  prediction: str = flax.struct.field(pytree_node=False)
  spacing: str | None = flax.struct.field(pytree_node=False)
  steps_offset: int = flax.struct.field(pytree_node=False)
  clips: bool = flax.struct.field(pytree_node=False, default=False)

  @property
  def num_train_timesteps(self) -> int:
    """Training steps."""
    return self.alphas_cumprod.shape[0]


def from_config(config: Mapping[str, Any]) -> Schedule:
  """Reads a scheduler_config.json, whichever sampler it names.

  Args:
    config: e.g. `STABLE_DIFFUSION`.

  Raises:
    ValueError: the config asks for a noise or a sampling that is not built here.
  """
  wrong = {key: config[key] for key in _OFF if config.get(key)}
  if "algorithm_type" in config:
    multistep = {key: config.get(key, value) for key, value in _MULTISTEP.items()}
    wrong |= {key: v for key, v in multistep.items() if v != _MULTISTEP[key]}
  chosen = {
    "prediction_type": (config.get("prediction_type", "epsilon"), PREDICTIONS),
    "timestep_spacing": (config.get("timestep_spacing"), (*SPACINGS, None)),
  }
  wrong |= {key: value for key, (value, known) in chosen.items() if value not in known}
  if wrong:
    raise ValueError(
      f"this scheduler config asks for what is not built here: {wrong}; expected"
      f" prediction {PREDICTIONS}, spacing {SPACINGS}, second order dpmsolver++ and"
      " no clipping: use the scheduler folder of Stable Diffusion 1.5 or SDXL"
    )
  alphas = np.cumprod((1 - _betas(config)).astype(np.float64)).astype(np.float32)
  whole = config.get("set_alpha_to_one", True)
  return Schedule(
    alphas_cumprod=alphas,
    final_alpha=np.float32(1) if whole else alphas[0],
    prediction=chosen["prediction_type"][0],
    spacing=chosen["timestep_spacing"][0],
    steps_offset=config.get("steps_offset") or 0,
    clips="clip_sample" not in config,
  )


def _betas(config: Mapping[str, Any]) -> np.ndarray:
  """float32[num_train_timesteps] variance that each step adds."""
  kind = config.get("beta_schedule", "linear")
  first, last = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
  count = config.get("num_train_timesteps", 1000)
  if kind == "linear":
    return np.linspace(first, last, count, dtype=np.float32)
  if kind == "scaled_linear":
    return np.linspace(first**0.5, last**0.5, count, dtype=np.float32) ** 2
  raise ValueError(
    f"expected beta_schedule linear or scaled_linear, got {kind!r}; use the scheduler"
    " folder of Stable Diffusion 1.5 or SDXL"
  )


def timesteps(schedule: Schedule, num_steps: int) -> np.ndarray:
  """The training steps that DDIM visits, noisiest first.

  Returns:
    int32[num_steps].

  Raises:
    ValueError: fewer than one step, or more than were trained.
  """
  count = schedule.num_train_timesteps
  check_num_steps(schedule, num_steps)
  spacing = schedule.spacing or SILENT_SPACING["ddim"]
  if spacing == "linspace":
    steps = np.linspace(0, count - 1, num_steps).round()[::-1]
  elif spacing == "leading":
    steps = np.arange(num_steps)[::-1] * (count // num_steps) + schedule.steps_offset
  else:
    steps = np.arange(count, 0, -count / num_steps).round() - 1
  return steps.astype(np.int32)


def multistep_timesteps(schedule: Schedule, num_steps: int) -> np.ndarray:
  """The training steps that the multistep solver visits, noisiest first.

  As `timesteps`, but spread so that the clean picture itself is the step after the
  last: diffusers spaces its solvers in these two ways.

  Returns:
    int32[num_steps].

  Raises:
    ValueError: fewer than one step, or more than were trained.
  """
  count = schedule.num_train_timesteps
  check_num_steps(schedule, num_steps)
  spacing = schedule.spacing or SILENT_SPACING["multistep"]
  if spacing == "linspace":
    steps = np.linspace(0, count - 1, num_steps + 1).round()[:0:-1]
  elif spacing == "leading":
    steps = np.arange(num_steps, 0, -1) * (count // (num_steps + 1))
    steps = steps + schedule.steps_offset
  else:
    steps = np.arange(count, 0, -count / num_steps).round() - 1
  return steps.astype(np.int32)


def check_num_steps(schedule: Schedule, num_steps: int) -> None:
  """Refuses sampling steps that the schedule cannot give."""
  if not 1 <= num_steps < schedule.num_train_timesteps:
    raise ValueError(
      f"sampling takes 1 to {schedule.num_train_timesteps - 1} steps, got {num_steps};"
      " 25 is usual"
    )


def _weights(schedule: Schedule, t: jax.Array, rank: int):
  """sqrt(a_t) and sqrt(1 - a_t) as float32[B, 1, ...]."""
  alpha = jnp.asarray(schedule.alphas_cumprod)[t]
  alpha = alpha.reshape(alpha.shape + (1,) * (rank - 1))
  return jnp.sqrt(alpha), jnp.sqrt(1 - alpha)


def add_noise(
  schedule: Schedule, clean: jax.Array, noise: jax.Array, t: jax.Array
) -> jax.Array:
  """Noisy latents of training step t.

  Args:
    schedule: the noise schedule.
    clean: float32[B, ...] latents.
    noise: float32[B, ...] standard normal.
    t: int32[B] training steps.

  Returns:
    float32[B, ...].
  """
  signal, spread = _weights(schedule, t, clean.ndim)
  return signal * clean + spread * noise


def target(
  schedule: Schedule, clean: jax.Array, noise: jax.Array, t: jax.Array
) -> jax.Array:
  """What the model should predict: the noise, or v = sqrt(a) noise - sqrt(1 - a) x.

  Args:
    schedule: the noise schedule.
    clean: float32[B, ...] latents.
    noise: float32[B, ...] standard normal.
    t: int32[B] training steps.

  Returns:
    float32[B, ...].
  """
  if schedule.prediction == "epsilon":
    return noise
  signal, spread = _weights(schedule, t, clean.ndim)
  return signal * noise - spread * clean
