"""LaVIT's vision modules in plain PyTorch, over published state dicts.

The other side of `weights.parity`: written from the reference facts (sections 1 to 6),
sharing no code with our modules. torch is imported when a function runs.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

POLICY_EPS = 1e-6
PADDING_SCORE = -10000.0

State = Mapping[str, Any]  # torch tensors by published key


def state_of(tensors: Mapping[str, Any]) -> dict[str, Any]:
  """float32 torch tensors of published ones."""
  import torch

  read = lambda tensor: np.ascontiguousarray(np.asarray(tensor).astype(np.float32))
  return {key: torch.from_numpy(read(tensor).copy()) for key, tensor in tensors.items()}


def _below(state: State, prefix: str) -> dict[str, Any]:
  return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _linear(x, state: State, key: str):
  from torch.nn import functional

  return functional.linear(x, state[f"{key}.weight"], state.get(f"{key}.bias"))


def _norm(x, state: State, key: str, eps: float):
  from torch.nn import functional

  weight, bias = state[f"{key}.weight"], state[f"{key}.bias"]
  return functional.layer_norm(x, weight.shape, weight, bias, eps)


def _mlp(x, state: State, key: str):
  from torch.nn import functional

  return _linear(functional.gelu(_linear(x, state, f"{key}.fc1")), state, f"{key}.fc2")


def _heads(x, num_heads: int):
  return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _mix(query, key, value, num_heads: int, weigh):
  """Attention; `weigh` turns scores [B, N, T, S] into weights."""
  query, key, value = (_heads(x, num_heads) for x in (query, key, value))
  scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
  return (weigh(scores) @ value).transpose(1, 2).flatten(2)


def _softmax(scores):
  return scores.softmax(-1)


def _policy(allowed):
  """The softmax of the merger: allowed bool[B, T, S], all columns share an epsilon."""

  def weigh(scores):
    powers = (scores - scores.amax(-1, keepdim=True)).exp() * allowed[:, None]
    return (powers + POLICY_EPS / scores.shape[-1]) / (
      powers.sum(-1, keepdim=True) + POLICY_EPS
    )

  return weigh


def _self_attention(x, state: State, key: str, num_heads: int, weigh):
  query, keys, value = _linear(x, state, f"{key}.qkv").chunk(3, -1)
  return _linear(_mix(query, keys, value, num_heads, weigh), state, f"{key}.proj")


def _cross_attention(x, other, state: State, key: str, num_heads: int, weigh):
  query = _linear(x, state, f"{key}.query")
  keys, value = (_linear(other, state, f"{key}.{name}") for name in ("key", "value"))
  return _linear(_mix(query, keys, value, num_heads, weigh), state, f"{key}.proj")


def _count(state: State) -> int:
  return len({key.split(".")[1] for key in state if key.startswith("blocks.")})


def encoder(state: State, images, num_heads: int):
  """float[B, 3, H, W] normalized pictures to features [B, P+1, D]."""
  import torch
  from torch.nn import functional

  kernel = state["patch_embed.proj.weight"]
  x = functional.conv2d(
    images, kernel, state["patch_embed.proj.bias"], stride=kernel.shape[-1]
  )
  x = x.flatten(2).transpose(1, 2)
  x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
  for i in range(_count(state)):
    own = _below(state, f"blocks.{i}.")
    zeros = torch.zeros_like(own["attn.q_bias"])
    bias = torch.cat([own["attn.q_bias"], zeros, own["attn.v_bias"]])
    own = own | {"attn.qkv.bias": bias}
    x = x + _self_attention(
      _norm(x, own, "norm1", 1e-6), own, "attn", num_heads, _softmax
    )
    x = x + _mlp(_norm(x, own, "norm2", 1e-6), own, "mlp")
  return x


def selector(state: State, x):
  """Log-probabilities [B, P, 2] of keeping and dropping, from features [B, P, D]."""
  import torch
  from torch.nn import functional

  hidden = functional.gelu(
    _linear(_norm(x, state, "in_conv.0", 1e-5), state, "in_conv.1")
  )
  local, spread = hidden.chunk(2, -1)
  spread = spread.mean(1, keepdim=True).expand_as(local)
  hidden = torch.cat([local, spread], -1)
  for name in ("out_conv.0", "out_conv.2"):
    hidden = functional.gelu(_linear(hidden, state, name))
  return _linear(hidden, state, "out_conv.4").log_softmax(-1)


def merger(state: State, x, keep, num_heads: int):
  """Merged features [B, P, D] of features and keep float[B, P]."""
  import torch

  origin = _norm(x, state, "ln_vision", 1e-5)
  size = x.shape[1]
  ones = torch.ones(size, size)
  causal = (
    torch.maximum(keep[:, None].expand(-1, size, -1), torch.eye(size)) * ones.tril()
  )
  dropped = (1 - keep)[:, None].expand(-1, size, -1)
  for i in range(_count(state)):
    own = _below(state, f"blocks.{i}.")
    x = x + _self_attention(
      _norm(x, own, "norm0", 1e-5), own, "token_causal_attn", num_heads, _policy(causal)
    )
    x = x + _cross_attention(
      _norm(x, own, "norm1", 1e-5),
      origin,
      own,
      "token_cross_attn",
      num_heads,
      _policy(dropped),
    )
    x = x + _mlp(_norm(x, own, "norm2", 1e-5), own, "mlp")
  return _norm(x, state, "norm", 1e-5)


def task_layer(state: State, x):
  """Linear, tanh, linear."""
  return _linear(_linear(x, state, "0").tanh(), state, "2")


def feature_decoder(state: State, vectors, lengths, num_heads: int):
  """Features [B, P, D] of left-packed code vectors [B, S, C] and lengths int[B]."""
  import torch

  size = vectors.shape[1]
  filled = (torch.arange(size) < lengths[:, None]).float()
  codes = _linear(vectors, state, "in_proj") * filled[..., None]
  codes = codes + state["pos_embed"][:, :size]
  weigh = lambda scores: _softmax(
    scores + ((1 - filled) * PADDING_SCORE)[:, None, None]
  )
  x = state["query_embed"].expand(len(vectors), -1, -1)
  for i in range(_count(state)):
    own = _below(state, f"blocks.{i}.")
    normed = _norm(x, own, "norm0", 1e-5)
    x = x + _self_attention(normed, own, "self_attn", num_heads, _softmax)
    normed = _norm(x, own, "norm1", 1e-5)
    x = x + _cross_attention(normed, codes, own, "cross_attn", num_heads, weigh)
    x = x + _mlp(_norm(x, own, "norm2", 1e-5), own, "mlp")
  return task_layer(_below(state, "decode_task_layer."), _norm(x, state, "norm", 1e-5))


def condition(state: State, x, num_heads: int) -> list[Any]:
  """What a decoder's head makes of features: one tensor, or context and pooled."""
  import torch

  if "unet_proj.weight" in state:
    return [_linear(x, state, "unet_proj")]
  context = [_linear(x, state, f"unet_proj_{i}") for i in (1, 2)]
  own = _below(state, "unet_attnpool.")
  tokens = torch.cat([x.mean(1, keepdim=True), x], 1) + own["positional_embedding"]
  query, key, value = (
    _linear(rows, own, f"{name}_proj")
    for name, rows in (("q", tokens[:, :1]), ("k", tokens), ("v", tokens))
  )
  pooled = _linear(_mix(query, key, value, num_heads, _softmax), own, "c_proj")[:, 0]
  return [torch.cat(context, -1), pooled]
