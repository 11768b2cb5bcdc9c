"""Attention, norms and blocks that both halves of LaVIT are made of."""

import torch
from torch import nn
from torch.nn import functional as F


def mix(query, key, value, heads, weigh):
  """Values mixed by weights that `weigh` makes of float32 scores [B, N, T, S]."""
  query, key, value = (
    x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value)
  )
  scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
  return (weigh(scores).to(value.dtype) @ value).transpose(1, 2).flatten(2)


def softmax(scores):
  """The usual weights."""
  return scores.softmax(-1)


def linears(**sizes):
  """Linear layers by name, of (inputs, outputs)."""
  return nn.ModuleDict({name: nn.Linear(*own) for name, own in sizes.items()})


class Norm(nn.LayerNorm):
  """A layer norm in float32, whatever it is given."""

  def forward(self, x):
    row = (x.shape[-1:], self.weight.float(), self.bias.float(), self.eps)
    return F.layer_norm(x.float(), *row).to(x.dtype)


class Attention(nn.Module):
  """Attention among tokens; an encoder's has no bias on keys."""

  def __init__(self, width, heads, encoder=False):
    super().__init__()
    self.heads, self.encoder = heads, encoder
    self.qkv = nn.Linear(width, 3 * width, bias=not encoder)
    if encoder:
      self.q_bias = nn.Parameter(torch.zeros(width))
      self.v_bias = nn.Parameter(torch.zeros(width))
    self.proj = nn.Linear(width, width)

  def forward(self, x, weigh):
    query, key, value = self.qkv(x).chunk(3, -1)
    if self.encoder:
      query, value = query + self.q_bias.to(x.dtype), value + self.v_bias.to(x.dtype)
    return self.proj(mix(query, key, value, self.heads, weigh))


class Block(nn.Module):
  """Attention among tokens, to others (an encoder's has none), mlp; behind norms."""

  def __init__(self, width, heads, hidden, own, other=None, eps=1e-5):
    super().__init__()
    self.heads, self.own, self.other = heads, own, other
    setattr(self, own, Attention(width, heads, encoder=other is None))
    if other:
      square = dict.fromkeys(("query", "key", "value", "proj"), (width, width))
      setattr(self, other, linears(**square))
      self.norm0 = Norm(width, eps=eps)
    self.norm1, self.norm2 = Norm(width, eps=eps), Norm(width, eps=eps)
    self.mlp = linears(fc1=(width, hidden), fc2=(hidden, width))

  def forward(self, x, others=None, weigh=softmax, weigh_others=softmax):
    normed = self.norm0(x) if self.other else self.norm1(x)
    x = x + getattr(self, self.own)(normed, weigh)
    if self.other:
      to, normed = getattr(self, self.other), self.norm1(x)
      row = (to["query"](normed), to["key"](others), to["value"](others))
      x = x + to["proj"](mix(*row, self.heads, weigh_others))
    return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
