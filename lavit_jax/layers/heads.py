"""Into heads and out of them: the projections of attention on the vision side.

Token merger and feature decoder share two whole layers. How scores become weights is an
argument there, since that is where they differ: weigh(float32[B, N, T, S]) -> the same.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from lavit_jax.core.sharding import constrain
from lavit_jax.layers import attention, linear


def to_heads(
  embed_dim: int, num_heads: int, head_dim: int, dtype: str, name: str | None = None
) -> linear.Einsum:
  """The projection [B, T, D] to [B, T, N, H]."""
  shape, axes = (embed_dim, num_heads, head_dim), ("embed", "heads", None)
  return linear.Einsum("btd,dnh->btnh", shape, axes, True, dtype, name=name)


def from_heads(
  num_heads: int, head_dim: int, embed_dim: int, dtype: str, name: str | None = None
) -> linear.Einsum:
  """The projection [B, T, N, H] to [B, T, D]."""
  shape, axes = (num_heads, head_dim, embed_dim), ("heads", None, "embed")
  return linear.Einsum("btnh,nhd->btd", shape, axes, True, dtype, name=name)


def fused(
  x: jax.Array, num_heads: int, head_dim: int, dtype: str, use_bias: bool = True
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Queries, keys and values [B, T, N, H] of [B, T, D], in one product named qkv."""
  qkv = linear.Einsum(
    "btd,dcnh->btcnh",
    (x.shape[-1], 3, num_heads, head_dim),
    ("embed", None, "heads", None),
    use_bias,
    dtype,
    name="qkv",
  )(x)
  qkv = constrain(qkv, "act_images", None, None, "act_heads", None)
  return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]


class SelfAttention(nn.Module):
  """Attention with one fused query, key and value projection.

  Attributes:
    num_heads: N.
    head_dim: H.
    dtype: compute dtype.
  """

  num_heads: int
  head_dim: int
  dtype: str = "bfloat16"

  @nn.compact
  def __call__(self, x: jax.Array, weigh: Callable) -> jax.Array:
    """Mixes dtype[B, T, D] by `weigh`, same shape out."""
    dim = x.shape[-1]
    query, key, value = fused(x, self.num_heads, self.head_dim, self.dtype)
    weights = weigh(attention.scores(query, key))
    self.sow("intermediates", "weights", weights)
    mixed = attention.mix(weights, value)
    proj = from_heads(self.num_heads, self.head_dim, dim, self.dtype, "proj")
    return proj(mixed)


class CrossAttention(nn.Module):
  """Attention of one sequence to another, with separate projections.

  Attributes:
    num_heads: N.
    head_dim: H.
    dtype: compute dtype.
  """

  num_heads: int
  head_dim: int
  dtype: str = "bfloat16"

  @nn.compact
  def __call__(self, x: jax.Array, source: jax.Array, weigh: Callable) -> jax.Array:
    """Mixes dtype[B, S, D] source into each of the dtype[B, T, D] queries."""
    dim = x.shape[-1]

    def project(name: str, inputs: jax.Array) -> jax.Array:
      layer = to_heads(dim, self.num_heads, self.head_dim, self.dtype, name)
      return constrain(layer(inputs), "act_images", None, "act_heads", None)

    query, key = project("query", x), project("key", source)
    weights = weigh(attention.scores(query, key))
    self.sow("intermediates", "weights", weights)
    mixed = attention.mix(weights, project("value", source))
    proj = from_heads(self.num_heads, self.head_dim, dim, self.dtype, "proj")
    return proj(mixed)


def softmax(scores: jax.Array) -> jax.Array:
  """The plain way to weigh: every position may look everywhere."""
  return jax.nn.softmax(scores.astype(jnp.float32), axis=-1)
