"""Packed attention by the TPU's splash kernel: no table of scores ever exists.

    query [B, T, N, H], key and value [B, S, K, H], segment ids [B, T] -> [B, T, N, H]

A kernel under automatic axes would be replicated, so it runs in `shard_map` with specs
from the rules table: rows, heads and query positions are spread as they already are.
"""

import jax
import numpy as np
from einops import rearrange
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as kernels,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as masks,
)

from lavit_jax.core import sharding

LANES = 128  # the kernel's unit of length and head size
BLOCK = 512
# The kernel's output and its log-sum-exp, for rematerialization policies.
SAVED = "attention_residuals"


def suits(query: jax.Array, key: jax.Array) -> bool:
  """Whether the kernel takes these shapes here: on a TPU, in whole tiles.

  Args:
    query: dtype[B, T, N, H].
    key: dtype[B, S, K, H].
  """
  tiles = LANES * sharding.axis_size("act_length")
  whole = query.shape[1] % tiles == 0 and query.shape[3] % LANES == 0
  return sharding.platform() == "tpu" and whole and query.shape[1] == key.shape[1]


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  segment_ids: jax.Array,
  interpret: bool = False,
) -> jax.Array:
  """Causal attention inside segments.

  Args:
    query: dtype[B, T, N, H].
    key: dtype[B, T, K, H], N a multiple of K.
    value: dtype[B, T, K, H].
    segment_ids: int32[B, T]; padding, 0, attends to padding.
    interpret: runs the kernel step by step, on any backend.

  Returns:
    dtype[B, T, N, H].
  """
  query = query * query.shape[-1] ** -0.5
  if not sharding.is_partitioned():
    kernel = _kernel(query.shape[2], query.shape[1], 1, 1, interpret)
    return _rows(kernel, query, key, value, segment_ids, segment_ids)
  heads, rows = sharding.axis_size("act_heads"), sharding.axis_size("act_length")
  kernel = _kernel(query.shape[2], query.shape[1], heads, rows, interpret)
  mesh = jax.sharding.get_abstract_mesh()
  spec = sharding.partition_spec
  queries = spec(("act_batch", "act_length", "act_heads", None))
  keys = spec(("act_batch", None, "act_heads", None))
  whole = jax.sharding.NamedSharding(mesh, spec(("act_heads", "act_length")))
  spread = jax.shard_map(
    _rows,
    in_specs=(
      kernel.manual_sharding_spec(whole),
      queries,
      keys,
      keys,
      spec(("act_batch", "act_length")),
      spec(("act_batch", None)),
    ),
    out_specs=queries,
    check_vma=False,  # the kernel's results carry no such types
  )
  return spread(kernel, query, key, value, segment_ids, segment_ids)


def _rows(kernel, query, key, value, segments, key_segments) -> jax.Array:
  """Runs the kernel on each row that a device holds."""
  query, key, value = (rearrange(x, "b t n h -> b n t h") for x in (query, key, value))
  ids = kernels.SegmentIds(q=segments, kv=key_segments)
  mixed = jax.vmap(kernel)(query, key, value, ids)
  return rearrange(mixed, "b n t h -> b t n h").astype(query.dtype)


def _kernel(num_heads: int, length: int, heads: int, rows: int, interpret: bool):
  """The kernel for a causal mask over `heads` x `rows` shards."""
  block = int(np.gcd(length // rows, BLOCK))
  sizes = kernels.BlockSizes(
    block_q=block,
    block_kv=block,
    block_kv_compute=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_kv_dkv_compute=block,
    block_q_dq=block,
    block_kv_dq=block,
  )
  causal = masks.CausalMask((length, length))
  return kernels.make_splash_mha(
    masks.MultiHeadMask([causal] * num_heads),
    block_sizes=sizes,
    head_shards=heads,
    q_seq_shards=rows,
    residual_checkpoint_name=SAVED,
    interpret=interpret,
  )
