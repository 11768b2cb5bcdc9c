"""Feature decoder: from visual codes back to the encoder's features (paper, 3.1).

vectors f[B, S, C] left-packed codebook rows -> x_rec f[B, P, D], the reconstruction
of the raw patch features. Codes carry their rank, not their place in the image: the
layout is inferred from content. `condition_heads` turns x_rec into a condition.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lavit_jax.core.sharding import constrain
from lavit_jax.layers import linear, mlp, norm, stack
from lavit_jax.layers.heads import CrossAttention, SelfAttention, softmax

EPS = 1e-5
# Additive and finite, as in the reference: it defines what an image without codes does.
PADDING_SCORE = -10000.0


class TaskLayer(nn.Module):
  """Linear, tanh, linear: the bottleneck at either end of the codes.

  Attributes:
    output_dim: width of the result.
    dtype: compute dtype.
  """

  output_dim: int
  dtype: str = "bfloat16"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, T, D] to [B, T, output_dim]."""
    dim = x.shape[-1]
    x = jnp.tanh(linear.dense(dim, dim, dtype=self.dtype, name="fc1")(x))
    out = linear.dense(
      dim, self.output_dim, ("embed", None), dtype=self.dtype, name="fc2"
    )
    return out(x)


class CodeProjection(nn.Module):
  """The linear map of code vectors into the decoder.

  Its kernel starts with unit deviation, so that unit vectors give unit activations.

  Attributes:
    embed_dim: D.
    dtype: compute dtype.
  """

  embed_dim: int
  dtype: str = "bfloat16"

  @nn.compact
  def __call__(self, vectors: jax.Array) -> jax.Array:
    """Maps [B, S, C] to [B, S, D]."""
    dim = self.embed_dim
    shape, axes = (vectors.shape[-1], dim), (None, "embed")
    kernel = linear.param(self, "kernel", nn.initializers.normal(1.0), shape, axes)
    bias = linear.param(self, "bias", nn.initializers.zeros, (dim,), ("embed",))
    kernel, vectors = kernel.astype(self.dtype), vectors.astype(self.dtype)
    return linear.add_shared(jnp.einsum("bsc,cd->bsd", vectors, kernel), bias)


class Block(nn.Module):
  """Self-attention among queries, cross attention to codes, mlp.

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
  def __call__(
    self, x: jax.Array, codes: jax.Array, shift: jax.Array
  ) -> tuple[jax.Array, None]:
    """One block.

    Args:
      x: dtype[B, P, D] query stream.
      codes: dtype[B, S, D] projected codes.
      shift: float32[B, S] added to the scores of each code.

    Returns:
      dtype[B, P, D] and no per-layer output.
    """
    x = constrain(x, "act_images", None, None)
    heads = (self.num_heads, self.head_dim, self.dtype)
    normed = norm.LayerNorm(EPS, name="norm0")(x)
    x = x + SelfAttention(*heads, name="self_attn")(normed, softmax)
    normed = norm.LayerNorm(EPS, name="norm1")(x)
    x = x + CrossAttention(*heads, name="cross_attn")(
      normed, codes, lambda scores: softmax(scores + shift[:, None, None])
    )
    normed = norm.LayerNorm(EPS, name="norm2")(x)
    x = x + mlp.Mlp(self.mlp_dim, self.dtype, name="mlp")(normed)
    self.sow("intermediates", "out", x)
    return x, None


class FeatureDecoder(nn.Module):
  """Reconstructs patch features from codes.

  Attributes:
    embed_dim: D.
    num_layers: blocks.
    num_heads: N.
    head_dim: H.
    mlp_dim: F.
    num_patches: P, queries and most codes of an image.
    code_dim: C.
    dtype: compute dtype.
    remat: a key of `stack.REMAT_POLICIES`.
    unroll: layers per scan step.
  """

  embed_dim: int
  num_layers: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  num_patches: int
  code_dim: int
  dtype: str = "bfloat16"
  remat: str = "none"
  unroll: int = 1

  @nn.compact
  def __call__(self, vectors: jax.Array, lengths: jax.Array) -> jax.Array:
    """Reconstructs features.

    Args:
      vectors: float[B, S, C] code vectors packed to the left, S <= P.
      lengths: int32[B] codes of each image.

    Returns:
      dtype[B, P, D] reconstruction of the raw patch features.
    """
    size, dim = vectors.shape[1], self.embed_dim
    if size > self.num_patches or vectors.shape[2] != self.code_dim:
      raise ValueError(
        f"code vectors must be [B, at most {self.num_patches}, {self.code_dim}], got"
        f" {vectors.shape}; use the codebook and image size of this decoder"
      )
    shape, axes = (self.num_patches, dim), (None, "embed")
    normal = nn.initializers.normal
    ranks = linear.param(self, "pos_embed", normal(0.02), shape, axes)
    queries = linear.param(self, "query_embed", normal(1.0), shape, axes)
    filled = jnp.arange(size) < lengths[:, None]  # [B, S]
    codes = CodeProjection(dim, self.dtype, name="in_proj")(vectors)
    self.sow("intermediates", "in_proj_out", codes)
    # Padding is zero after the projection, bias included, and still carries its rank.
    codes = jnp.where(filled[..., None], codes, 0)
    codes = linear.add_shared(codes, ranks[:size])
    shift = jnp.where(filled, 0.0, PADDING_SCORE)
    # Cast once spread, so that the sum over pictures is one of float32.
    x = jnp.broadcast_to(queries, (vectors.shape[0], *shape)).astype(self.dtype)
    blocks = stack.layers(Block, self.num_layers, self.remat, self.unroll, broadcast=2)
    x, _ = blocks(
      self.num_heads, self.head_dim, self.mlp_dim, self.dtype, name="blocks"
    )(x, codes, shift)
    x = norm.LayerNorm(EPS, name="norm")(x)
    self.sow("intermediates", "norm_out", x)
    return TaskLayer(dim, self.dtype, name="decode_task_layer")(x)
