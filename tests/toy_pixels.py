"""The tiniest pixel decoder, with random weights."""

import functools

import golden_data
import jax
import jax.numpy as jnp

from lavit_jax.diffusion import schedule
from lavit_jax.models import condition_heads
from lavit_jax.models import unet as unet_model
from lavit_jax.weights import model_directory

UNET = dict(
  channels=9,
  level_channels=(8, 16),
  num_layers=1,
  depths=(0, 1),
  middle_depth=1,
  num_heads=(2, 2),
  context_dim=8,
  pooled_dim=0,
  time_id_dim=0,
  num_groups=4,
  linear_projection=False,
  grid_dim=5,
)
HEAD = dict(condition_dim=8, hidden_dim=7, grid_dim=5)
LATENTS = dict(factor=4, spreads=((1.5, 0.5), (0.6, 0.4)))
SAMPLING = dict(steps=3, guidance=2.0, solver="dpm")


def unet() -> unet_model.UNet:
  return unet_model.UNet(**UNET, dtype="float32")


@functools.cache
def unet_params() -> dict:
  inputs = (jnp.zeros((1, 4, 4, 9)), jnp.zeros(1), jnp.zeros((1, 6, 8)))
  grid = jnp.zeros((1, 2, 2, 5))
  return golden_data.random_params(unet(), *inputs, None, None, None, grid)


def parts(width: int) -> dict[str, model_directory.Part]:
  """Parts of a model directory whose features have this width."""
  head = condition_heads.make(HEAD, "float32")
  params = golden_data.random_params(head, jnp.zeros((1, 4, width)))
  facts = {
    "head": HEAD,
    "scheduler": schedule.STABLE_DIFFUSION,
    "ratios": {"1:1": (64, 64)},
    "sampling": SAMPLING,
  }
  part = model_directory.Part
  return {
    "unet": part(jax.device_get(unet_params()), UNET),
    "condition": part(params, facts),
    "patch_latents": part({}, LATENTS),
  }
