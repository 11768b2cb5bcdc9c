"""The autoencoder between pictures and latents (AutoencoderKL of Stable Diffusion).

pictures [B, H, W, 3] in [-1, 1] -> mean and log variance [B, H/f, W/f, C] of latents;
latents -> pictures, f = 2 ** (levels - 1). A diffusion model works on latents times
`scaling_factor`, which makes their variance about one: multiply after encoding,
divide before decoding.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from lavit_jax.core.sharding import constrain
from lavit_jax.layers import attention, conv, norm
from lavit_jax.models import published_config
from lavit_jax.models.attention import from_heads, to_heads
from lavit_jax.models.resnet import ResnetBlock, Upsample

EPS = 1e-6
LOG_VARIANCE_RANGE = (-30.0, 20.0)

_SD = dict(
  latent_channels=4,
  level_channels=(128, 256, 512, 512),
  num_layers=2,
  num_groups=32,
)
VARIANTS = {
  "sd15": _SD | dict(scaling_factor=0.18215),
  "sdxl": _SD | dict(scaling_factor=0.13025),
  "tiny": dict(
    latent_channels=4,
    level_channels=(32, 64, 64),
    num_layers=1,
    num_groups=16,
    scaling_factor=1.0,
  ),
}

_KNOWN = {
  "act_fn": ("silu",),
  "in_channels": (3,),
  "out_channels": (3,),
  "mid_block_add_attention": (True,),
  "use_quant_conv": (True,),
  "use_post_quant_conv": (True,),
}
# The compute dtype is ours to choose: `force_upcast` warns of float16 only.
_READ = {
  "latent_channels", "block_out_channels", "layers_per_block", "norm_num_groups",
  "scaling_factor", "down_block_types", "up_block_types", "sample_size", "force_upcast",
}  # fmt: skip
_BLOCKS = {"DownEncoderBlock2D", "UpDecoderBlock2D"}


def fields_from_config(config: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of `AutoencoderKL` from diffusers' own config.json of a VAE.

  Raises:
    ValueError: the config asks for a feature that is not built here.
  """
  published_config.refuse_unknown(config, _KNOWN, _READ, "VAE")
  count = published_config.count
  blocks = {*config["down_block_types"], *config["up_block_types"]}
  if blocks != _BLOCKS:
    raise ValueError(
      f"expected VAE blocks {sorted(_BLOCKS)}, got {sorted(blocks)}; use the VAE of"
      " Stable Diffusion 1.5 or SDXL"
    )
  num_levels = len(config["down_block_types"])
  channels = published_config.per_level(config["block_out_channels"], num_levels)
  groups = count(config, "norm_num_groups", 32)
  published_config.check_groups(channels, groups)
  scaling = config.get("scaling_factor", 0.18215)
  if not isinstance(scaling, (int, float)) or not scaling > 0:
    raise ValueError(
      f"expected a scaling_factor above 0 in the config.json of the VAE, got"
      f" {scaling!r}; download it again"
    )
  return dict(
    latent_channels=count(config, "latent_channels", 4),
    level_channels=channels,
    num_layers=count(config, "layers_per_block", 1),
    num_groups=groups,
    scaling_factor=scaling,
  )


class Attention(nn.Module):
  """Attention of one head over all positions of a picture, around a residual.

  Attributes:
    num_groups: groups of the norm.
    dtype: compute dtype.
  """

  num_groups: int
  dtype: str

  @nn.compact
  def __call__(self, picture: jax.Array) -> jax.Array:
    """Maps dtype[B, h, w, C] to the same shape."""
    _, height, _, channels = picture.shape
    x = norm.GroupNorm(self.num_groups, EPS, name="norm")(picture)
    x = rearrange(x, "b h w c -> b (h w) c")
    query, key, value = (
      to_heads(channels, 1, channels, self.dtype, name)(x)
      for name in ("query", "key", "value")
    )
    mixed = attention.attend(query, key, value)
    mixed = from_heads(1, channels, channels, self.dtype, "proj")(mixed)
    return picture + rearrange(mixed, "b (h w) c -> b h w c", h=height)


class Middle(nn.Module):
  """Residual block, attention, residual block at the smallest size.

  Attributes:
    num_groups: groups of the norms.
    dtype: compute dtype.
  """

  num_groups: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps dtype[B, h, w, C] to the same shape."""
    sizes = (x.shape[-1], self.num_groups, EPS, self.dtype)
    x = ResnetBlock(*sizes, name="resnet0")(x)
    x = Attention(self.num_groups, self.dtype, name="attention")(x)
    return ResnetBlock(*sizes, name="resnet1")(x)


def _finish(x: jax.Array, channels: int, num_groups: int, dtype: str) -> jax.Array:
  """The norm, activation and convolution that end both halves."""
  x = nn.silu(norm.GroupNorm(num_groups, EPS, name="norm_out")(x))
  return conv.Conv(channels, dtype=dtype, name="conv_out")(x)


class Encoder(nn.Module):
  """Pictures to twice the latents' channels.

  Attributes:
    latent_channels: C of the latents.
    level_channels: width of each level, the largest picture first.
    num_layers: residual blocks per level.
    num_groups: groups of the norms.
    dtype: compute dtype.
  """

  latent_channels: int
  level_channels: tuple[int, ...]
  num_layers: int
  num_groups: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps float[B, H, W, 3] to dtype[B, H/f, W/f, 2 C]."""
    x = conv.Conv(self.level_channels[0], dtype=self.dtype, name="conv_in")(x)
    for i, channels in enumerate(self.level_channels):
      for j in range(self.num_layers):
        name = f"down{i}_resnet{j}"
        x = ResnetBlock(channels, self.num_groups, EPS, self.dtype, name=name)(x)
      if i < len(self.level_channels) - 1:
        # Padded on the far sides only, unlike the U-Net's.
        down = conv.Conv(
          channels, 3, 2, padding=(0, 1), split="in", dtype=self.dtype, name=f"down{i}"
        )
        x = down(x)
    x = Middle(self.num_groups, self.dtype, name="middle")(x)
    return _finish(x, 2 * self.latent_channels, self.num_groups, self.dtype)


class Decoder(nn.Module):
  """Latents to pictures.

  Attributes:
    level_channels: width of each level, the largest picture first.
    num_layers: residual blocks per level of the encoder; one more here.
    num_groups: groups of the norms.
    dtype: compute dtype.
  """

  level_channels: tuple[int, ...]
  num_layers: int
  num_groups: int
  dtype: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps float[B, h, w, C] to dtype[B, f h, f w, 3]."""
    x = conv.Conv(self.level_channels[-1], dtype=self.dtype, name="conv_in")(x)
    x = Middle(self.num_groups, self.dtype, name="middle")(x)
    for i, channels in enumerate(reversed(self.level_channels)):
      for j in range(self.num_layers + 1):
        name = f"up{i}_resnet{j}"
        x = ResnetBlock(channels, self.num_groups, EPS, self.dtype, name=name)(x)
      if i < len(self.level_channels) - 1:
        x = Upsample(self.dtype, name=f"up{i}")(x)
    return _finish(x, 3, self.num_groups, self.dtype)


class AutoencoderKL(nn.Module):
  """Both halves.

  Attributes:
    latent_channels: C of the latents.
    level_channels: width of each level, the largest picture first.
    num_layers: residual blocks per level.
    num_groups: groups of the norms.
    scaling_factor: what a diffusion model multiplies the latents by.
    dtype: compute dtype; float32 as in the reference, since pictures show rounding.
  """

  latent_channels: int
  level_channels: tuple[int, ...]
  num_layers: int
  num_groups: int
  scaling_factor: float
  dtype: str = "float32"

  @property
  def factor(self) -> int:
    """f, pixels per latent along a side."""
    return 2 ** (len(self.level_channels) - 1)

  def setup(self):
    """Makes the layers."""
    sizes = (self.level_channels, self.num_layers, self.num_groups, self.dtype)
    self.encoder = Encoder(self.latent_channels, *sizes)
    self.decoder = Decoder(*sizes)
    moments, latents = 2 * self.latent_channels, self.latent_channels
    self.to_moments = conv.Conv(moments, size=1, dtype=self.dtype)
    self.from_latents = conv.Conv(latents, size=1, dtype=self.dtype)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Decodes the mean of what it encodes: float[B, H, W, 3] -> float32, same shape."""
    mean, _ = self.encode(images)
    return self.decode(mean)

  def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The distribution of latents.

    Args:
      images: float[B, H, W, 3] in [-1, 1], sides multiples of f.

    Returns:
      float32[B, H/f, W/f, C] mean and log variance, before the scaling factor.
    """
    _, height, width, _ = images.shape
    if height % self.factor or width % self.factor:
      raise ValueError(
        f"picture sides must be multiples of {self.factor}, got {height} x {width};"
        " crop or resize the pictures first"
      )
    moments = self.to_moments(self.encoder(constrain(images, "act_images")))
    mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.clip(log_variance, *LOG_VARIANCE_RANGE)

  def decode(self, latents: jax.Array) -> jax.Array:
    """Pictures from latents.

    Args:
      latents: float[B, h, w, C], after division by the scaling factor.

    Returns:
      float32[B, f h, f w, 3], about [-1, 1].
    """
    return self.decoder(self.from_latents(latents)).astype(jnp.float32)


def sample(mean: jax.Array, log_variance: jax.Array, noise: jax.Array) -> jax.Array:
  """Latents drawn from the encoder's distribution.

  Args:
    mean: float32[B, h, w, C].
    log_variance: float32[B, h, w, C].
    noise: float32[B, h, w, C] standard normal.

  Returns:
    float32[B, h, w, C], before the scaling factor.
  """
  return mean + jnp.exp(0.5 * log_variance) * noise
