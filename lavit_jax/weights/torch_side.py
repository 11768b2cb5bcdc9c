"""What PyTorch computes from published files, by module, for weights.parity."""

import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lavit_jax.weights import files, lavit_directory, parity
from lavit_jax.weights import openai_clip as clip
from lavit_jax.weights import torch_reference as reference
from lavit_jax.weights.part import Part

Runs = dict[str, Callable[[], list[np.ndarray]]]


def _tensor(array: np.ndarray) -> Any:
  import torch

  return torch.from_numpy(np.ascontiguousarray(array))


def _numpy(*outputs: Any) -> list[np.ndarray]:
  return [output.detach().float().numpy() for output in outputs]


def _without_grad(function):
  def run():
    import torch

    with torch.no_grad():
      return function()

  return run


def encoder(source: Mapping[str, Any], sizes: Mapping[str, int]) -> Runs:
  """The vision encoder over a file's tensors."""

  def run():
    images = _tensor(parity.images_of(sizes).transpose(0, 3, 1, 2))
    state = reference.state_of(source)
    return _numpy(reference.encoder(state, images, sizes["num_heads"]))

  return {"vit": _without_grad(run)}


def language(folder: pathlib.Path, sizes: Mapping[str, Any]) -> Runs:
  """The language model by transformers; ids beyond the model's own are not compared."""
  if not parity.has("torch", "transformers"):
    return {}

  def run():
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
    )
    ids = _tensor(parity.ids_of(sizes)).long()
    return _numpy(model.eval()(ids).logits[..., : sizes["vocab_size"]])

  return {"llama": _without_grad(run)}


def openai_clip(source: pathlib.Path, part: Part) -> Runs:
  """CLIP by transformers: of a folder itself, of a file under the folder's keys."""
  if not parity.has("torch", "transformers"):
    return {}

  def run():
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as scratch:
      folder = source
      if not source.is_dir():
        folder = pathlib.Path(scratch)
        clip.write_folder(part, folder, files.SAFETENSORS, None)
      model = transformers.CLIPModel.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, attn_implementation="eager"
      ).eval()
    images = _tensor(parity.images_of(part.config["vision"]).transpose(0, 3, 1, 2))
    ids = _tensor(parity.clip_ids_of(part.config["text"])).long()
    seen = model.vision_model(images).pooler_output
    read = model.text_model(ids).pooler_output
    return _numpy(model.visual_projection(seen), model.text_projection(read))

  return {"openai_clip": _without_grad(run)}


def pixels(folder: pathlib.Path, parts: Mapping[str, Part], prefix: str = "") -> Runs:
  """U-Net and VAE by diffusers."""
  found: Runs = {}
  if not parity.has("torch", "diffusers"):
    return found
  if f"{prefix}unet" in parts:
    sizes = parts[f"{prefix}unet"].config
    found[f"{prefix}unet"] = _without_grad(lambda: _unet(folder / "unet", sizes))
  if f"{prefix}vae" in parts:
    fields = parts[f"{prefix}vae"].config
    found[f"{prefix}vae"] = _without_grad(lambda: _vae(folder / "vae", fields))
  return found


def _unet(folder: pathlib.Path, sizes) -> list[np.ndarray]:
  import diffusers

  model = diffusers.UNet2DConditionModel.from_pretrained(folder, local_files_only=True)
  given = parity.unet_inputs(sizes)
  added = None
  if given["pooled"] is not None:
    added = {
      "text_embeds": _tensor(given["pooled"]),
      "time_ids": _tensor(given["time_ids"]),
    }
  latents = given["latents"]
  if given["grid"] is not None:
    latents = np.concatenate([latents, given["grid"]], axis=-1)
  out = model.float().eval()(
    _tensor(latents.transpose(0, 3, 1, 2)),
    _tensor(given["time"]),
    encoder_hidden_states=_tensor(given["context"]),
    added_cond_kwargs=added,
  )
  return _numpy(out.sample.permute(0, 2, 3, 1))


def _vae(folder: pathlib.Path, sizes) -> list[np.ndarray]:
  import diffusers

  model = diffusers.AutoencoderKL.from_pretrained(folder, local_files_only=True)
  model = model.float().eval()
  image, latents = (_tensor(x.transpose(0, 3, 1, 2)) for x in parity.vae_inputs(sizes))
  mean, picture = model.encode(image).latent_dist.mean, model.decode(latents).sample
  return _numpy(mean.permute(0, 2, 3, 1), picture.permute(0, 2, 3, 1))


def lavit(folder: pathlib.Path, parts: Mapping[str, Part]) -> Runs:
  """Every module of a published LaVIT directory."""
  visual, words = folder / lavit_directory.VISUAL, folder / lavit_directory.LANGUAGE
  open_visual = lambda stem: files.open_either(visual, stem)
  found = encoder(open_visual(lavit_directory.ENCODER_FILE), parts["vit"].config)
  found |= _tokenizer(visual, parts["visual_tokenizer"].config)
  if "understanding" in parts:
    source = files.open_either(words, lavit_directory.UNDERSTANDING_FILE)
    sizes = parts["visual_tokenizer"].config
    found["understanding"] = _without_grad(lambda: _understanding(source, sizes))
  if "llama" in parts:
    found |= language(words, parts["llama"].config)
  for prefix, name in lavit_directory.PIXELS.items():
    found |= pixels(folder / name, parts, prefix)
  return found


def _tokenizer(folder: pathlib.Path, sizes: Mapping[str, int]) -> Runs:
  heads = sizes["num_heads"]
  source = files.open_either(folder, lavit_directory.TOKENIZER_FILE)
  lowres = files.open_either(folder, lavit_directory.LOWRES_FILE)
  highres = files.open_either(folder, lavit_directory.HIGHRES_FILE)

  def below(prefix):
    own = {k.removeprefix(prefix): t for k, t in source.items() if k.startswith(prefix)}
    return reference.state_of(own)

  def selector():
    x = _tensor(parity.features_of(sizes))
    return _numpy(reference.selector(below("token_predictor."), x))

  def encode():
    x, keep = _tensor(parity.features_of(sizes)), _tensor(parity.keep_of(sizes))
    merged = reference.merger(below("causal_encoder."), x, keep, heads)
    z = reference.task_layer(below("encode_task_layer."), merged)
    return _numpy(z / z.norm(dim=-1, keepdim=True).clamp_min(1e-12))

  def decode():
    vectors, lengths = map(_tensor, parity.codes_of(sizes))
    state = reference.state_of(lowres or highres)
    return _numpy(reference.feature_decoder(state, vectors, lengths, heads))

  def condition(decoder):
    x = _tensor(parity.features_of(sizes))
    return _numpy(*reference.condition(reference.state_of(decoder), x, heads))

  found = {
    "selector": selector,
    "merger and bottleneck": encode,
    "feature_decoder": decode,
  }
  if lowres is not None and "unet_proj.weight" in lowres:
    found["condition"] = lambda: condition(lowres)
  if highres is not None:
    found["highres_condition"] = lambda: condition(highres)
  return {name: _without_grad(run) for name, run in found.items()}


def _understanding(source: Mapping[str, Any], sizes) -> list[np.ndarray]:
  state = reference.state_of(source)
  own = {k.removeprefix("causal_encoder."): v for k, v in state.items()}
  x, keep = _tensor(parity.features_of(sizes)), _tensor(parity.keep_of(sizes))
  merged = reference.merger(own, x, keep, sizes["num_heads"])
  return _numpy(merged @ state["vit_proj.weight"].T + state["vit_proj.bias"])
