"""Proof of a GPU folder: every layer of it beside the model directory it came from.

Each module runs twice in float32 on the same random inputs: ours in JAX, and what the
folder holds, through transformers and diffusers. torch is imported when asked.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from lavit_jax.inference import pixel_parts
from lavit_jax.inference.pixel_parts import HIGH_RES
from lavit_jax.layers import linear
from lavit_jax.models import condition_heads, merger, vit, whitening
from lavit_jax.models.feature_decoder import FeatureDecoder
from lavit_jax.models.visual_tokenizer import VisualTokenizer
from lavit_jax.weights import files, model_directory, parity
from lavit_jax.weights.part import Part

PACKAGES = ("torch", "transformers", "diffusers")
CERTIFICATE = "parity.json"
Arrays = dict[str, np.ndarray]
Pair = tuple[Callable[[], Arrays], Callable[[], Arrays]]


def verify(source: str | os.PathLike, target: str | os.PathLike) -> dict[str, Any]:
  """Compares layer by layer and writes parity.json into the folder.

  Args:
    source: model directory.
    target: its GPU folder.

  Returns:
    The certificate.

  Raises:
    ValueError: a library is missing, the folder does not load, or a layer differs.
  """
  if not parity.has(*PACKAGES):
    raise ValueError(
      f"expected {', '.join(PACKAGES)}, which a GPU folder runs with, got not all of"
      " them; install them (pip install torch diffusers) and verify again"
    )
  present = model_directory.read_manifest(source)["parts"]
  parts = {name: model_directory.read_part(source, name) for name in present}
  records = [
    record
    for module, (ours, theirs) in _pairs(parts, pathlib.Path(target)).items()
    for record in _compared(module, ours(), theirs())
  ]
  certificate = {
    "kind": "gpu",
    "source": str(source),
    "tolerance": parity.TOLERANCE,
    "layers": records,
  }
  files.write_json(pathlib.Path(target) / CERTIFICATE, certificate)
  for record in records:
    print(f"{record['layer']}: largest deviation {record['largest_deviation']:.1e}")
  if wrong := [record["layer"] for record in records if not record["passed"]]:
    raise ValueError(
      f"expected {target} to compute what {source} computes, but these differ: {wrong};"
      " export it again"
    )
  return certificate


def _compared(module: str, ours: Arrays, theirs: Arrays) -> list[dict[str, Any]]:
  if ours.keys() != theirs.keys():
    raise ValueError(
      f"expected the layers {sorted(ours)} in {module}, got {sorted(theirs)}; export"
      " the folder again"
    )
  records = []
  for name, expected in ours.items():
    found = theirs[name].reshape(expected.shape)
    deviation = float(np.abs(found - expected).max())
    largest = max(1.0, float(np.abs(expected).max()))
    records.append(
      {
        "layer": f"{module}/{name}",
        "largest_deviation": deviation,
        "passed": deviation <= parity.TOLERANCE * largest,
      }
    )
  return records


def _layers(module, params, *inputs, method=None) -> Arrays:
  """The output of a JAX module and of each of its blocks."""
  run = functools.partial(module.apply, mutable=["intermediates"], method=method)
  with jax.default_matmul_precision("highest"):
    out, sown = jax.jit(run)({"params": parity.whole(params)}, *inputs)
  found = {"output": np.asarray(out, np.float32)}
  blocks = sown.get("intermediates", {}).get("blocks", {}).get("out", ())
  for stacked in blocks:
    found |= {f"block {i}": np.asarray(x) for i, x in enumerate(stacked)}
  return found


def _torch_layers(module, blocks, *inputs) -> Arrays:
  """The same of a PyTorch module."""
  import torch

  found, hooks = {}, []
  keep = lambda name: lambda m, i, out: found.__setitem__(name, _array(out))
  for i, block in enumerate(blocks):
    hooks.append(block.register_forward_hook(keep(f"block {i}")))
  with torch.no_grad():
    found["output"] = _array(module(*inputs))
  for hook in hooks:
    hook.remove()
  return found


def _array(tensor: Any) -> np.ndarray:
  return tensor.detach().float().numpy()


def _pairs(parts: Mapping[str, Part], folder: pathlib.Path) -> dict[str, Pair]:
  """Both sides of every module, run when they are called."""
  import torch
  import transformers

  model = transformers.AutoModelForImageTextToText.from_pretrained(
    folder, trust_remote_code=True, local_files_only=True, dtype=torch.float32
  ).eval()
  visual, sizes = model.visual, parts["visual_tokenizer"].config
  images, features = parity.images_of(parts["vit"].config), parity.features_of(sizes)
  keep = parity.keep_of(sizes) > 0
  ids = parity.ids_of(parts["llama"].config)
  tensor = lambda x: torch.from_numpy(np.ascontiguousarray(x))
  x, kept = tensor(features), tensor(keep)
  fields = ("embed_dim", "num_layers", "num_heads", "head_dim", "mlp_dim")
  merging = merger.Merger(**{f: sizes[f] for f in fields}, dtype="float32")
  tower = vit.VisionTransformer(**parts["vit"].config, dtype="float32")
  scoring = VisualTokenizer(**sizes, dtype="float32")
  trained, understood = parts["visual_tokenizer"].params, parts["understanding"].params

  def ours_encoder():
    found = _layers(tower, parts["vit"].params, images)
    return found | {"output": found["output"][:, 1:]}

  def theirs_encoder():
    pixels = tensor(images.transpose(0, 3, 1, 2))
    return _torch_layers(visual.encoder, visual.encoder.blocks, pixels)

  def theirs_merger(module):
    return lambda: _torch_layers(lambda a: module(a, kept), module.blocks, x)

  def ours_selector():
    tree = {"selector": trained["selector"]}
    return _layers(scoring, tree, features, features, method="select")

  def ours_projection():
    width = understood["vit_proj"]["bias"].shape[0]
    proj = linear.dense(sizes["embed_dim"], width, dtype="float32")
    return _layers(proj, understood["vit_proj"], features)

  pairs = {
    "encoder": (ours_encoder, theirs_encoder),
    "selector": (ours_selector, lambda: _torch_layers(visual.token_predictor, (), x)),
    "merger": (
      lambda: _layers(merging, trained["merger"], features, keep),
      theirs_merger(visual.causal_encoder),
    ),
    "other merger": (
      lambda: _layers(merging, understood["merger"], features, keep),
      theirs_merger(visual.understanding),
    ),
    "projection": (ours_projection, lambda: _torch_layers(visual.vit_proj, (), x)),
    "language": (
      lambda: {"output": parity.run_llama(parts)[0]},
      lambda: _torch_layers(lambda i: model(i).logits, (), tensor(ids).long()),
    ),
  }
  found = [prefix for prefix in (HIGH_RES, "") if f"{prefix}unet" in parts]
  for prefix, name in zip(found, ("pixels", "pixels_lowres")):
    pairs |= _pixel_pairs(parts, prefix, folder / name)
  return pairs


def _pixel_pairs(parts, prefix: str, folder: pathlib.Path) -> dict[str, Pair]:
  """Feature decoder and condition, U-Net and VAE of one pixel decoder."""
  import diffusers
  import torch

  from lavit_jax.weights import torch_side

  pipeline = diffusers.DiffusionPipeline.from_pretrained(
    folder, trust_remote_code=True, local_files_only=True, torch_dtype=torch.float32
  )
  component, sizes = pipeline.feature_decoder, parts["visual_tokenizer"].config
  rows = np.asarray(parts["codebook"].params["embedding"], np.float32)
  codes = np.arange(max(sizes["num_patches"] // 3, 1)) * 7 % len(rows)
  own = parts.get(f"{prefix}feature_decoder")
  trunk = own.params if own else parts["visual_tokenizer"].params["feature_decoder"]
  fields = {k: sizes[k] for k in FeatureDecoder.__dataclass_fields__ if k in sizes}
  module = FeatureDecoder(**fields | {"dtype": "float32"})
  side = lambda name: f"{prefix}{name}"

  def ours_decoder():
    return _layers(module, trunk, rows[codes][None], np.array([len(codes)], np.int32))

  def theirs_decoder():
    given = [torch.from_numpy(codes)]
    return _torch_layers(component, component.blocks, given)

  def named(outputs):
    return {str(i): np.asarray(out, np.float32) for i, out in enumerate(outputs)}

  pairs = {
    side("feature decoder"): (ours_decoder, theirs_decoder),
    side("condition"): (
      lambda: _condition(parts, prefix),
      lambda: _torch_condition(component, parity.features_of(sizes)),
    ),
  }
  theirs = torch_side.pixels(folder, parts, prefix)
  ours = {side("unet"): parity.run_unet, side("vae"): parity.run_vae}
  for name, run in theirs.items():
    mine = functools.partial(ours[name], parts, prefix)
    pairs[name] = (lambda mine=mine: named(mine()), lambda run=run: named(run()))
  return pairs


def _condition(parts: Mapping[str, Part], prefix: str) -> Arrays:
  """Context and pooled vector or grid, of whitened features where the model whitens."""
  part, white = parts[f"{prefix}condition"], None
  if "whitening" in parts:
    white = whitening.Whitening(**parity.whole(parts["whitening"].params))
  features = parity.features_of(parts["visual_tokenizer"].config)
  head = condition_heads.make(part.config["head"], "float32")
  with jax.default_matmul_precision("highest"):
    made = pixel_parts.condition_of(head, parity.whole(part.params), white, features)
  found = {"context": made.context, "pooled": made.pooled, "grid": made.grid}
  return {name: np.asarray(x) for name, x in found.items() if x is not None}


def _torch_condition(component, features: np.ndarray) -> Arrays:
  import torch

  with torch.no_grad():
    context, more = component.condition(torch.from_numpy(features))
  found = {name: _array(x) for name, x in more.items()}
  if "grid" in found:
    found["grid"] = found["grid"].transpose(0, 2, 3, 1)
  return {"context": _array(context)} | found
