"""diffusers folders: U-Net, VAE and scheduler of a pixel decoder, in and out.

    unet/       config.json, diffusion_pytorch_model
    vae/        config.json, diffusion_pytorch_model
    scheduler/  scheduler_config.json
    model_index.json    names the three for diffusers' DiffusionPipeline
    uncond_embeddings   LaVIT's own: the embedding of an empty text, SD 1.5 only;
                        without it text_encoder/ is run once on an empty text

Parts on our side: unet, vae, scheduler (a configuration without weights) and
null_condition.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lavit_jax.models import published_config, unet, vae
from lavit_jax.models.published_config import PUBLISHED
from lavit_jax.weights import empty_text, files, rules, stable_diffusion, tensors
from lavit_jax.weights.part import Part, abstract_params, shape
from lavit_jax.weights.tensors import Tensor

STEM = "diffusion_pytorch_model"
SCHEDULER_FILE = "scheduler_config.json"
INDEX_FILE = "model_index.json"
# Pipelines that run a U-Net, a VAE and a scheduler, and what they leave to the caller:
# the condition is made elsewhere.
PIPELINE = ("StableDiffusionPipeline", ("text_encoder", "tokenizer", "image_encoder"))
PIPELINE_XL = (
  "StableDiffusionXLPipeline",
  ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "image_encoder"),
)
NULL_FILE = "uncond_embeddings"


def is_folder(folder: pathlib.Path) -> bool:
  """True where there is a U-Net or a VAE."""
  return any((folder / name / "config.json").is_file() for name in ("unet", "vae"))


def read(folder: pathlib.Path) -> dict[str, Part]:
  """Opens the parts that a folder holds, by their names on our side.

  Raises:
    ValueError: a configuration asks for what is not built here, or weights do not fit.
  """
  parts = {}
  if (folder / "unet").is_dir():
    parts["unet"] = _read_unet(folder / "unet")
  if (folder / "vae").is_dir():
    parts["vae"] = _read_vae(folder / "vae")
  if (folder / "scheduler" / SCHEDULER_FILE).is_file():
    config = files.read_json(folder / "scheduler" / SCHEDULER_FILE)
    parts["scheduler"] = Part({}, config)
  source = files.open_either(folder, NULL_FILE)
  if source is not None:
    parts["null_condition"] = _null_condition(folder, source)
  elif "unet" in parts and (folder / empty_text.FOLDER).is_dir():
    if not parts["unet"].config["pooled_dim"]:  # the SDXL type starts from zeros
      row = empty_text.embedding(folder / empty_text.FOLDER)
      embedding = {"embedding": tensors.of_array(row)}
      parts["null_condition"] = Part(embedding, {"slots": len(row), "rank": 3})
  return parts


def _fields(folder: pathlib.Path, function) -> dict[str, Any]:
  """Sizes from a config.json; what it lacks or garbles is one sentence."""
  try:
    return function(files.read_json(folder / "config.json"))
  except (KeyError, TypeError, IndexError) as error:
    raise ValueError(
      f"expected a diffusers configuration in {folder / 'config.json'}, got one without"
      f" a usable {error}; download it again"
    ) from error


def _read_unet(folder: pathlib.Path) -> Part:
  fields = _fields(folder, unet.fields_from_config)
  published = files.read_json(folder / "config.json")
  side = 2 ** (len(fields["level_channels"]) - 1)
  sized, grid_dim = fields["pooled_dim"] > 0, fields["grid_dim"]
  target = abstract_params(
    unet.UNet(**fields),
    shape(1, side, side, fields["channels"]),
    jax.ShapeDtypeStruct((1,), jnp.int32),
    shape(1, 2, fields["context_dim"]),
    None,
    shape(1, fields["pooled_dim"]) if sized else None,
    shape(1, unet.NUM_TIME_IDS) if sized else None,
    shape(1, side, side, grid_dim) if grid_dim else None,
  )
  source = files.open_folder(folder, (STEM,))
  table = stable_diffusion.unet_table(fields)
  params = rules.import_tensors(table, source, target)
  return Part(params, fields | {PUBLISHED: published})


def _read_vae(folder: pathlib.Path) -> Part:
  fields = _fields(folder, vae.fields_from_config)
  model = vae.AutoencoderKL(**fields)
  target = abstract_params(model, shape(1, model.factor, model.factor, 3))
  source = files.open_folder(folder, (STEM,))
  table = stable_diffusion.vae_table(fields, stable_diffusion.attention_keys(source))
  params = rules.import_tensors(table, source, target)
  published = files.read_json(folder / "config.json")
  return Part(params, fields | {PUBLISHED: published})


def _null_condition(folder: pathlib.Path, source: Mapping[str, Tensor]) -> Part:
  tensor = next(iter(source.values()))
  if len(source) != 1 or len(tensor.shape) not in (2, 3) or tensor.shape[0] < 1:
    raise ValueError(
      f"expected one embedding [77, 768] or [1, 77, 768] in {folder / NULL_FILE}, got"
      f" {[list(t.shape) for t in source.values()]}; download it again"
    )
  slots = tensor.shape[-2:]
  read = lambda: tensor.read().reshape((-1, *slots))[0]
  row = Tensor(slots, tensor.dtype, read)
  return Part({"embedding": row}, {"slots": slots[0], "rank": len(tensor.shape)})


def write(
  parts: Mapping[str, Part],
  folder: pathlib.Path,
  suffix: str,
  dtype: str | None,
  side: int | None = None,
) -> None:
  """Writes the parts that are there into a folder.

  Args:
    parts: as `read` gives them.
    folder: where to write.
    suffix: ".bin" or ".safetensors".
    dtype: stored dtype, None for that of the parts.
    side: pixels of a usual picture's side, for a U-Net whose own config does not say.
  """
  folder.mkdir(exist_ok=True)
  tables = {"unet": stable_diffusion.unet_table, "vae": stable_diffusion.vae_table}
  for name, table in tables.items():
    if name in parts:
      fields = _tuples(published_config.own_fields(parts[name].config))
      content = rules.export_tensors(table(fields), parts[name].params)
      (folder / name).mkdir()
      content = files.stored_as(content, dtype)
      files.write_folder(folder / name, content, STEM, suffix)
      config = stable_diffusion.config_json(name, parts[name].config)
      if name == "unet":
        config = _sized(config, parts, side)
      files.write_json(folder / name / "config.json", config)
  if "scheduler" in parts:
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "DDIMScheduler"} | dict(parts["scheduler"].config)
    files.write_json(folder / "scheduler" / SCHEDULER_FILE, scheduler)
    if "unet" in parts and "vae" in parts:
      index = _index(parts["unet"].config, scheduler["_class_name"])
      files.write_json(folder / INDEX_FILE, index)
  if "null_condition" in parts:
    part = parts["null_condition"]
    row = part.params["embedding"]
    rank = part.config.get("rank", 3)
    full = (1,) * (rank - 2) + tuple(row.shape)
    tensor = Tensor(full, row.dtype, lambda: row.read().reshape(full))
    key = "" if suffix == files.TORCH else NULL_FILE
    files.write_file(folder / f"{NULL_FILE}{suffix}", {key: tensor})


def _sized(
  config: dict[str, Any], parts: Mapping[str, Part], side: int | None
) -> dict[str, Any]:
  """The U-Net's config with the side of its latents, a pipeline's default size."""
  if config.get("sample_size") or not side or "vae" not in parts:
    return config
  factor = 2 ** (len(parts["vae"].config["level_channels"]) - 1)
  return config | {"sample_size": side // factor}


def _index(sizes: Mapping[str, Any], scheduler: str) -> dict[str, Any]:
  """model_index.json: which class of which library reads each folder."""
  name, elsewhere = PIPELINE_XL if sizes["pooled_dim"] else PIPELINE
  elsewhere = (*elsewhere, "feature_extractor")
  more = {"force_zeros_for_empty_prompt": True}
  if not sizes["pooled_dim"]:
    elsewhere, more = (*elsewhere, "safety_checker"), {"requires_safety_checker": False}
  return {
    "_class_name": name,
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", scheduler],
    **{component: [None, None] for component in elsewhere},
    **more,
  }


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Fields with tuples for the lists that JSON leaves."""
  fixed = lambda value: tuple(value) if isinstance(value, Sequence) else value
  return {k: v if isinstance(v, str) else fixed(v) for k, v in fields.items()}
