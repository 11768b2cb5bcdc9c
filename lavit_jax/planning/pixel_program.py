"""The train step of stage 1b as shapes; see `planning/programs.py`."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from lavit_jax.core import sharding
from lavit_jax.inference import pixel_parts
from lavit_jax.layers import linear
from lavit_jax.models import visual_tokenizer
from lavit_jax.stages import pixel_decoder
from lavit_jax.training import base

TIME_IDS = 6  # sizes and crop that the SDXL type is told


def step(
  config: ml_collections.ConfigDict, mesh: Mesh
) -> tuple[base.Assembled, dict[str, Any], dict[str, tuple], int]:
  """Makes the step and its inputs.

  Returns:
    Model, state and step; frozen parts as shapes; the fields of a batch row as (dtype,
    *shape); patches of a picture.
  """
  is_tiny = "patch_latents" in config.model
  modules = pixel_decoder.Modules(config)
  sizes = visual_tokenizer.VARIANTS["tiny" if is_tiny else "lavit"]
  coder = visual_tokenizer.VisualTokenizer(
    **sizes, dtype=config.dtype, unroll=config.unroll
  )
  made = pixel_decoder.assemble(config, mesh, modules, coder)
  height, width = config.ratios["1:1"]
  fields = {
    "image": (jnp.uint8, height, width, 3),
    "codes": (jnp.int32, coder.num_patches),
    "length": (jnp.int32,),
    "noise_id": (jnp.uint32,),
  }
  if modules.unet.pooled_dim:
    fields["time_ids"] = (jnp.float32, TIME_IDS)
  return made, _frozen(modules, coder, mesh), fields, coder.num_patches


def _frozen(modules, coder, mesh: Mesh) -> dict[str, Any]:
  """Codebook, feature decoder and autoencoder, in float32 as they are loaded."""

  def part(init):
    abstract, axes = linear.abstract_params(init)
    spread = sharding.parameter_shardings(abstract, axes, mesh)
    leaf = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    return jax.tree.map(leaf, abstract, spread)

  own = part(visual_tokenizer.init_function(coder))
  whole, rows = sharding.replicated(mesh), (coder.num_codes, coder.code_dim)
  return {
    "codebook": {"embedding": jax.ShapeDtypeStruct(rows, jnp.float32, sharding=whole)},
    "feature_decoder": own["feature_decoder"],
    "whitening": None,
    "autoencoder": part(pixel_parts.init_autoencoder(modules.autoencoder)),
    "null": None,
  }
