"""The conditional U-Net of Stable Diffusion 1.5 and of the SDXL type.

Noisy latents [B, h, w, C] -> levels downward, each at half the size of the last ->
middle -> levels upward, which also see the pictures kept on the way down -> predicted
noise (or v) [B, h, w, C]. Every level may attend to the condition [B, S, Dc]. A second
condition may lie on a grid: stretched to the latents and joined to them in front of the
first convolution, as the mask and the picture of an inpainting U-Net are.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lavit_jax.layers import conv, linear, norm
from lavit_jax.models import published_config
from lavit_jax.models.unet_blocks import DownLevel, Given, Middle, Sizes, UpLevel

MAX_PERIOD = 10_000
NUM_TIME_IDS = 6  # original height and width, crop top and left, target size

VARIANTS = {
  "sd15": dict(
    channels=4,
    level_channels=(320, 640, 1280, 1280),
    num_layers=2,
    depths=(1, 1, 1, 0),
    middle_depth=1,
    num_heads=(8, 8, 8, 8),
    context_dim=768,
    pooled_dim=0,
    time_id_dim=0,
    num_groups=32,
    linear_projection=False,
  ),
  "sdxl": dict(
    channels=4,
    level_channels=(320, 640, 1280),
    num_layers=2,
    depths=(0, 2, 10),
    middle_depth=10,
    num_heads=(5, 10, 20),
    context_dim=2048,
    pooled_dim=1280,
    time_id_dim=256,
    num_groups=32,
    linear_projection=True,
  ),
  # For 8 x 8 latents of the toy pictures' fixed transform (models/patch_latents.py).
  # Trained from nothing in minutes: the grid tells it which feature lies where, which
  # the published weights have learnt to find by attention alone.
  "tiny": dict(
    channels=35,
    level_channels=(64,),
    num_layers=1,
    depths=(0,),
    middle_depth=1,
    num_heads=(4,),
    context_dim=64,
    pooled_dim=0,
    time_id_dim=0,
    num_groups=8,
    linear_projection=False,
    grid_dim=64,
  ),
}


# The width of the grid condition in a config.json of our own: other U-Nets take other
# things beside the latents. diffusers passes over names that begin like this.
GRID_KEY = "_grid_channels"
# Values of diffusers' UNet2DConditionModel config that this U-Net stands for.
_KNOWN = {
  "act_fn": ("silu",),
  "attention_type": ("default",),
  "addition_embed_type": (None, "text_time"),
  "conv_in_kernel": (3,),
  "conv_out_kernel": (3,),
  "downsample_padding": (1,),
  "dropout": (0.0,),
  "flip_sin_to_cos": (True,),
  "freq_shift": (0,),
  "mid_block_scale_factor": (1,),
  "mid_block_type": ("UNetMidBlock2DCrossAttn",),
  "resnet_out_scale_factor": (1.0,),
  "resnet_time_scale_shift": ("default",),
  "time_embedding_type": ("positional",),
}
# Softmax is in float32 here whatever `upcast_attention` says; `sample_size` is a habit.
_READ = {
  "in_channels", "out_channels", "block_out_channels", "layers_per_block",
  "down_block_types", "up_block_types", "transformer_layers_per_block",
  "attention_head_dim", "cross_attention_dim", "addition_time_embed_dim",
  "projection_class_embeddings_input_dim", "addition_embed_type_num_heads",
  "norm_num_groups", "norm_eps", "use_linear_projection", "upcast_attention",
  "sample_size", "reverse_transformer_layers_per_block",
}  # fmt: skip
_DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}


def _depths(config: Mapping[str, Any], num_levels: int) -> tuple[int, ...]:
  """Transformer blocks of each level downward, which those upward must mirror."""
  value = config.get("transformer_layers_per_block", 1)
  depths = published_config.per_level(published_config.even_levels(value), num_levels)
  upward = config.get("reverse_transformer_layers_per_block")
  if upward is not None:
    mirrored = published_config.per_level(
      published_config.even_levels(upward), num_levels
    )
    if mirrored != depths[::-1]:
      raise ValueError(
        f"expected as many transformer layers upward as downward, got {list(depths)}"
        f" and {list(mirrored)}; use a U-Net of the Stable Diffusion 1.5 or SDXL type"
      )
  return depths


def fields_from_config(config: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of `UNet` from diffusers' own config.json of a U-Net.

  Raises:
    ValueError: the config asks for a feature that is not built here.
  """
  published_config.refuse_unknown(config, _KNOWN, _READ, "U-Net")
  down, up = config["down_block_types"], config["up_block_types"]
  attends = [_DOWN.get(name) for name in down]
  if None in attends or [_UP.get(name) for name in reversed(up)] != attends:
    raise ValueError(
      f"expected down blocks {sorted(_DOWN)} and the up blocks that mirror them, got"
      f" {down} and {up}; use a U-Net of the Stable Diffusion 1.5 or SDXL type"
    )
  channels, grid_dim = config["out_channels"], config.get(GRID_KEY, 0)
  if config["in_channels"] != channels + grid_dim:
    raise ValueError(
      f"expected {channels + grid_dim} input channels, for latents of {channels} and a"
      f" grid of {grid_dim}, got {config['in_channels']}; use the text-to-image U-Net,"
      " not an inpainting one"
    )
  num_levels = len(down)
  depths = _depths(config, num_levels)
  # diffusers' "attention_head_dim" is the number of heads: a name it kept for its age.
  heads = published_config.per_level(config.get("attention_head_dim", 8), num_levels)
  equal = published_config.equal_levels
  count = published_config.count
  sized = config.get("addition_embed_type") == "text_time"
  id_dim = count(config, "addition_time_embed_dim") if sized else 0
  joined = count(config, "projection_class_embeddings_input_dim") if sized else 0
  groups = count(config, "norm_num_groups", 32)
  level_channels = published_config.per_level(config["block_out_channels"], num_levels)
  published_config.check_groups(level_channels, groups)
  layers = equal(config.get("layers_per_block", 2), "layers_per_block")
  context = equal(config["cross_attention_dim"], "cross_attention_dim")
  return dict(
    channels=channels,
    level_channels=level_channels,
    num_layers=count({"layers_per_block": layers}, "layers_per_block"),
    depths=tuple(depth if yes else 0 for depth, yes in zip(depths, attends)),
    middle_depth=depths[-1],
    num_heads=heads,
    context_dim=count({"cross_attention_dim": context}, "cross_attention_dim"),
    pooled_dim=joined - NUM_TIME_IDS * id_dim,
    time_id_dim=id_dim,
    num_groups=groups,
    linear_projection=bool(config.get("use_linear_projection", False)),
    eps=config.get("norm_eps", 1e-5),
    grid_dim=grid_dim,
  )


def wave_features(values: jax.Array, dim: int) -> jax.Array:
  """Cosines and sines of geometrically spaced frequencies: [...] -> float32[..., dim].

  Cosines come first and the lowest frequency is 1 / 10000 exclusive, as diffusers'
  `flip_sin_to_cos` with `freq_shift` 0.
  """
  half = dim // 2
  powers = jnp.arange(half, dtype=jnp.float32) / half
  angles = values.astype(jnp.float32)[..., None] * jnp.exp(
    -math.log(MAX_PERIOD) * powers
  )
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class Embedding(nn.Module):
  """fc2(silu(fc1(x))): what becomes of wave features and pooled conditions.

  Attributes:
    embed_dim: E.
    dtype: compute dtype.
  """

  embed_dim: int
  dtype: str = "bfloat16"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps float[B, D] to dtype[B, E]."""

    def project(name, inputs):
      shape = (inputs.shape[-1], self.embed_dim)
      layer = linear.Einsum(
        "bd,de->be", shape, (None, "embed"), True, self.dtype, name=name
      )
      return layer(inputs)

    return project("fc2", nn.silu(project("fc1", x)))


def _joined(latents: jax.Array, grid: jax.Array) -> jax.Array:
  """Latents [B, h, w, C] beside a grid [B, p, q, Dg]: float[B, h, w, C + Dg]."""
  shape = (*latents.shape[:3], grid.shape[-1])
  stretched = jax.image.resize(grid.astype(latents.dtype), shape, "linear")
  return jnp.concatenate([latents, stretched], axis=-1)


class UNet(nn.Module):
  """Predicts the noise in latents, given a time and a condition.

  Attributes:
    channels: C of the latents.
    level_channels: width of each level, the largest picture first.
    num_layers: residual blocks per level on the way down; one more on the way up.
    depths: transformer blocks after each residual block of a level, 0 for none.
    middle_depth: transformer blocks in the middle.
    num_heads: attention heads of each level.
    context_dim: Dc, width of the condition.
    pooled_dim: width of the pooled condition, 0 without one (Stable Diffusion 1.5).
    time_id_dim: wave features per picture-size number, 0 without them.
    num_groups: groups of the group norms.
    linear_projection: how files store the maps around the transformers, as linear maps
      or as 1 x 1 convolutions. The arithmetic is the same: only exchange reads it.
    eps: of the residual blocks' norms.
    grid_dim: Dg, width of the grid condition; published text-to-image U-Nets have none.
    dtype: compute dtype.
    remat: a key of `stack.REMAT_POLICIES`, per residual and per transformer block.
    unroll: transformer blocks per scan step.
  """

  channels: int
  level_channels: tuple[int, ...]
  num_layers: int
  depths: tuple[int, ...]
  middle_depth: int
  num_heads: tuple[int, ...]
  context_dim: int
  pooled_dim: int
  time_id_dim: int
  num_groups: int
  linear_projection: bool
  eps: float = 1e-5
  grid_dim: int = 0
  dtype: str = "bfloat16"
  remat: str = "none"
  unroll: int = 1

  @nn.compact
  def __call__(
    self,
    latents: jax.Array,
    timesteps: jax.Array,
    context: jax.Array,
    context_mask: jax.Array | None = None,
    pooled: jax.Array | None = None,
    time_ids: jax.Array | None = None,
    grid: jax.Array | None = None,
  ) -> jax.Array:
    """Predicts epsilon or v, whichever the weights were trained for.

    Args:
      latents: float[B, h, w, C]; h and w are multiples of 2 ** (levels - 1).
      timesteps: float or int[B] training steps, 0 .. 999.
      context: float[B, S, Dc] condition.
      context_mask: bool[B, S] slots that hold a condition; None when all do.
      pooled: float[B, pooled_dim], when the model has one.
      time_ids: float[B, 6] original height and width, crop top and left, target height
        and width in pixels, when the model has them.
      grid: float[B, p, q, Dg] grid condition, when the model has one; it is stretched
        to the sides of the latents.

    Returns:
      float32[B, h, w, C].
    """
    self._check(latents, context, pooled, time_ids, grid)
    sizes = Sizes(self.num_groups, self.eps, self.dtype, self.remat, self.unroll)
    time = nn.silu(self._embed_time(timesteps, pooled, time_ids))
    mask = None if context_mask is None else context_mask[:, None]
    given = Given(time, context.astype(self.dtype), mask)

    first = conv.Conv(self.level_channels[0], dtype=self.dtype, name="conv_in")
    x = first(latents if grid is None else _joined(latents, grid))
    kept = [x]
    levels = list(zip(self.level_channels, self.depths, self.num_heads))
    last = len(levels) - 1
    for i, (channels, depth, heads) in enumerate(levels):
      level = DownLevel(
        channels, self.num_layers, depth, heads, i < last, sizes, name=f"down{i}"
      )
      x, pictures = level(x, given)
      kept += pictures
    x = Middle(self.middle_depth, self.num_heads[-1], sizes, name="middle")(x, given)
    num_up = self.num_layers + 1
    for i, (channels, depth, heads) in enumerate(reversed(levels)):
      level = UpLevel(channels, num_up, depth, heads, i < last, sizes, name=f"up{i}")
      x = level(x, kept[-num_up:], given)
      del kept[-num_up:]
    x = nn.silu(norm.GroupNorm(self.num_groups, self.eps, name="norm_out")(x))
    x = conv.Conv(self.channels, dtype=self.dtype, name="conv_out")(x)
    return x.astype(jnp.float32)

  def _embed_time(self, timesteps, pooled, time_ids) -> jax.Array:
    """The embedding of time, plus that of picture sizes: dtype[B, E]."""
    width = self.level_channels[0]
    embed = Embedding(4 * width, self.dtype, name="time")
    time = embed(wave_features(timesteps, width))
    if not self.pooled_dim:
      return time
    sizes = wave_features(time_ids, self.time_id_dim)  # [B, 6, W]
    sizes = sizes.reshape(sizes.shape[0], -1)
    both = jnp.concatenate([pooled.astype(jnp.float32), sizes], axis=-1)
    return time + Embedding(4 * width, self.dtype, name="pooled")(both)

  def _check(self, latents, context, pooled, time_ids, grid) -> None:
    """Refuses inputs that do not fit, in one sentence each."""
    factor = 2 ** (len(self.level_channels) - 1)
    height, width, channels = latents.shape[1:]
    if height % factor or width % factor or channels != self.channels:
      raise ValueError(
        f"latents must be [B, h, w, {self.channels}] with sides that are multiples of"
        f" {factor}, got {latents.shape}; choose another picture size"
      )
    if context.shape[-1] != self.context_dim:
      raise ValueError(
        f"this U-Net attends to conditions of width {self.context_dim}, got"
        f" {context.shape[-1]}; use the feature decoder that was made for it"
      )
    if bool(self.pooled_dim) != (pooled is not None and time_ids is not None):
      needs = "needs" if self.pooled_dim else "takes no"
      raise ValueError(
        f"this U-Net {needs} pooled condition and time ids, got pooled"
        f" {getattr(pooled, 'shape', None)} and time_ids"
        f" {getattr(time_ids, 'shape', None)}; pass what its variant expects"
      )
    found = 0 if grid is None else grid.shape[-1]
    if found != self.grid_dim:
      raise ValueError(
        f"this U-Net takes a grid condition of width {self.grid_dim}, got {found}; use"
        " the feature decoder's head that was made for it"
      )
