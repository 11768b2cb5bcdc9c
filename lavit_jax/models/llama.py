"""LLaMA over the joint vocabulary of text and visual codes.

    tokens i32[B, T] -> embed f[B, T, D] -> blocks -> hidden f[B, T, D] -> logits

Inputs are vectors, so that an image position may carry a continuous feature. Reference
facts, section 7.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from lavit_jax.core.contraction import contract
from lavit_jax.core.sharding import constrain
from lavit_jax.core.vocabulary import is_real
from lavit_jax.layers import attention, linear, norm, stack
from lavit_jax.models import block

VARIANTS = {
  "7b": dict(
    embed_dim=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    mlp_dim=11008,
    rope_base=10000.0,
    norm_eps=1e-5,
  ),
  "tiny": dict(
    embed_dim=192,
    num_layers=4,
    num_heads=4,
    num_kv_heads=4,
    head_dim=48,
    mlp_dim=512,
    rope_base=10000.0,
    norm_eps=1e-5,
  ),
}


class Attention(nn.Module):
  """The maps of attention, and its norms of queries and keys if it has some.

  Attributes:
    fields: of the block.
    dtype: compute dtype.
  """

  fields: block.Fields
  dtype: str

  def setup(self):
    dim, size = self.fields.embed_dim, self.fields.head_dim

    def heads(count, axis):
      shape, axes, bias = (
        (dim, count, size),
        ("embed", axis, None),
        self.fields.qkv_bias,
      )
      return linear.Einsum("btd,dnh->btnh", shape, axes, bias, self.dtype)

    self.query = heads(self.fields.num_heads, "heads")
    self.key = heads(self.fields.num_kv_heads, "kv_heads")
    self.value = heads(self.fields.num_kv_heads, "kv_heads")
    shape, axes = (self.fields.num_heads, size, dim), ("heads", None, "embed")
    self.out = linear.Einsum("btnh,nhd->btd", shape, axes, dtype=self.dtype)
    if self.fields.qk_norm != "none":
      norms = self.fields.norms()
      self.query_norm, self.key_norm = norms["query_norm"], norms["key_norm"]

  def project(self, x):
    """Queries [B, T, N, H], keys and values [B, T, K, H] of dtype[B, T, D]."""
    return self.query(x), self.key(x), self.value(x)

  def join(self, mixed):
    """dtype[B, T, D] of dtype[B, T, N, H]."""
    return self.out(mixed)

  def normed(self, name, x):
    """Queries or keys under their norm."""
    return getattr(self, name)(x)


class Mlp(nn.Module):
  """The maps of the gated layer.

  Attributes:
    fields: of the block.
    dtype: compute dtype.
  """

  fields: block.Fields
  dtype: str

  def setup(self):
    dim, wide = self.fields.embed_dim, self.fields.mlp_dim
    plain = functools.partial(linear.dense, use_bias=False, dtype=self.dtype)
    self.gate, self.up = plain(dim, wide), plain(dim, wide)
    self.down = plain(wide, dim, ("mlp", "embed"))

  def widen(self, x):
    """Gate and up, dtype[B, T, F] each, of dtype[B, T, D]."""
    pin = lambda x: constrain(x, "act_batch", "act_length", "act_mlp")
    return pin(self.gate(x)), pin(self.up(x))

  def narrow(self, hidden):
    """dtype[B, T, D] of dtype[B, T, F]."""
    return self.down(hidden)


class Block(nn.Module):
  """A block whose maps have an array each, over packed rows.

  Attributes:
    fields: what kind of block it is.
    dtype: compute dtype.
  """

  fields: block.Fields
  dtype: str

  @nn.compact
  def __call__(self, x, positions, segment_ids):
    """One layer: dtype[B, T, D] and int32[B, T] twice; and nothing per layer."""
    heads = Attention(self.fields, self.dtype, name="attention")
    mlp = Mlp(self.fields, self.dtype, name="mlp")
    norms = {
      name: norm.RMSNorm(self.fields.norm_eps, name=name)
      for name in ("attention_norm", "mlp_norm")
    }
    maps = block.Maps(
      lambda name, x: norms[name](x) if name in norms else heads.normed(name, x),
      heads.project,
      heads.join,
      mlp.widen,
      mlp.narrow,
      lambda x: constrain(x, "act_batch", "act_length", None),
    )
    attend = functools.partial(attend_packed, segment_ids=segment_ids)
    return block.apply(self.fields, maps, x, positions, attend), None


def attend_packed(query, key, value, segment_ids) -> jax.Array:
  """Causal attention inside segments; see `layers.attention.attend_packed`."""
  pin = lambda x: constrain(x, "act_batch", "act_length", "act_heads", None)
  query, key, value = pin(query), pin(key), pin(value)
  # Every device needs all keys of its rows: the length is gathered here, behind the
  # projections, else each device would project all places.
  key = constrain(key, "act_batch", None, "act_heads", None)
  value = constrain(value, "act_batch", None, "act_heads", None)
  return attention.attend_packed(query, key, value, segment_ids)


class Llama(nn.Module):
  """The language model.

  Attributes:
    vocab_size: real ids; rows up to `padded_size` are never predicted.
    padded_size: V, rows of the embedding table and columns of the head.
    embed_dim: D.
    num_layers: blocks.
    num_heads: N.
    num_kv_heads: K, N for LLaMA-7B.
    head_dim: H.
    mlp_dim: F.
    rope_base: wavelength base of the rotary positions.
    norm_eps: RMS norm epsilon.
    dtype: compute dtype.
    remat: rematerialization policy, a key of `stack.REMAT_POLICIES`.
    unroll: layers per scan step.
    rope_scaling: Llama-3.1's stretch of the positions, see `position.frequencies`.
    qkv_bias: see `block.Fields`; this and the next.
    qk_norm: "rms" in Qwen3.
    holes: ranges [first, after) of ids that are never predicted either.
  """

  vocab_size: int
  padded_size: int
  embed_dim: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  rope_base: float
  norm_eps: float
  dtype: str = "bfloat16"
  remat: str = "none"
  unroll: int = 1
  rope_scaling: tuple[float, ...] = ()
  qkv_bias: bool = False
  qk_norm: str = "none"
  holes: tuple[tuple[int, int], ...] = ()

  @property
  def fields(self) -> block.Fields:
    """What kind of blocks it has."""
    names = [field.name for field in dataclasses.fields(block.Fields)]
    return block.Fields(**{name: getattr(self, name) for name in names})

  def setup(self):
    self.embedding = linear.Embed(self.padded_size, self.embed_dim, self.dtype)
    blocks = stack.layers(Block, self.num_layers, self.remat, self.unroll, broadcast=2)
    self.blocks = blocks(self.fields, self.dtype)
    self.norm = norm.RMSNorm(self.norm_eps)
    self.head = Head(self.embed_dim, self.padded_size)

  def embed(self, tokens: jax.Array) -> jax.Array:
    """Looks up int32[B, T] ids: dtype[B, T, D]."""
    return self.embedding(tokens)

  def __call__(
    self, inputs: jax.Array, positions: jax.Array, segment_ids: jax.Array
  ) -> jax.Array:
    """Runs the blocks.

    Args:
      inputs: dtype[B, T, D] token embeddings or image features.
      positions: int32[B, T] position inside its segment.
      segment_ids: int32[B, T], 0 where padded.

    Returns:
      dtype[B, T, D] hidden states after the final norm.
    """
    x = constrain(inputs.astype(self.dtype), "act_batch", "act_length", None)
    x, _ = self.blocks(x, positions, segment_ids)
    return self.final(x)

  def final(self, x: jax.Array) -> jax.Array:
    """dtype[B, T, D] under the last norm."""
    return self.norm(x)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """float32[B, T, V] logits of dtype[B, T, D] states; padded ids are -inf."""
    head = self.head().astype(hidden.dtype)
    product = contract("btd,dv->btv", hidden, head, "float32")
    product = constrain(product, "act_batch", "act_length", "act_vocab")
    real = is_real(jnp.arange(self.padded_size), self.vocab_size, self.holes)
    return jnp.where(real, product, -jnp.inf)

  def everything(self, tokens, positions, segment_ids):
    """Touches every parameter, for initialization."""
    return self.logits(self(self.embed(tokens), positions, segment_ids))


class Head(nn.Module):
  """The untied output kernel.

  Attributes:
    embed_dim: D.
    padded_size: V.
  """

  embed_dim: int
  padded_size: int

  @nn.compact
  def __call__(self) -> jax.Array:
    """float32[D, V]."""
    return linear.param(
      self,
      "kernel",
      linear.fan_in(self.embed_dim),
      (self.embed_dim, self.padded_size),
      ("embed", "vocab"),
    )
