"""The block of a decoder-only language model: its mathematics, stated once.

    x f[B, T, D] -> norm -> queries, keys, values -> rotary positions -> attend -> x
    x -> norm -> gate, up f[B, T, F] -> x

How its weights lie is not its concern: training keeps one array per map, which may have
an adapter; serving fuses those that read the same input. Nor is what a query sees: that
is `attend`, over packed rows or over a cache.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax

from lavit_jax.layers import norm, position

Array = jax.Array
# The learned norms that a block may have.
NORMS = {"rms": norm.RMSNorm}


@dataclasses.dataclass(frozen=True)
class Fields:
  """What a published model says of its blocks.

  Attributes:
    embed_dim: D.
    num_heads: N.
    num_kv_heads: K, shared by N / K query heads each.
    head_dim: H.
    mlp_dim: F.
    rope_base: wavelength base of the rotary positions.
    norm_eps: epsilon of the norms.
    rope_scaling: see `position.frequencies`.
    qkv_bias: whether queries, keys and values have a bias.
    qk_norm: norm of each head's queries and keys, a key of `NORMS` or "none".
  """

  embed_dim: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  rope_base: float
  norm_eps: float
  rope_scaling: tuple[float, ...] = ()
  qkv_bias: bool = False
  qk_norm: str = "none"

  def norms(self) -> dict[str, nn.Module]:
    """The block's norms by name, without parameters."""
    kinds = dict.fromkeys(("attention_norm", "mlp_norm"), "rms")
    if self.qk_norm != "none":
      kinds |= dict.fromkeys(("query_norm", "key_norm"), self.qk_norm)
    # A module each: one under two names would be one set of parameters.
    return {name: NORMS[k](self.norm_eps, parent=None) for name, k in kinds.items()}


@dataclasses.dataclass(frozen=True)
class Maps:
  """The learned maps of one block.

  Attributes:
    normed: (name of `Fields.norms`, x) -> x.
    project: dtype[B, T, D] -> queries [B, T, N, H], keys and values [B, T, K, H].
    join: dtype[B, T, N, H] -> dtype[B, T, D].
    widen: dtype[B, T, D] -> gate and up, dtype[B, T, F] each.
    narrow: dtype[B, T, F] -> dtype[B, T, D].
    pin: the sharding of dtype[B, T, D] at the borders of the block.
  """

  normed: Callable[[str, Array], Array]
  project: Callable[[Array], tuple[Array, Array, Array]]
  join: Callable[[Array], Array]
  widen: Callable[[Array], tuple[Array, Array]]
  narrow: Callable[[Array], Array]
  pin: Callable[[Array], Array]


def apply(
  fields: Fields, maps: Maps, x: Array, positions: Array, attend: Callable
) -> Array:
  """x += attention(norm x); x += mlp(norm x).

  Args:
    fields: what kind of block it is.
    maps: its learned maps.
    x: dtype[B, T, D].
    positions: int32[B, T].
    attend: queries dtype[B, T, N, H], keys and values dtype[B, T, K, H], positions
      applied -> dtype[B, T, N, H].

  Returns:
    dtype[B, T, D].
  """
  query, key, value = maps.project(maps.normed("attention_norm", x))
  if fields.qk_norm != "none":
    query, key = maps.normed("query_norm", query), maps.normed("key_norm", key)
  rope = (positions, fields.rope_base, fields.rope_scaling)
  query, key = position.rotate(query, *rope), position.rotate(key, *rope)
  x = maps.pin(x + maps.join(attend(query, key, value)))
  gate, up = maps.widen(maps.normed("mlp_norm", x))
  return maps.pin(x + maps.narrow(nn.silu(gate) * up))
