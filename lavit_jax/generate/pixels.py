"""From conditions to pictures: guided sampling of latents, and their decoding.

condition [B, S, Dc], key[B] -> noise [B, h, w, C] -> a scan over the solver's steps,
each on the rows [unconditional, conditional] -> latents -> VAE in slices
-> u8[B, H, W, 3]

A picture's noise comes from its own key, so that it does not depend on its batch. The
order of rows, the guidance formula and the two unconditional conditions are those of
the reference (reference facts, section 8).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from lavit_jax.diffusion import solver
from lavit_jax.diffusion.schedule import Schedule

# Height and width of each aspect ratio (width : height), as the reference names them.
RATIOS = {
  "1:1": (1024, 1024),
  "4:3": (896, 1152),
  "3:2": (832, 1216),
  "16:9": (768, 1344),
  "2:3": (1216, 832),
  "3:4": (1152, 896),
}
SIDE_MULTIPLE = 64
NULL_SLOTS = 77  # text slots of the Stable Diffusion 1.5 embedding
SOLVERS = {"ddim": solver.ddim, "dpm": solver.dpm_solver}


@flax.struct.dataclass
class Condition:
  """What a U-Net is given of B pictures.

  Attributes:
    context: float[B, S, Dc].
    mask: bool[B, S] slots that hold something; None when all do.
    pooled: float[B, E], SDXL type only.
    time_ids: float[B, 6] original size, crop and target size, SDXL type only.
    grid: float[B, p, q, Dg] where it lies, for U-Nets that have a grid condition.
  """

  context: jax.Array
  mask: jax.Array | None = None
  pooled: jax.Array | None = None
  time_ids: jax.Array | None = None
  grid: jax.Array | None = None


def unet_inputs(condition: Condition) -> tuple[jax.Array | None, ...]:
  """What follows latents and time in a call of the U-Net."""
  c = condition
  return c.context, c.mask, c.pooled, c.time_ids, c.grid


@dataclasses.dataclass(frozen=True)
class Settings:
  """How pictures are sampled.

  Attributes:
    steps: model evaluations per picture.
    guidance: weight of the condition; 1 is none and costs half.
    solver: a key of `SOLVERS`.
  """

  steps: int = 25
  guidance: float = 7.0
  solver: str = "ddim"

  def __post_init__(self):
    if self.solver not in SOLVERS:
      raise ValueError(f"solver {self.solver!r} is not one of {sorted(SOLVERS)}")


def check_size(size: tuple[int, int]) -> tuple[int, int]:
  """Refuses a picture size that the U-Net cannot halve often enough."""
  if len(size) != 2 or any(side < 1 or side % SIDE_MULTIPLE for side in size):
    raise ValueError(
      f"expected a height and a width that are multiples of {SIDE_MULTIPLE} pixels, got"
      f" {'x'.join(map(str, size))}; choose for example 512x512"
    )
  return tuple(size)


def size_of(ratio: str, ratios: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
  """Height and width of an aspect ratio.

  Args:
    ratio: e.g. "16:9".
    ratios: what a decoder was trained on, e.g. `RATIOS`.
  """
  if ratio not in ratios:
    raise ValueError(
      f"this pixel decoder draws the ratios {', '.join(ratios)}, got {ratio!r}; choose"
      " one of them"
    )
  return check_size(ratios[ratio])


def time_ids(size: tuple[int, int], count: int) -> jax.Array:
  """float32[count, 6]: a picture of its own size, uncropped, as the reference draws."""
  height, width = size
  row = jnp.array([height, width, 0, 0, height, width], jnp.float32)
  return jnp.broadcast_to(row, (count, 6))


def null_context(
  context: jax.Array, embedding: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
  """The unconditional context of as many rows.

  Args:
    context: float[B, S, Dc] the condition that it replaces.
    embedding: float[N, Dc] embedding of an empty text, for the first N slots with all
      others masked (low resolution); None for zeros everywhere (high resolution).

  Returns:
    float[B, S, Dc], and its mask bool[B, S] or None.
  """
  empty = jnp.zeros_like(context)
  if embedding is None:
    return empty, None
  slots, width = embedding.shape
  if slots > context.shape[1] or width != context.shape[2]:
    raise ValueError(
      f"expected a null embedding of at most {context.shape[1]} slots of width"
      f" {context.shape[2]}, got {slots} of width {width}; give that of this U-Net"
    )
  filled = empty.at[:, :slots].set(embedding.astype(context.dtype))
  mask = jnp.broadcast_to(jnp.arange(context.shape[1]) < slots, context.shape[:2])
  return filled, mask


def unconditional(condition: Condition, embedding: jax.Array | None) -> Condition:
  """The condition of the other guidance stream; it keeps the picture's sizes."""
  context, mask = null_context(condition.context, embedding)
  empty = lambda x: None if x is None else jnp.zeros_like(x)
  pooled, grid = empty(condition.pooled), empty(condition.grid)
  return Condition(context, mask, pooled, condition.time_ids, grid)


def choose(pick: jax.Array, first: Condition, second: Condition) -> Condition:
  """Rows of `first` where bool[B] `pick` is true, else those of `second`."""
  full = lambda c: jnp.ones(c.context.shape[:2], bool) if c.mask is None else c.mask
  rows = lambda x: pick.reshape(-1, *(1,) * (x.ndim - 1))
  either = lambda a, b: None if a is None else jnp.where(rows(a), a, b)
  masked = first.mask is not None or second.mask is not None
  return Condition(
    either(first.context, second.context),
    either(full(first), full(second)) if masked else None,
    either(first.pooled, second.pooled),
    either(first.time_ids, second.time_ids),
    either(first.grid, second.grid),
  )


def noise(keys: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
  """Standard normal float32[B, h, w, C] of one key per picture."""
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def sample(
  unet: nn.Module,
  params: Any,
  schedule: Schedule,
  condition: Condition,
  null: jax.Array | None,
  start: jax.Array,
  settings: Settings,
) -> jax.Array:
  """Samples latents: one compiled program for each shape, solver and step count.

  Args:
    unet: a `models.unet.UNet`.
    params: its parameters.
    schedule: noise schedule it was trained with.
    condition: of B pictures.
    null: float[N, Dc] null embedding, or None for zeros.
    start: float32[B, h, w, C] standard normal noise.
    settings: how to sample.

  Returns:
    float32[B, h, w, C] latents, still times the scaling factor.
  """
  width = condition.context.shape[-1]
  if width != unet.context_dim:
    raise ValueError(
      f"this U-Net takes conditions of width {unet.context_dim}, got {width}; use it"
      " with the feature decoder that it was trained with"
    )
  steps = SOLVERS[settings.solver](schedule, settings.steps)
  if settings.guidance == 1:
    return _sample(unet, params, steps, condition, start)
  guidance = jnp.float32(settings.guidance)
  return _sample_guided(unet, params, steps, condition, null, guidance, start)


def _predictor(unet, params, condition: Condition) -> Callable:
  """(latents [B, h, w, C], training step) -> the U-Net's output."""

  def predict(latents, timestep):
    time = jnp.full(len(latents), timestep)
    return unet.apply({"params": params}, latents, time, *unet_inputs(condition))

  return predict


@functools.partial(jax.jit, static_argnames="unet")
def _sample(unet, params, steps, condition, start):
  return solver.solve(steps, _predictor(unet, params, condition), start)


@functools.partial(jax.jit, static_argnames="unet")
def _sample_guided(unet, params, steps, condition, null, guidance, start):
  free = unconditional(condition, null)
  count = len(start)
  twice = lambda x: None if x is None else jnp.concatenate([x, x])
  both = choose(jnp.arange(2 * count) < count, *map(_twice, (free, condition)))
  predict = _predictor(unet, params, both)

  def guided(latents, timestep):
    outputs = predict(twice(latents), timestep)
    bare, full = jnp.split(outputs, 2)  # [uncond, cond]
    return bare + guidance * (full - bare)

  return solver.solve(steps, guided, start)


def _twice(condition: Condition) -> Condition:
  return jax.tree.map(lambda x: jnp.concatenate([x, x]), condition)


@functools.partial(jax.jit, static_argnames=("vae", "slice_size"))
def decode(
  vae: nn.Module, params: Any, latents: jax.Array, slice_size: int = 1
) -> jax.Array:
  """Decodes latents, a few pictures at a time: at 1024 px one takes gigabytes.

  Args:
    vae: AutoencoderKL, or another module with its methods.
    params: its parameters.
    latents: float32[B, h, w, C], times the scaling factor.
    slice_size: pictures decoded at once.

  Returns:
    uint8[B, H, W, 3].
  """

  def one(latent):
    picture = vae.apply(
      {"params": params}, latent[None] / vae.scaling_factor, method="decode"
    )[0]
    bright = jnp.clip(picture.astype(jnp.float32) / 2 + 0.5, 0, 1)
    return jnp.round(bright * 255).astype(jnp.uint8)

  return jax.lax.map(one, latents, batch_size=slice_size)
