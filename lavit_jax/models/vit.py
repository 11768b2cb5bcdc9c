"""The vision encoder: EVA-CLIP ViT-g/14 at full size, the same shape when tiny.

uint8[B, H, W, 3] -> normalize -> float32[B, H, W, 3] -> patches [B, P, D] -> class
token first [B, P+1, D] -> blocks -> [B, P+1, D], the residual stream. LaVIT reads
that stream; the final norm and head exist for the CLIP embedding only.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from lavit_jax.core.sharding import constrain
from lavit_jax.layers import attention, linear, mlp, norm, stack
from lavit_jax.layers.heads import from_heads, fused

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
EPS = 1e-6
POSITION_STD = 1.0

VARIANTS = {
  "g14": dict(
    image_size=224,
    patch_size=14,
    embed_dim=1408,
    num_layers=40,
    num_heads=16,
    head_dim=88,
    mlp_dim=6144,
    clip_dim=1024,
  ),
  "tiny": dict(
    image_size=64,
    patch_size=8,
    embed_dim=128,
    num_layers=4,
    num_heads=4,
    head_dim=32,
    mlp_dim=512,
    clip_dim=128,
  ),
}


def normalize(images: jax.Array) -> jax.Array:
  """Maps uint8[B, H, W, 3] pixels to float32 with CLIP's mean and deviation."""
  mean, std = jnp.array(PIXEL_MEAN), jnp.array(PIXEL_STD)
  return (images.astype(jnp.float32) / 255 - mean) / std


class Attention(nn.Module):
  """Self-attention with biases on queries and values but none on keys.

  Attributes:
    num_heads: N.
    head_dim: H.
    dtype: compute dtype.
  """

  num_heads: int
  head_dim: int
  dtype: str = "bfloat16"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Mixes dtype[B, T, D], same shape out."""
    dim, heads = x.shape[-1], (self.num_heads, self.head_dim)
    query, key, value = fused(x, *heads, self.dtype, use_bias=False)
    zeros, axes = nn.initializers.zeros, ("heads", None)
    q_bias = linear.param(self, "q_bias", zeros, heads, axes)
    v_bias = linear.param(self, "v_bias", zeros, heads, axes)
    query = linear.add_shared(query, q_bias)
    value = linear.add_shared(value, v_bias)
    mixed = attention.attend(query, key, value)
    return from_heads(*heads, dim, self.dtype, "proj")(mixed)


class Block(nn.Module):
  """Pre-norm transformer block.

  Attributes:
    num_heads: N.
    head_dim: H.
    mlp_dim: F.
    dtype: compute dtype.
  """

  num_heads: int
  head_dim: int
  mlp_dim: int
  dtype: str = "bfloat16"

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
    """Maps dtype[B, T, D] to the same shape, and no per-layer output."""
    x = constrain(x, "act_images", None, None)
    normed = norm.LayerNorm(EPS, name="norm1")(x)
    mixed = Attention(self.num_heads, self.head_dim, self.dtype, name="attn")(normed)
    self.sow("intermediates", "attn_out", mixed)
    x = x + mixed
    normed = norm.LayerNorm(EPS, name="norm2")(x)
    x = x + mlp.Mlp(self.mlp_dim, self.dtype, name="mlp")(normed)
    self.sow("intermediates", "out", x)
    return x, None


class VisionTransformer(nn.Module):
  """ViT with a class token and learned positions.

  Attributes:
    image_size: side of the square image in pixels.
    patch_size: side of a patch in pixels.
    embed_dim: D.
    num_layers: blocks.
    num_heads: N.
    head_dim: H.
    mlp_dim: F.
    clip_dim: width of the CLIP embedding.
    dtype: compute dtype.
    remat: a key of `stack.REMAT_POLICIES`.
    unroll: layers per scan step.
  """

  image_size: int
  patch_size: int
  embed_dim: int
  num_layers: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  clip_dim: int
  dtype: str = "bfloat16"
  remat: str = "none"
  unroll: int = 1

  @property
  def num_patches(self) -> int:
    """P, patches per image."""
    return (self.image_size // self.patch_size) ** 2

  def setup(self):
    """Makes the layers."""
    size, patch, dim = self.image_size, self.patch_size, self.embed_dim
    if size % patch:
      raise ValueError(
        f"image size {size} is not a multiple of patch size {patch}; crop or resize"
        " the image first"
      )
    small = nn.initializers.normal(0.02)
    self.patch_embed = linear.dense(
      patch * patch * 3, dim, (None, "embed"), dtype=self.dtype
    )
    self.cls_token = linear.param(self, "cls_token", small, (dim,), (None,))
    length = self.num_patches + 1
    # Positions start about as loud as contents: a small encoder that trains for minutes
    # must still carry them to its last block, or no decoder can place what it sees.
    loud = nn.initializers.normal(POSITION_STD)
    self.pos_embed = linear.param(
      self, "pos_embed", loud, (length, dim), (None, "embed")
    )
    blocks = stack.layers(Block, self.num_layers, self.remat, self.unroll)
    self.blocks = blocks(self.num_heads, self.head_dim, self.mlp_dim, self.dtype)
    self.norm = norm.LayerNorm(EPS)
    self.head = linear.dense(dim, self.clip_dim, ("embed", None), dtype=self.dtype)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Encodes images.

    Args:
      images: float[B, H, W, 3] normalized pixels.

    Returns:
      dtype[B, P+1, D] residual stream after the last block, class token first.
    """
    if images.shape[1:] != (self.image_size, self.image_size, 3):
      raise ValueError(
        f"images must be [B, {self.image_size}, {self.image_size}, 3], got"
        f" {images.shape}; resize them first"
      )
    p = self.patch_size
    patches = rearrange(images, "b (h p) (w q) c -> b (h w) (p q c)", p=p, q=p)
    x = self.patch_embed(patches)  # [B, P, D]
    self.sow("intermediates", "patch_embed_out", x)
    cls_token = jnp.broadcast_to(self.cls_token, (x.shape[0], 1, self.embed_dim))
    x = jnp.concatenate([cls_token.astype(x.dtype), x], axis=1)  # [B, P+1, D]
    x = linear.add_shared(x, self.pos_embed)
    features, _ = self.blocks(x)
    if self.is_initializing():
      self.clip_embedding(features)  # so that `init` makes norm and head too
    return features

  def clip_embedding(self, features: jax.Array) -> jax.Array:
    """The image's CLIP embedding: dtype[B, P+1, D] features -> dtype[B, clip_dim]."""
    token = constrain(self.norm(features)[:, :1], "act_images", None, None)
    return self.head(token)[:, 0]

  def embed(self, images: jax.Array) -> jax.Array:
    """The CLIP embedding dtype[B, clip_dim] of float[B, H, W, 3] pictures."""
    return self.clip_embedding(self(images))
