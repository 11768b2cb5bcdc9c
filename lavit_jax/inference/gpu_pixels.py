"""pixels/ of the GPU folder: diffusers' U-Net, VAE and scheduler, and one component.

feature_decoder/   codebook, feature decoder, condition heads; whitening and the
                   embedding of an empty text where the model has them; for the toy
                   model the fixed patch transform, as a transposed convolution
unet/ vae/ scheduler/ model_index.json
"""

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
from einops import rearrange

from lavit_jax.diffusion.schedule import SILENT_SPACING
from lavit_jax.inference.pixel_parts import HIGH_RES, make_autoencoder
from lavit_jax.models import patch_latents
from lavit_jax.weights import files, lavit_directory, pixel_folders, rules, tensors
from lavit_jax.weights import visual_tokenizer as tables
from lavit_jax.weights.part import Part
from lavit_jax.weights.rules import Rule, dense
from lavit_jax.weights.tensors import Tensor

CODE = pathlib.Path(__file__).parents[1] / "gpu" / "pixels"
COMPONENT = "feature_decoder"
# The solver that a model samples with, as a class of diffusers, and what it must say.
SCHEDULERS = {
  "ddim": ("DDIMScheduler", {"timestep_spacing": SILENT_SPACING["ddim"]}),
  "dpm": (
    "DPMSolverMultistepScheduler",
    {
      "timestep_spacing": SILENT_SPACING["multistep"],
      "algorithm_type": "dpmsolver++",
      "solver_order": 2,
      "solver_type": "midpoint",
      "final_sigmas_type": "zero",
    },
  ),
}
# What other samplers' files say and these do not read.
FOREIGN = {
  "ddim": ("skip_prk_steps", "algorithm_type", "solver_order", "solver_type"),
  "dpm": ("skip_prk_steps", "set_alpha_to_one", "clip_sample", "clip_sample_range"),
}


def write(parts: Mapping[str, Part], folder: pathlib.Path, dtype: str | None) -> None:
  """Writes pixels/, that of high resolution where there are two, and pixels_lowres/."""
  found = [prefix for prefix in (HIGH_RES, "") if f"{prefix}unet" in parts]
  for prefix, name in zip(found, ("pixels", "pixels_lowres")):
    _write_one(parts, prefix, folder / name, dtype)


def _write_one(parts, prefix: str, folder: pathlib.Path, dtype: str | None) -> None:
  facts = parts[f"{prefix}condition"].config
  own = lavit_directory.pixel_parts_out(parts, prefix)
  own.pop("null_condition", None)  # in the component
  solver = facts.get("sampling", {}).get("solver", "ddim")
  own["scheduler"] = Part({}, scheduler_config(facts["scheduler"], solver))
  side = lavit_directory.side_of(parts, prefix)
  pixel_folders.write(own, folder, files.SAFETENSORS, dtype, side)
  inside = folder / COMPONENT
  inside.mkdir()
  content = component_tensors(parts, prefix)
  kept = {k: t for k, t in content.items() if k == "patch_kernel"}
  content = files.stored_as(content, dtype) | kept
  files.write_folder(inside, content, pixel_folders.STEM, files.SAFETENSORS)
  files.write_json(inside / "config.json", component_config(parts, prefix, content))
  for path in (CODE / "feature_decoder.py", CODE.parent / "blocks_lavit.py"):
    shutil.copyfile(path, inside / path.name)
  shutil.copyfile(CODE / "pipeline.py", folder / "pipeline.py")
  vae = ["diffusers", "AutoencoderKL"] if "vae" in own else [None, None]
  files.write_json(
    folder / pixel_folders.INDEX_FILE,
    {
      "_class_name": ["pipeline", "LavitPixelPipeline"],
      COMPONENT: [COMPONENT, "FeatureDecoder"],
      "unet": ["diffusers", "UNet2DConditionModel"],
      "scheduler": ["diffusers", own["scheduler"].config["_class_name"]],
      "vae": vae,
      "safety_checker": [None, None],
      "feature_extractor": [None, None],
    },
  )


def scheduler_config(published: Mapping[str, Any], solver: str) -> dict[str, Any]:
  """scheduler_config.json of the solver that the model samples with."""
  name, needed = SCHEDULERS[solver]
  own = {key: v for key, v in published.items() if key not in FOREIGN[solver]}
  return needed | own | {"_class_name": name}


def component_tensors(parts: Mapping[str, Part], prefix: str) -> dict[str, Tensor]:
  """Tensors of the component, by their names in PyTorch."""
  head = [
    *dense("unet_proj", "head/unet_proj"),
    *dense("grid_hidden", "head/grid_hidden"),
    *dense("grid_proj", "head/grid_proj"),
    *(rule for rule in tables.HIGHRES if rule.path.startswith("head/")),
  ]
  table = [
    Rule("quantize.embedding.weight", "codebook/embedding"),
    *rules.prefixed(tables.FEATURE_DECODER, "", "feature_decoder/"),
    *head,
    Rule("whitening_mean", "whitening/mean"),
    Rule("whitening_matrix", "whitening/matrix"),
    Rule("null_embedding", "null_condition/embedding"),
  ]
  own = parts.get(f"{prefix}feature_decoder")
  trunk = parts["visual_tokenizer"].params["feature_decoder"]
  tree = {
    "codebook": parts["codebook"].params,
    "feature_decoder": own.params if own else trunk,
    "head": parts[f"{prefix}condition"].params,
  }
  if "whitening" in parts:
    tree["whitening"] = parts["whitening"].params
  if f"{prefix}null_condition" in parts:
    tree["null_condition"] = parts[f"{prefix}null_condition"].params
  found = rules.export_tensors(table, tree)
  if f"{prefix}patch_latents" in parts:
    fields = parts[f"{prefix}patch_latents"].config
    kernel = patch_kernel(make_autoencoder("patch_latents", fields))
    found["patch_kernel"] = tensors.of_array(kernel)
  return found


def patch_kernel(module: patch_latents.PatchLatents) -> np.ndarray:
  """The transform's decoder as weights of a transposed convolution: f32[C, 3, f, f]."""
  pictures = module.apply(
    {}, np.eye(module.latent_channels)[:, None, None], method="decode"
  )
  return np.asarray(rearrange(np.asarray(pictures), "c p q x -> c x p q"), order="C")


def component_config(
  parts: Mapping[str, Part], prefix: str, content: Mapping[str, Tensor]
) -> dict[str, Any]:
  """config.json of the component."""
  sizes, facts = parts["visual_tokenizer"].config, parts[f"{prefix}condition"].config
  names = ("embed_dim", "num_layers", "num_heads", "mlp_dim", "num_patches")
  config = {name: sizes[name] for name in (*names, "code_dim", "num_codes")}
  null, fixed = content.get("null_embedding"), content.get("patch_kernel")
  sampling = facts.get("sampling", {})
  return config | {
    "_class_name": "FeatureDecoder",
    "head": dict(facts["head"]),
    "whitening": "whitening" in parts,
    "null_slots": null.shape[0] if null else 0,
    "patch_latents": [fixed.shape[0], fixed.shape[2]] if fixed else None,
    "ratios": {name: list(size) for name, size in facts["ratios"].items()},
    "steps": sampling.get("steps", 25),
    "guidance": sampling.get("guidance", 7.0),
  }
