"""Pictures to codes and back, with the frozen parts of stages 0 and 1.

    u8[B, H, W, 3] -> ViT, whiten -> select (sampled) -> merge -> nearest code [B, P]
    codes [B, P], lengths [B] -> codebook rows -> feature decoder -> f32[B, P, D]

`tokenize`, inference and evaluation share these functions: one picture has the same
codes everywhere.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lavit_jax.core import sharding
from lavit_jax.inference import frozen_parts
from lavit_jax.layers import linear
from lavit_jax.models import codebook, selector, visual_tokenizer, vit, whitening
from lavit_jax.models.visual_tokenizer import VisualTokenizer
from lavit_jax.weights import model_directory


@flax.struct.dataclass
class EncodedPictures:
  """Codes of a batch.

  Attributes:
    codes: int32[B, P] at all patches; those of kept patches mean something.
    keep: bool[B, P].
    log_probs: float32[B, P] log-probability of keeping each patch.
  """

  codes: jax.Array
  keep: jax.Array
  log_probs: jax.Array


@dataclasses.dataclass(frozen=True)
class PictureCoder:
  """The frozen parts behind `encode_pictures` and `decode_codes`.

  Attributes:
    tower: the vision encoder.
    model: the visual tokenizer.
    frozen: parameters by part: vit, visual_tokenizer, codebook and, with a small
      encoder, whitening.
  """

  tower: vit.VisionTransformer
  model: VisualTokenizer
  frozen: dict[str, Any]


def load(folder: str, mesh: Mesh, dtype: str, unroll: int = 1) -> PictureCoder:
  """Reads the parts vit, whitening (optional), visual_tokenizer and codebook.

  Args:
    folder: model directory.
    mesh: where to spread the weights.
    dtype: compute dtype; another dtype may give other codes.
    unroll: layers per scan step.
  """
  sizes = model_directory.part_config(folder, "visual_tokenizer")
  rows = model_directory.part_config(folder, "codebook")
  tower, frozen, _ = frozen_parts.encoder(folder, mesh, dtype, unroll)
  model = VisualTokenizer(**sizes, dtype=dtype, unroll=unroll)
  init = visual_tokenizer.init_function(model)
  abstract, axes = linear.abstract_params(init)
  spread = sharding.parameter_shardings(abstract, axes, mesh)
  table = jax.ShapeDtypeStruct((rows["num_codes"], rows["code_dim"]), jnp.float32)
  frozen = frozen | {
    "visual_tokenizer": model_directory.load(
      folder, "visual_tokenizer", abstract, spread
    ),
    "codebook": model_directory.load(
      folder, "codebook", {"embedding": table}, sharding.replicated(mesh)
    ),
  }
  return PictureCoder(tower, model, frozen)


def default_dtype(mesh: Mesh) -> str:
  """Where pictures are tokenized in float32 and where in bfloat16."""
  return "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"


def checksum(folder: str) -> str:
  """One checksum over every weight that codes and keep masks depend on."""
  wanted = ("vit", "whitening", "visual_tokenizer", "codebook")
  parts = model_directory.read_manifest(folder)["parts"]
  return model_directory.checksum(folder, [name for name in wanted if name in parts])


def encode_pictures(
  coder: PictureCoder, images: jax.Array, noise_ids: jax.Array, seed: int = 0
) -> EncodedPictures:
  """Tokenizes pictures; each picture's selection follows from its own noise id.

  Args:
    coder: the frozen parts.
    images: uint8[B, H, W, 3] at the encoder's size.
    noise_ids: uint32[B], `data.items.noise_id` of each picture.
    seed: seed of the selection, the same for all pictures of a data set.
  """
  key = jax.random.key(seed)
  return _encode(coder.tower, coder.model, coder.frozen, images, noise_ids, key)


@functools.partial(jax.jit, static_argnames=("tower", "model"))
def _encode(tower, model, frozen, images, noise_ids, key):
  features = frozen_parts.patch_features(tower, frozen, images)
  whitened = whitening.whiten(frozen.get("whitening"), features)
  variables = {"params": frozen["visual_tokenizer"]}
  log_probs = model.apply(variables, features, whitened, method="select")
  noise = selector.gumbel(key, noise_ids, model.num_patches)
  keep = selector.sample(log_probs, noise)
  z = model.apply(variables, whitened, keep, method="encode")
  codes = codebook.lookup(frozen["codebook"]["embedding"], z)
  return EncodedPictures(codes, keep > 0.5, log_probs[..., 0])


def pack_codes(
  codes: Sequence[np.ndarray], size: int, num_codes: int
) -> tuple[np.ndarray, np.ndarray]:
  """Lays lists of 1 to `size` codes side by side: int32[n, size], lengths int32[n]."""
  packed = np.zeros((len(codes), size), np.int32)
  for row, own in enumerate(codes):
    own = np.asarray(own, np.int32)
    if not 1 <= len(own) <= size or ((own < 0) | (own >= num_codes)).any():
      raise ValueError(
        f"expected 1 to {size} codes in [0, {num_codes}), got {len(own)} codes, the"
        f" first {own.tolist()[:5]}; give codes of this model's visual tokenizer"
      )
    packed[row, : len(own)] = own
  return packed, np.array([len(own) for own in codes], np.int32)


def decode_codes(
  coder: PictureCoder, codes: jax.Array, lengths: jax.Array
) -> jax.Array:
  """Reconstructs patch features float32[B, P, D] of left-packed codes.

  Args:
    coder: the frozen parts.
    codes: int32[B, P], in raster order of their patches; anything after the length.
    lengths: int32[B] codes of each picture.
  """
  return _decode(coder.model, coder.frozen, codes, lengths)


@functools.partial(jax.jit, static_argnames="model")
def _decode(model, frozen, codes, lengths):
  vectors = frozen["codebook"]["embedding"][codes]
  variables = {"params": frozen["visual_tokenizer"]}
  rebuilt = model.apply(variables, vectors, lengths, method="decode")
  return rebuilt.astype(jnp.float32)
