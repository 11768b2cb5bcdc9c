"""Proof that converted weights compute what the published ones compute.

Every module runs on random inputs twice in float32: ours on a model directory, and
PyTorch's on the published files (`weights.torch_reference`, transformers, diffusers).
Without torch the published files go through our own reader instead, which proves the
storing but not the tables; the certificate says which it was.
"""

import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from lavit_jax.layers import linear
from lavit_jax.models import (
  condition_heads,
  llama,
  openai_clip,
  published_config,
  unet,
  vae,
  vit,
)
from lavit_jax.models import merger as merger_model
from lavit_jax.models.visual_tokenizer import VisualTokenizer
from lavit_jax.weights import rules
from lavit_jax.weights.part import Part
from lavit_jax.weights.tensors import Stack, Tensor

TOLERANCE = 2e-5  # of the largest value, at least 1
LENGTH = 8  # ids that the language model reads
Parts = Mapping[str, Part]
Check = tuple[str, Callable[[Parts], list[np.ndarray]]]


def has(*packages: str) -> bool:
  """True when all of these can be imported."""
  return all(importlib.util.find_spec(name) is not None for name in packages)


def whole(params: Any) -> Any:
  """Reads a lazy tree as float32."""
  is_leaf = lambda leaf: isinstance(leaf, (Tensor, Stack))
  read = lambda leaf: np.asarray(leaf).astype(np.float32)
  return jax.tree.map(read, params, is_leaf=is_leaf)


def random(seed: int, *shape: int) -> np.ndarray:
  """Normal float32 inputs."""
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _apply(module, params, *inputs, method=None) -> list[np.ndarray]:
  run = jax.jit(functools.partial(module.apply, method=method))
  with jax.default_matmul_precision("highest"):
    return [np.asarray(x, np.float32) for x in jax.tree.leaves(run(params, *inputs))]


def images_of(sizes: Mapping[str, int]) -> np.ndarray:
  """One normalized picture float32[1, H, W, 3]."""
  return random(0, 1, sizes["image_size"], sizes["image_size"], 3)


def features_of(sizes: Mapping[str, int]) -> np.ndarray:
  """Patch features float32[1, P, D]."""
  return random(1, 1, sizes["num_patches"], sizes["embed_dim"])


def keep_of(sizes: Mapping[str, int]) -> np.ndarray:
  """A mask float32[1, P] that keeps about a third."""
  return (random(2, 1, sizes["num_patches"]) > 0.4).astype(np.float32)


def codes_of(sizes: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
  """Code vectors float32[1, S, C] and their number int32[1], S a third of P."""
  count = max(sizes["num_patches"] // 3, 1)
  return random(3, 1, count, sizes["code_dim"]), np.array([max(count - 1, 1)], np.int32)


def ids_of(sizes: Mapping[str, int]) -> np.ndarray:
  """Ids int32[1, LENGTH]."""
  found = np.random.default_rng(4).integers(0, sizes["vocab_size"], (1, LENGTH))
  return found.astype(np.int32)


def unet_inputs(sizes: Mapping[str, Any]) -> dict[str, np.ndarray | None]:
  """Latents, time, context; pooled vector, time ids and grid where there are any."""
  side = 2 * 2 ** (len(sizes["level_channels"]) - 1)
  sized = sizes["pooled_dim"] > 0
  ids = np.array([[256, 256, 0, 0, 256, 256]], np.float32)
  grid_dim = sizes.get("grid_dim", 0)
  return {
    "latents": random(5, 1, side, side, sizes["channels"]),
    "time": np.array([501], np.int32),
    "context": random(6, 1, 9, sizes["context_dim"]),
    "pooled": random(7, 1, sizes["pooled_dim"]) if sized else None,
    "time_ids": ids if sized else None,
    "grid": random(8, 1, side, side, grid_dim) if grid_dim else None,
  }


def run_vit(parts: Parts) -> list[np.ndarray]:
  """Features of a picture."""
  part = parts["vit"]
  model = vit.VisionTransformer(**part.config, dtype="float32")
  return _apply(model, {"params": whole(part.params)}, images_of(part.config))


def run_selector(parts: Parts) -> list[np.ndarray]:
  """Log-probabilities of keeping patches."""
  return _tokenizer(parts, ("selector",), "select", lambda s: (features_of(s),))


def run_encoder(parts: Parts) -> list[np.ndarray]:
  """Unit vectors before the lookup."""
  names = ("merger", "encode_task_layer")
  return _tokenizer(parts, names, "encode", lambda s: (features_of(s), keep_of(s)))


def run_decoder(parts: Parts) -> list[np.ndarray]:
  """Reconstructed features of codes."""
  return _tokenizer(parts, ("feature_decoder",), "decode", codes_of)


def _tokenizer(parts: Parts, names, method: str, inputs) -> list[np.ndarray]:
  part = parts["visual_tokenizer"]
  model = VisualTokenizer(**part.config, dtype="float32")
  params = whole({name: part.params[name] for name in names})
  return _apply(model, {"params": params}, *inputs(part.config), method=method)


def run_condition(parts: Parts, prefix: str = "") -> list[np.ndarray]:
  """What the pixel decoder is conditioned on."""
  part, sizes = parts[f"{prefix}condition"], parts["visual_tokenizer"].config
  head = condition_heads.make(part.config["head"], "float32")
  return _apply(head, {"params": whole(part.params)}, features_of(sizes))


def run_understanding(parts: Parts) -> list[np.ndarray]:
  """Continuous features as the language model reads them."""
  sizes, params = parts["visual_tokenizer"].config, whole(parts["understanding"].params)
  fields = ("embed_dim", "num_layers", "num_heads", "head_dim", "mlp_dim")
  model = merger_model.Merger(**{f: sizes[f] for f in fields}, dtype="float32")
  merged = _apply(
    model, {"params": params["merger"]}, features_of(sizes), keep_of(sizes)
  )
  width = params["vit_proj"]["bias"].shape[0]
  proj = linear.dense(sizes["embed_dim"], width, dtype="float32")
  return _apply(proj, {"params": params["vit_proj"]}, merged[0])


def llama_module(config: Mapping[str, Any]) -> llama.Llama:
  """The language model of a part's configuration, in float32."""
  names = set(llama.Llama.__dataclass_fields__) & set(config)
  fixed = lambda value: tuple(value) if isinstance(value, list) else value
  return llama.Llama(**{n: fixed(config[n]) for n in names} | {"dtype": "float32"})


def run_llama(parts: Parts) -> list[np.ndarray]:
  """Logits of a few ids."""
  part = parts["llama"]
  ids = ids_of(part.config)
  positions = np.arange(LENGTH, dtype=np.int32)[None]
  logits = _apply(
    llama_module(part.config),
    {"params": whole(part.params)},
    *(ids, positions, np.ones_like(ids)),
    method="everything",
  )
  return [logits[0][..., : part.config["vocab_size"]]]


def run_openai_clip(parts: Parts) -> list[np.ndarray]:
  """Embeddings of a picture and of a text."""
  part = parts["openai_clip"]
  module = openai_clip.OpenaiClip(**part.config, dtype="float32")
  images = images_of(part.config["vision"])
  ids = clip_ids_of(part.config["text"])
  lengths = ids.argmax(-1).astype(np.int32) + 1
  return _apply(module, {"params": whole(part.params)}, images, ids, lengths)


def clip_ids_of(sizes: Mapping[str, int]) -> np.ndarray:
  """Ids int32[1, T] of a text that ends, with the highest id, before its room does."""
  length, last = sizes["max_length"], sizes["vocab_size"] - 1
  ids = np.random.default_rng(4).integers(0, last, (1, length)).astype(np.int32)
  ids[:, length // 2] = last
  return ids


def run_unet(parts: Parts, prefix: str = "") -> list[np.ndarray]:
  """Predicted noise."""
  part = parts[f"{prefix}unet"]
  given, fields = unet_inputs(part.config), published_config.own_fields(part.config)
  model = unet.UNet(**_tuples(fields), dtype="float32")
  latents, time, context = given["latents"], given["time"], given["context"]
  extra = (None, given["pooled"], given["time_ids"], given["grid"])
  return _apply(model, {"params": whole(part.params)}, latents, time, context, *extra)


def run_vae(parts: Parts, prefix: str = "") -> list[np.ndarray]:
  """Latents' mean of a picture, and the picture of random latents."""
  part = parts[f"{prefix}vae"]
  fields = published_config.own_fields(part.config)
  model = vae.AutoencoderKL(**_tuples(fields))
  params = {"params": whole(part.params)}
  image, latents = vae_inputs(part.config)
  mean = _apply(model, params, image, method="encode")[0]
  return [mean, *_apply(model, params, latents, method="decode")]


def vae_inputs(sizes: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
  """A picture and latents."""
  side = 2 * 2 ** (len(sizes["level_channels"]) - 1)
  image = np.tanh(random(8, 1, side, side, 3))
  return image, random(9, 1, 2, 2, sizes["latent_channels"])


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
  fixed = lambda value: tuple(value) if isinstance(value, list) else value
  return {name: fixed(value) for name, value in fields.items()}


def checks(parts: Parts) -> Iterator[Check]:
  """Names and functions of all that the parts can compute."""
  if "vit" in parts:
    yield "vit", run_vit
  if "visual_tokenizer" in parts:
    yield "selector", run_selector
    yield "merger and bottleneck", run_encoder
    yield "feature_decoder", run_decoder
  if "understanding" in parts:
    yield "understanding", run_understanding
  if "llama" in parts:
    yield "llama", run_llama
  if "openai_clip" in parts:
    yield "openai_clip", run_openai_clip
  for prefix in ("", "highres_"):
    for name, run in (
      ("condition", run_condition),
      ("unet", run_unet),
      ("vae", run_vae),
    ):
      if prefix + name in parts and (
        name != "condition" or "visual_tokenizer" in parts
      ):
        yield prefix + name, functools.partial(run, prefix=prefix)


def compare(
  ours: Parts, published: Parts, torch_side: Mapping[str, Callable[[], list[Any]]]
) -> list[dict[str, Any]]:
  """Largest deviations of every module.

  Args:
    ours: parts of the model directory.
    published: parts read from the published files.
    torch_side: what PyTorch computes, by module; modules without it are compared
      through our own reader.

  Returns:
    One record per module: name, largest deviation and value, the other side, passed.
  """
  records = []
  for name, run in checks(ours):
    found = run(ours)
    by_torch = name in torch_side
    expected = torch_side[name]() if by_torch else run(published)
    deviation = max(
      float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True)
    )
    largest = max(float(np.abs(b).max()) for b in expected)
    records.append(
      {
        "module": name,
        "largest_deviation": deviation,
        "largest_value": largest,
        "other_side": "torch" if by_torch else "our reader",
        "passed": bool(deviation <= TOLERANCE * max(1.0, largest)),
      }
    )
  return records


def different_tensors(ours: Parts, published: Parts) -> list[str]:
  """Names of tensors whose bits differ between the two sides, or that one lacks.

  Rows of the vocabulary's padding do not count: no export has them.
  """
  wrong = sorted(f"part {name}" for name in set(published) - set(ours))
  for name in sorted(set(published) & set(ours)):
    flat, other = (rules.flatten(side[name].params) for side in (ours, published))
    for path in sorted(set(flat) | set(other)):
      sides = [side.get(path) for side in (flat, other)]
      if name == "llama":
        size = ours[name].config["vocab_size"]
        sides = [_without_padding(path, side, size) for side in sides]
      if any(side is None for side in sides) or not _same(*sides):
        wrong.append(f"{name}/{path}")
  return wrong


def _without_padding(path: str, leaf: Any, size: int) -> Any:
  if leaf is None or path not in ("embedding/embedding", "head/kernel"):
    return leaf
  whole = np.asarray(leaf)
  return whole[:size] if path == "embedding/embedding" else whole[:, :size]


def _same(a: Any, b: Any) -> bool:
  """Bits of two leaves, layer by layer."""
  layers = range(len(a.layers)) if isinstance(a, Stack) else [None]
  if a.shape != b.shape or a.dtype != b.dtype:
    return False
  pick = lambda leaf, i: leaf if i is None else leaf[i]
  return all(
    np.array_equal(*(np.asarray(pick(x, i)).reshape(-1).view(np.uint8) for x in (a, b)))
    for i in layers
  )
