"""The language model laid out for generation, and its pass over a cache of slots.

    Llama's stacked parameters -> one array per product and layer, the products of one
    input fused -> x dtype[P, Q, D] -> blocks over the cache -> hidden dtype[P, Q, D]

A weight is read once per step whatever the batch, and reading it is what a step costs:
so each product reads one contiguous array, and no layer is sliced from a stack (XLA on
CPU would copy the slice). The cache holds P prompts; Q queries of a prompt (its
tokens in prefill, its beams later) see the slots that a mask allows. Heads come before
slots, so that attention multiplies contiguous matrices.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import Mesh

from lavit_jax.core import sharding
from lavit_jax.core.contraction import contract
from lavit_jax.core.sharding import constrain
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.layers import linear
from lavit_jax.layers.attention import MASKED
from lavit_jax.models import block, llama

QKV = ("query", "key", "value")


@flax.struct.dataclass
class Layer:
  """Weights of one block; K key heads, each with its G query heads.

  Attributes:
    norms: parameters of each norm by its name.
    qkv: dtype[D, K, G + 2, H] queries, then the key, then the value of a key head.
    qkv_bias: float32[K, G + 2, H], or None.
    out: dtype[N, H, D].
    gate_up: dtype[D, 2, F].
    down: dtype[F, D].
  """

  norms: dict[str, Any]
  qkv: jax.Array
  qkv_bias: jax.Array | None
  out: jax.Array
  gate_up: jax.Array
  down: jax.Array


@flax.struct.dataclass
class Weights:
  """Weights of the whole model.

  Attributes:
    ends: the parameters around the blocks: embedding, norm and head.
    layers: one `Layer` per block.
  """

  ends: dict[str, Any]
  layers: tuple[Layer, ...]


@flax.struct.dataclass
class Cache:
  """Keys and values of all layers, dtype[P, K, S, H] each, [P K, S, H] on one device.

  With one prompt XLA on CPU drops the axis P from products, which makes it copy the
  whole cache at each write; axes that a mesh spreads cannot be merged.
  """

  key: tuple[jax.Array, ...]
  value: tuple[jax.Array, ...]


@flax.struct.dataclass
class Serving:
  """A language model that is ready to generate.

  Attributes:
    model: its sizes.
    vocabulary: the joint vocabulary.
    weights: its weights.
  """

  model: llama.Llama = flax.struct.field(pytree_node=False)
  vocabulary: Vocabulary = flax.struct.field(pytree_node=False)
  weights: Weights


LAYER_AXES = {
  "qkv": ("embed", "kv_heads", None, None),
  "qkv_bias": ("kv_heads", None, None),
  "out": ("heads", None, "embed"),
  "gate_up": ("embed", None, "mlp"),
  "down": ("mlp", "embed"),
}
END_AXES = {
  "embedding": {"embedding": (None, "served_embed")},
  "norm": {"scale": (None,)},
  "head": {"kernel": ("embed", "vocab")},
}


def lay_out(model: llama.Llama, params: Any) -> Weights:
  """Arranges the parameters of `models.llama.Llama`, norms in float32, others cast."""
  cast = lambda tree: jax.tree.map(lambda leaf: leaf.astype(model.dtype), tree)
  ends = {name: cast(params[name]) for name in ("embedding", "head")}
  ends["norm"] = params["norm"]
  layer = lambda i: jax.tree.map(lambda leaf: leaf[i], params["blocks"])
  fused = lambda i: lay_out_block(model.fields, model.dtype, layer(i))
  return Weights(ends, tuple(fused(i) for i in range(model.num_layers)))


def lay_out_block(fields: block.Fields, dtype: str, params: Any) -> Layer:
  """Arranges the parameters of one block."""
  cast = lambda tree: jax.tree.map(lambda leaf: leaf.astype(dtype), tree)
  attention, mlp = params["attention"], cast(params["mlp"])
  by_key_head = lambda x: rearrange(
    x, "... (k g) h -> ... k g h", k=fields.num_kv_heads
  )

  def fused(kind):
    parts = [by_key_head(attention[name][kind]) for name in QKV]
    return jnp.concatenate(parts, axis=-2)

  gate_up = [mlp[name]["kernel"][:, None] for name in ("gate", "up")]
  return Layer(
    norms={name: (params | attention)[name] for name in fields.norms()},
    qkv=cast(fused("kernel")),
    qkv_bias=fused("bias") if fields.qkv_bias else None,
    out=cast(attention["out"]["kernel"]),
    gate_up=jnp.concatenate(gate_up, axis=1),
    down=mlp["down"]["kernel"],
  )


def weight_shardings(model: llama.Llama, abstract: Weights, mesh: Mesh) -> Weights:
  """The sharding of each of the weights, by the table of logical names."""
  axes = Weights(END_AXES, (_layer_axes(abstract.layers[0]),) * model.num_layers)
  return sharding.parameter_shardings(abstract, axes, mesh)


def _layer_axes(layer: Layer) -> Layer:
  """Logical names of one layer's axes; norms stay whole."""
  unsplit = jax.tree.map(lambda leaf: (None,) * leaf.ndim, layer)
  axes = {k: v for k, v in LAYER_AXES.items() if getattr(layer, k) is not None}
  return unsplit.replace(**axes)


@functools.cache
def _arranger(model: llama.Llama, mesh: Mesh):
  """One compiled program per model and mesh."""
  arrange = functools.partial(lay_out, model)

  def run(params):
    abstract = jax.eval_shape(arrange, params)
    shardings = weight_shardings(model, abstract, mesh)
    return jax.lax.with_sharding_constraint(arrange(params), shardings)

  return jax.jit(run)


@functools.cache
def block_arranger(fields: block.Fields, dtype: str, mesh: Mesh):
  """The program that lays out one block."""
  arrange = functools.partial(lay_out_block, fields, dtype)

  def run(params):
    layer = arrange(params)
    shardings = sharding.parameter_shardings(layer, _layer_axes(layer), mesh)
    return jax.lax.with_sharding_constraint(layer, shardings)

  return jax.jit(run)


def prepare(
  model: llama.Llama, params: Any, vocabulary: Vocabulary, mesh: Mesh
) -> Serving:
  """Lays a model out on a mesh; `params` are left as they are."""
  with jax.set_mesh(mesh):
    return Serving(model, vocabulary, _arranger(model, mesh)(params))


def embed(model: llama.Llama, weights: Weights, tokens: jax.Array) -> jax.Array:
  """Vectors dtype[P, Q, D] of int32[P, Q] ids."""
  return model.apply({"params": weights.ends}, tokens, method="embed")


def logits(model: llama.Llama, weights: Weights, hidden: jax.Array) -> jax.Array:
  """float32[P, Q, V] of dtype[P, Q, D] states; padded ids are -inf."""
  return model.apply({"params": weights.ends}, hidden, method="logits")


def prefill(
  model: llama.Llama,
  weights: Weights,
  inputs: jax.Array,
  segment_ids: jax.Array,
  positions: jax.Array,
  new_slots: int,
) -> tuple[jax.Array, Cache]:
  """Reads prompts.

  Args:
    model: sizes.
    weights: of `lay_out`.
    inputs: float[P, T, D] prompt vectors, left padded.
    segment_ids: int32[P, T] 1, and 0 on padding.
    positions: int32[P, T], counted from 0 at the first true token.
    new_slots: free slots to append to the cache.

  Returns:
    float32[P, V] logits after the last token, and a cache of T + `new_slots` slots.
  """
  length = inputs.shape[1]
  causal = jnp.tril(jnp.ones((length, length), bool))
  mask = causal & (segment_ids > 0)[:, None, :]
  key, value = [], []

  def begin(layer, new_key, new_value):
    slots = [(0, 0)] * (new_key.ndim - 2) + [(0, new_slots), (0, 0)]
    key.append(_on_mesh(jnp.pad(new_key, slots)))
    value.append(_on_mesh(jnp.pad(new_value, slots)))
    return new_key, new_value

  hidden = _blocks(model, weights, inputs, positions, mask, begin)
  last = logits(model, weights, hidden[:, -1:])[:, 0]
  return last, Cache(tuple(key), tuple(value))


def extend(
  model: llama.Llama,
  weights: Weights,
  cache: Cache,
  tokens: jax.Array,
  positions: jax.Array,
  mask: jax.Array,
  slot: jax.Array,
) -> tuple[jax.Array, Cache]:
  """Feeds ids into the next slots.

  Args:
    model: sizes.
    weights: of `lay_out`.
    cache: keys and values so far.
    tokens: int32[P, Q] ids.
    positions: int32[P, Q].
    mask: bool[P, Q, S] slots that each query sees, its own among them.
    slot: int32[] slot of the first of the Q ids; the others follow.

  Returns:
    float32[P, Q, V] logits after each id, and the cache with them.
  """
  key, value = list(cache.key), list(cache.value)

  def append(layer, new_key, new_value):
    put = jax.lax.dynamic_update_slice_in_dim
    key[layer] = _on_mesh(put(key[layer], new_key, slot, axis=-2))
    value[layer] = _on_mesh(put(value[layer], new_value, slot, axis=-2))
    return key[layer], value[layer]

  inputs = embed(model, weights, tokens)
  hidden = _blocks(model, weights, inputs, positions, mask, append)
  return logits(model, weights, hidden), Cache(tuple(key), tuple(value))


def _on_mesh(slots: jax.Array) -> jax.Array:
  return constrain(slots, "act_batch", "act_heads", None, None)


def _by_head(x: jax.Array) -> jax.Array:
  """[P, K, S, H] as products want it: merged on one device."""
  if sharding.is_partitioned():
    return _on_mesh(x)
  return rearrange(x, "p k s h -> (p k) s h")


def _blocks(model, weights, x, positions, mask, store) -> jax.Array:
  """All blocks and the final norm; `store` keeps new keys and returns those to see."""
  x, fields = _pin(x.astype(model.dtype)), model.fields
  to_slots = lambda x: _by_head(rearrange(x, "p q k h -> p k q h"))
  for i, layer in enumerate(weights.layers):

    def over_cache(query, key, value, i=i):
      return attend(query, *store(i, to_slots(key), to_slots(value)), mask)

    x = block.apply(fields, maps(model, layer), x, positions, over_cache)
  return model.apply({"params": weights.ends}, x, method="final")


def _pin(x: jax.Array) -> jax.Array:
  return constrain(x, "act_batch", None, None)


def maps(model: llama.Llama, layer: Layer) -> block.Maps:
  """The maps of a block from its fused weights."""
  norms = model.fields.norms()

  def project(x):
    qkv = contract("pqd,dkch->pqkch", x, layer.qkv)
    if layer.qkv_bias is not None:
      qkv = linear.add_shared(qkv, layer.qkv_bias)
    qkv = constrain(qkv, "act_batch", None, "act_heads", None, None)
    query = rearrange(qkv[:, :, :, :-2], "p q k g h -> p q (k g) h")
    return query, qkv[:, :, :, -2], qkv[:, :, :, -1]

  def widen(x):
    both = contract("pqd,dcf->pqcf", x, layer.gate_up)
    both = constrain(both, "act_batch", None, None, "act_mlp")
    return both[:, :, 0], both[:, :, 1]

  return block.Maps(
    normed=lambda name, x: norms[name].apply({"params": layer.norms[name]}, x),
    project=project,
    join=lambda mixed: contract("pqnh,nhd->pqd", mixed, layer.out),
    widen=widen,
    narrow=lambda hidden: contract("pqf,fd->pqd", hidden, layer.down),
    pin=_pin,
  )


def attend(
  query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array
) -> jax.Array:
  """Softmax attention over slots.

  Args:
    query: dtype[P, Q, N, H].
    key: dtype[P, K, S, H], or with the first axes merged.
    value: as `key`.
    mask: bool[P, Q, S], True where a query may look.

  Returns:
    dtype[P, Q, N, H].
  """
  prompts, count, num_heads, size = query.shape
  heads = key.size // (prompts * key.shape[-2] * size)
  groups = num_heads // heads
  query = rearrange(query * size**-0.5, "p q (k g) h -> p k (q g) h", k=heads)
  rows = _by_head(query)
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  scores = product("...rh,...sh->...rs", rows, key)
  seen = jnp.repeat(mask, groups, axis=1) if groups > 1 else mask
  apart = scores.reshape(prompts, heads, *scores.shape[-2:])
  apart = jnp.where(seen[:, None], apart, MASKED)
  weights = jax.nn.softmax(apart, axis=-1).astype(value.dtype).reshape(scores.shape)
  mixed = jnp.einsum("...rs,...sh->...rh", weights, value)
  mixed = mixed.reshape(prompts, heads, *mixed.shape[-2:])
  return rearrange(mixed, "p k (q g) h -> p q (k g) h", q=count)
