"""Token merger: kept patches absorb what the dropped ones held (paper, section 3.1).

features f[B, P, D], keep [B, P] -> 12 blocks -> f[B, P, D] at all positions; callers
gather the kept rows. The stream starts from the raw features; every block looks at
the dropped patches of the same normed features, `origin`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lavit_jax.core.sharding import constrain
from lavit_jax.layers import mlp, norm, stack
from lavit_jax.layers.heads import CrossAttention, SelfAttention

EPS = 1e-5


def policy_softmax(
  scores: jax.Array, allowed: jax.Array, eps: float = 1e-6
) -> jax.Array:
  """Softmax over allowed positions that leaks a little, as the reference does.

  The row maximum runs over all columns and eps / S goes to every column, so that a
  row with nothing allowed is uniform, and a forbidden score far above the allowed
  ones pulls the row towards uniform.

  Args:
    scores: float[B, N, T, S].
    allowed: float[B, 1, T, S] (or broadcastable), 1 where a query may look.
    eps: the leak.

  Returns:
    float32[B, N, T, S], rows sum to 1.
  """
  scores = scores.astype(jnp.float32)
  shifted = scores - scores.max(axis=-1, keepdims=True)
  exponent = jnp.exp(shifted) * allowed
  total = exponent.sum(axis=-1, keepdims=True)
  return (exponent + eps / scores.shape[-1]) / (total + eps)


def causal_policy(keep: jax.Array) -> jax.Array:
  """float32[B, P] keep -> [B, P, P]: earlier kept patches and the patch itself."""
  itself = jnp.eye(keep.shape[1])
  kept = keep[:, None, :]
  return jnp.tril(kept * (1 - itself) + itself)


def cross_policy(keep: jax.Array) -> jax.Array:
  """float32[B, P] keep -> [B, 1, P]: the dropped patches, whatever the query."""
  return 1 - keep[:, None, :]


class Block(nn.Module):
  """Causal attention among kept patches, cross attention to dropped ones, mlp.

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
    self, x: jax.Array, origin: jax.Array, keep: jax.Array
  ) -> tuple[jax.Array, None]:
    """One block.

    Args:
      x: dtype[B, P, D] stream.
      origin: dtype[B, P, D] normed raw features.
      keep: float32[B, P].

    Returns:
      dtype[B, P, D] and no per-layer output.
    """
    x = constrain(x, "act_images", None, None)
    heads = (self.num_heads, self.head_dim, self.dtype)
    causal = causal_policy(keep)[:, None]  # [B, 1, P, P]
    normed = norm.LayerNorm(EPS, name="norm0")(x)
    mixed = SelfAttention(*heads, name="causal_attn")(
      normed, lambda scores: policy_softmax(scores, causal)
    )
    self.sow("intermediates", "causal_out", mixed)
    x = x + mixed
    dropped = cross_policy(keep)[:, None]  # [B, 1, 1, P]
    normed = norm.LayerNorm(EPS, name="norm1")(x)
    mixed = CrossAttention(*heads, name="cross_attn")(
      normed, origin, lambda scores: policy_softmax(scores, dropped)
    )
    self.sow("intermediates", "cross_out", mixed)
    x = x + mixed
    normed = norm.LayerNorm(EPS, name="norm2")(x)
    x = x + mlp.Mlp(self.mlp_dim, self.dtype, name="mlp")(normed)
    self.sow("intermediates", "out", x)
    return x, None


class Merger(nn.Module):
  """The token merger.

  Attributes:
    embed_dim: D.
    num_layers: blocks.
    num_heads: N.
    head_dim: H.
    mlp_dim: F.
    dtype: compute dtype.
    remat: a key of `stack.REMAT_POLICIES`.
    unroll: layers per scan step.
  """

  embed_dim: int
  num_layers: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  dtype: str = "bfloat16"
  remat: str = "none"
  unroll: int = 1

  @nn.compact
  def __call__(self, features: jax.Array, keep: jax.Array) -> jax.Array:
    """Merges dropped patches into kept ones.

    Args:
      features: float[B, P, D] raw patch features, class token removed.
      keep: bool or float[B, P], 1 where kept; as a float it would carry gradient to
        the selector, through the policy softmax.

    Returns:
      dtype[B, P, D] for all positions; only the kept rows mean something.
    """
    if features.shape[-1] != self.embed_dim:
      raise ValueError(
        f"merger expects features of width {self.embed_dim}, got"
        f" {features.shape[-1]}; use the encoder it was made for"
      )
    x = features.astype(self.dtype)
    keep = keep.astype(jnp.float32)
    origin = norm.LayerNorm(EPS, name="ln_vision")(x)
    self.sow("intermediates", "origin", origin)
    blocks = stack.layers(Block, self.num_layers, self.remat, self.unroll, broadcast=2)
    x, _ = blocks(
      self.num_heads, self.head_dim, self.mlp_dim, self.dtype, name="blocks"
    )(x, origin, keep)
    return norm.LayerNorm(EPS, name="norm")(x)
