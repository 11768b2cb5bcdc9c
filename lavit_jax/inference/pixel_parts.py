"""The pixel decoder in a model directory, and pictures from reconstructed features.

    unet                   the U-Net, averaged over training
    condition              the head that turns features into the U-Net's condition;
                           its config also holds scheduler, sizes and sampling
    vae | patch_latents    the frozen autoencoder, or its fixed stand-in
    null_condition         embedding [77, Dc] of an empty text; zeros without it
    feature_decoder        its own trunk, where the decoders do not share one

A directory may hold a second set for high resolution: the same names after "highres_".

    x_rec f[B, P, D] -> (whiten) -> head -> Condition -> latents -> u8[B, H, W, 3]
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lavit_jax.core import sharding
from lavit_jax.diffusion import schedule as schedules
from lavit_jax.generate import pixels
from lavit_jax.inference import frozen_parts, tokenizing
from lavit_jax.models import (
  condition_heads,
  patch_latents,
  published_config,
  unet,
  vae,
  whitening,
)
from lavit_jax.models.feature_decoder import FeatureDecoder
from lavit_jax.training import train_state
from lavit_jax.weights import model_directory

HIGH_RES = "highres_"
AUTOENCODERS = {"vae": vae.AutoencoderKL, "patch_latents": patch_latents.PatchLatents}


@dataclasses.dataclass(frozen=True)
class PixelDecoder:
  """Modules and parameters behind `draw`.

  Attributes:
    unet: the U-Net.
    head: makes its condition of features.
    autoencoder: pictures to latents and back.
    params: parameters by name: unet, head, autoencoder; null, whitening and
      feature_decoder or None.
    schedule: noise schedule that the U-Net was trained with.
    ratios: height and width of each aspect ratio it was trained on.
    settings: how to sample when nothing else is asked for.
  """

  unet: unet.UNet
  head: condition_heads.Head
  autoencoder: nn.Module
  params: dict[str, Any]
  schedule: schedules.Schedule
  ratios: Mapping[str, tuple[int, int]]
  settings: pixels.Settings


def make_unet(fields: Mapping[str, Any], **more: Any) -> unet.UNet:
  """The U-Net of config or part fields."""
  return unet.UNet(**_hashable(fields), **more)


def make_autoencoder(name: str, fields: Mapping[str, Any]) -> nn.Module:
  """The autoencoder of a part's name and fields."""
  return AUTOENCODERS[name](**_hashable(fields))


def _hashable(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Fields with tuples for lists, which is what JSON leaves: modules are hashed."""

  def fixed(value):
    return tuple(map(fixed, value)) if isinstance(value, (list, tuple)) else value

  own = published_config.own_fields(fields)
  return {name: fixed(value) for name, value in own.items()}


def check_fits(head: condition_heads.Head, model: unet.UNet) -> None:
  """Refuses a U-Net whose condition has another width than the head makes."""
  taken = model.context_dim, model.pooled_dim, model.grid_dim
  if head.widths != taken:
    words = "conditions of width {}, pooled width {} and grid width {}"
    raise ValueError(
      f"the U-Net takes {words.format(*taken)}, the feature decoder's head makes"
      f" {words.format(*head.widths)}; choose a head for this U-Net"
    )


def init_unet(model: unet.UNet, num_slots: int):
  """key -> boxed variables of the U-Net."""
  side = 2 ** (len(model.level_channels) - 1)
  latents = jnp.zeros((1, side, side, model.channels))
  context = jnp.zeros((1, num_slots, model.context_dim))
  sized = model.pooled_dim > 0
  pooled = jnp.zeros((1, model.pooled_dim)) if sized else None
  ids = jnp.zeros((1, unet.NUM_TIME_IDS)) if sized else None
  grid = jnp.zeros((1, 1, 1, model.grid_dim)) if model.grid_dim else None
  time = jnp.zeros(1, jnp.int32)
  return lambda key: model.init(key, latents, time, context, None, pooled, ids, grid)


def init_autoencoder(model: nn.Module):
  """key -> boxed variables of the autoencoder; the stand-in has none."""
  images = jnp.zeros((1, model.factor, model.factor, 3))
  return lambda key: {"params": {}} | model.init(key, images)


def condition_of(
  head: nn.Module, params: Any, white: Any, features: jax.Array
) -> pixels.Condition:
  """The condition of features float[B, P, D], without picture sizes."""
  inputs = whitening.whiten(white, features)
  made = head.apply({"params": params}, inputs)
  if isinstance(head, condition_heads.LowResHead):
    return pixels.Condition(made)
  name = "grid" if isinstance(head, condition_heads.GridHead) else "pooled"
  return pixels.Condition(made[0], **{name: made[1]})


def present(folder: str) -> Sequence[str]:
  """Prefixes of the pixel decoders in a model directory, high resolution first."""
  parts = model_directory.read_manifest(folder)["parts"]
  return [prefix for prefix in (HIGH_RES, "") if f"{prefix}unet" in parts]


def load(folder: str, mesh: Mesh, dtype: str, prefix: str = "") -> PixelDecoder:
  """Reads a pixel decoder of a model directory.

  Args:
    folder: model directory.
    mesh: where to spread the weights.
    dtype: compute dtype; the U-Net is also stored in it.
    prefix: "" or `HIGH_RES`.
  """
  config = functools.partial(model_directory.part_config, folder)
  parts = model_directory.read_manifest(folder)["parts"]
  sizes, facts = config("visual_tokenizer"), config(f"{prefix}condition")
  if missing := [name for name in ("scheduler", "ratios") if name not in facts]:
    raise ValueError(
      f"expected how {folder} samples pictures in its part {prefix}condition, got none"
      f" of {', '.join(missing)}; import the model again with its scheduler folder"
    )
  model = make_unet(config(f"{prefix}unet"), dtype=dtype)
  head = condition_heads.make(facts["head"], dtype)
  check_fits(head, model)
  slots, width = sizes["num_patches"], sizes["embed_dim"]
  spread = functools.partial(load_part, folder, mesh)
  features = jnp.zeros((1, slots, width))
  params = {
    "unet": spread(f"{prefix}unet", init_unet(model, slots), dtype),
    "head": spread(f"{prefix}condition", lambda key: head.init(key, features)),
  }
  name, autoencoder, params["autoencoder"] = load_autoencoder(folder, mesh, prefix)
  params["null"] = load_null(folder, mesh, prefix, model.context_dim)
  params["whitening"] = None
  if "whitening" in parts:
    params["whitening"] = frozen_parts.load_whitening(folder, mesh, width)
  params["feature_decoder"] = _load_trunk(folder, mesh, prefix, sizes)
  return PixelDecoder(
    model,
    head,
    autoencoder,
    params,
    schedules.from_config(facts["scheduler"]),
    {ratio: tuple(size) for ratio, size in facts["ratios"].items()},
    pixels.Settings(**facts.get("sampling", {})),
  )


def load_best(folder: str, mesh: Mesh, dtype: str) -> PixelDecoder:
  """Reads the pixel decoder of highest resolution; says so when there is none."""
  found = present(folder)
  if not found:
    raise ValueError(
      f"the model in {folder} has no pixel decoder: expected the part 'unet', got none;"
      " train configs/pixel_decoder.py, or end at features with decode_features"
    )
  return load(folder, mesh, dtype, found[0])


def _load_trunk(folder, mesh: Mesh, prefix: str, sizes) -> Any:
  """Parameters of a feature decoder of its own, or None."""
  name = f"{prefix}feature_decoder"
  if name not in model_directory.read_manifest(folder)["parts"]:
    return None
  trunk = {k: v for k, v in sizes.items() if k != "num_codes"}
  vectors = jnp.zeros((1, 1, trunk["code_dim"]))
  module = FeatureDecoder(**trunk)
  init = lambda key: module.init(key, vectors, jnp.ones(1, jnp.int32))
  return load_part(folder, mesh, name, init)


def coder_of(
  coder: tokenizing.PictureCoder, decoder: PixelDecoder
) -> tokenizing.PictureCoder:
  """The coder whose features this decoder draws: with its own trunk if it has one."""
  own = decoder.params["feature_decoder"]
  if own is None:
    return coder
  trained = coder.frozen["visual_tokenizer"] | {"feature_decoder": own}
  frozen = coder.frozen | {"visual_tokenizer": trained}
  return dataclasses.replace(coder, frozen=frozen)


def load_part(folder: str, mesh: Mesh, name: str, init: Any, dtype: str | None = None):
  """Reads a part of the parameters that `init` would make, spread over the mesh."""
  abstract, axes = train_state.abstract_params(init)
  shardings = sharding.parameter_shardings(abstract, axes, mesh)
  return model_directory.load(folder, name, abstract, shardings, dtype)


def load_autoencoder(
  folder: str, mesh: Mesh, prefix: str = ""
) -> tuple[str, nn.Module, Any]:
  """Name, module and parameters of the autoencoder; parameters are {} without any."""
  parts = model_directory.read_manifest(folder)["parts"]
  found = [name for name in AUTOENCODERS if prefix + name in parts]
  if not found:
    raise ValueError(
      f"expected the part {prefix}vae in {folder}, found only {sorted(parts)}; import"
      " the VAE beside the U-Net"
    )
  name = found[0]
  model = make_autoencoder(name, parts[prefix + name]["config"])
  if name == "patch_latents":
    return name, model, {}
  params = load_part(folder, mesh, prefix + name, init_autoencoder(model))
  return name, model, params


def load_null(folder: str, mesh: Mesh, prefix: str, width: int) -> jax.Array | None:
  """The null embedding float32[N, Dc], or None for zeros."""
  name = f"{prefix}null_condition"
  if name not in model_directory.read_manifest(folder)["parts"]:
    return None
  slots = model_directory.part_config(folder, name)["slots"]
  table = {"embedding": jax.ShapeDtypeStruct((slots, width), jnp.float32)}
  whole = sharding.replicated(mesh)
  return model_directory.load(folder, name, table, whole)["embedding"]


def draw(
  decoder: PixelDecoder,
  features: jax.Array,
  keys: jax.Array,
  size: tuple[int, int],
  settings: pixels.Settings,
) -> jax.Array:
  """Draws pictures of features.

  Args:
    decoder: the pixel decoder.
    features: float[B, P, D] reconstructed patch features.
    keys: key[B], one per picture.
    size: height and width in pixels.
    settings: how to sample.

  Returns:
    uint8[B, H, W, 3].
  """
  size, factor = pixels.check_size(size), decoder.autoencoder.factor
  shape = (size[0] // factor, size[1] // factor, decoder.unet.channels)
  params = decoder.params
  condition, start = _prepare(
    decoder.head, params["head"], params["whitening"], features, keys, shape
  )
  if decoder.unet.pooled_dim:
    condition = condition.replace(time_ids=pixels.time_ids(size, len(features)))
  latents = pixels.sample(
    decoder.unet,
    params["unet"],
    decoder.schedule,
    condition,
    params["null"],
    start,
    settings,
  )
  return pixels.decode(decoder.autoencoder, params["autoencoder"], latents)


@functools.partial(jax.jit, static_argnames=("head", "shape"))
def _prepare(head, params, white, features, keys, shape):
  condition = condition_of(head, params, white, features)
  return condition, pixels.noise(keys, shape)
