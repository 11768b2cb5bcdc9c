"""Heads: from reconstructed features to the condition of a U-Net.

x_rec f[B, P, D] -> context f[B, P, Dc], for Stable Diffusion 1.5
                 -> context, pooled f[B, E], for the SDXL type
                 -> context, grid f[B, p, p, Dg] with P = p p, for a U-Net that starts
                    from nothing and has not learnt which slot lies where
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from lavit_jax.layers import attention, linear
from lavit_jax.layers.heads import from_heads, to_heads


class LowResHead(nn.Module):
  """The condition of a Stable Diffusion 1.5 U-Net.

  Attributes:
    condition_dim: width of its cross attention, 768.
    dtype: compute dtype.
  """

  condition_dim: int
  dtype: str = "bfloat16"

  @property
  def widths(self) -> tuple[int, int, int]:
    """Widths of context, pooled vector and grid, 0 without one."""
    return self.condition_dim, 0, 0

  @nn.compact
  def __call__(self, x_rec: jax.Array) -> jax.Array:
    """Maps [B, P, D] features to [B, P, condition_dim]."""
    return linear.dense(
      x_rec.shape[-1],
      self.condition_dim,
      ("embed", None),
      dtype=self.dtype,
      name="unet_proj",
    )(x_rec)


class GridHead(nn.Module):
  """The condition of a U-Net that is also given the features where they lie.

  Attributes:
    condition_dim: width of its cross attention.
    hidden_dim: F, width between feature and grid: products over single patches are far
      cheaper than the U-Net's convolutions.
    grid_dim: width of its grid condition.
    dtype: compute dtype.
  """

  condition_dim: int
  hidden_dim: int
  grid_dim: int
  dtype: str = "bfloat16"

  @property
  def widths(self) -> tuple[int, int, int]:
    """Widths of context, pooled vector and grid, 0 without one."""
    return self.condition_dim, 0, self.grid_dim

  @nn.compact
  def __call__(self, x_rec: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Maps [B, P, D] to [B, P, condition_dim] and [B, p, p, grid_dim] with P = p p."""
    side = math.isqrt(x_rec.shape[1])
    if side**2 != x_rec.shape[1]:
      raise ValueError(
        f"a grid condition needs a square of patches, got {x_rec.shape[1]} of them; use"
        " a head without grid_dim"
      )

    def project(inputs: jax.Array, width: int, name: str) -> jax.Array:
      shape, axes = (inputs.shape[-1], width), ("embed", None)
      return linear.dense(*shape, axes, dtype=self.dtype, name=name)(inputs)

    hidden = nn.gelu(project(x_rec, self.hidden_dim, "grid_hidden"))
    grid = project(hidden, self.grid_dim, "grid_proj")
    rows = rearrange(grid, "b (p q) d -> b p q d", p=side)
    return project(x_rec, self.condition_dim, "unet_proj"), rows


class AttentionPool(nn.Module):
  """Attention of the mean token over itself and all tokens, as in CLIP's ResNets.

  Attributes:
    num_heads: N.
    head_dim: H.
    output_dim: width of the result.
    dtype: compute dtype.
  """

  num_heads: int
  head_dim: int
  output_dim: int
  dtype: str = "bfloat16"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Pools [B, P, D] to [B, output_dim]."""
    heads, dim = (self.num_heads, self.head_dim), x.shape[-1]
    positions = linear.param(
      self,
      "positional_embedding",
      linear.fan_in(dim),
      (x.shape[1] + 1, dim),
      (None, None),
    )
    tokens = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
    tokens = linear.add_shared(tokens, positions)  # [B, P+1, D]
    query = to_heads(dim, *heads, self.dtype, "query")(tokens[:, :1])
    key = to_heads(dim, *heads, self.dtype, "key")(tokens)
    value = to_heads(dim, *heads, self.dtype, "value")(tokens)
    mixed = attention.attend(query, key, value)  # [B, 1, N, H]
    return from_heads(*heads, self.output_dim, self.dtype, "out")(mixed)[:, 0]


class HighResHead(nn.Module):
  """The condition of an SDXL type U-Net, with its two widths and a pooled vector.

  Attributes:
    first_dim: first part of the condition, 768.
    second_dim: second part of the condition, 1280.
    pooled_dim: width of the pooled vector, 1280.
    num_heads: N of the pooling.
    head_dim: H of the pooling.
    dtype: compute dtype.
  """

  first_dim: int
  second_dim: int
  pooled_dim: int
  num_heads: int
  head_dim: int
  dtype: str = "bfloat16"

  @property
  def widths(self) -> tuple[int, int, int]:
    """Widths of context, pooled vector and grid, 0 without one."""
    return self.first_dim + self.second_dim, self.pooled_dim, 0

  @nn.compact
  def __call__(self, x_rec: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Maps [B, P, D] to [B, P, first_dim + second_dim] and [B, pooled_dim]."""

    def project(width: int, name: str) -> jax.Array:
      axes = ("embed", None)
      return linear.dense(dim, width, axes, dtype=self.dtype, name=name)(x_rec)

    dim = x_rec.shape[-1]
    first = project(self.first_dim, "unet_proj1")
    second = project(self.second_dim, "unet_proj2")
    pool = AttentionPool(
      self.num_heads, self.head_dim, self.pooled_dim, self.dtype, name="attnpool"
    )
    return jnp.concatenate([first, second], axis=-1), pool(x_rec)


Head = LowResHead | GridHead | HighResHead


def make(fields: Mapping[str, Any], dtype: str) -> Head:
  """The head of config or part fields: each kind has a width that no other has."""
  if "pooled_dim" in fields:
    return HighResHead(**fields, dtype=dtype)
  return (GridHead if "grid_dim" in fields else LowResHead)(**fields, dtype=dtype)
