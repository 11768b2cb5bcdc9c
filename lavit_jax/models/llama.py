"""LLaMA over the joint vocabulary of text and visual codes.

    tokens i32[B, T] -> embed f[B, T, D] -> blocks -> hidden f[B, T, D] -> logits

Inputs are vectors, so that an image position may carry a continuous feature. Reference
facts, section 7.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from lavit_jax.core.contraction import contract
from lavit_jax.core.sharding import constrain
from lavit_jax.core.vocabulary import is_real
from lavit_jax.layers import attention, linear, mlp, norm, position, stack

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


class SelfAttention(nn.Module):
  """Causal attention inside segments.

  Attributes:
    num_heads: N.
    num_kv_heads: K, shared by N / K query heads each.
    head_dim: H.
    rope_base: wavelength base of the rotary positions.
    dtype: compute dtype.
    rope_scaling: see `position.frequencies`.
  """

  num_heads: int
  num_kv_heads: int
  head_dim: int
  rope_base: float
  dtype: str = "bfloat16"
  rope_scaling: tuple[float, ...] = ()

  @nn.compact
  def __call__(self, x, positions, segment_ids):
    """Attends.

    Args:
      x: dtype[B, T, D].
      positions: int32[B, T].
      segment_ids: int32[B, T]; they alone decide who sees whom.

    Returns:
      dtype[B, T, D].
    """
    dim = x.shape[-1]

    def heads(name, count, axis):
      return linear.Einsum(
        "btd,dnh->btnh",
        (dim, count, self.head_dim),
        ("embed", axis, None),
        dtype=self.dtype,
        name=name,
      )(x)

    rope = (self.rope_base, self.rope_scaling)
    query = position.rotate(heads("query", self.num_heads, "heads"), positions, *rope)
    key = position.rotate(heads("key", self.num_kv_heads, "kv_heads"), positions, *rope)
    value = heads("value", self.num_kv_heads, "kv_heads")
    query, key, value = (
      constrain(x, "act_batch", "act_length", "act_heads", None)
      for x in (query, key, value)
    )
    # Every device needs all keys of its rows: the length is gathered here, behind the
    # projections, else each device would project all places.
    key = constrain(key, "act_batch", None, "act_heads", None)
    value = constrain(value, "act_batch", None, "act_heads", None)
    mixed = attention.attend_packed(query, key, value, segment_ids)
    out = linear.Einsum(
      "btnh,nhd->btd",
      (self.num_heads, self.head_dim, dim),
      ("heads", None, "embed"),
      dtype=self.dtype,
      name="out",
    )
    return out(mixed)


class Block(nn.Module):
  """x += attention(norm x); x += mlp(norm x).

  Attributes:
    num_heads: N.
    num_kv_heads: K.
    head_dim: H.
    mlp_dim: F.
    rope_base: wavelength base.
    norm_eps: RMS norm epsilon.
    dtype: compute dtype.
    rope_scaling: see `position.frequencies`.
  """

  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  rope_base: float
  norm_eps: float
  dtype: str = "bfloat16"
  rope_scaling: tuple[float, ...] = ()

  @nn.compact
  def __call__(self, x, positions, segment_ids):
    """One layer: arguments as `SelfAttention`; the result, and nothing per layer."""
    attend = SelfAttention(
      self.num_heads,
      self.num_kv_heads,
      self.head_dim,
      self.rope_base,
      self.dtype,
      self.rope_scaling,
      name="attention",
    )
    normed = norm.RMSNorm(self.norm_eps, name="attention_norm")(x)
    mixed = attend(normed, positions, segment_ids)
    x = constrain(x + mixed, "act_batch", "act_length", None)
    normed = norm.RMSNorm(self.norm_eps, name="mlp_norm")(x)
    x = x + mlp.GatedMlp(self.mlp_dim, self.dtype, name="mlp")(normed)
    return constrain(x, "act_batch", "act_length", None), None


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
  holes: tuple[tuple[int, int], ...] = ()

  def setup(self):
    self.embedding = linear.Embed(self.padded_size, self.embed_dim, self.dtype)
    blocks = stack.layers(Block, self.num_layers, self.remat, self.unroll, broadcast=2)
    self.blocks = blocks(
      self.num_heads,
      self.num_kv_heads,
      self.head_dim,
      self.mlp_dim,
      self.rope_base,
      self.norm_eps,
      self.dtype,
      self.rope_scaling,
    )
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
