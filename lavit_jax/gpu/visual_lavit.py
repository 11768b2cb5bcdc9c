"""The vision side of LaVIT: encoder, selector, mergers, codebook, projection.

pixels [B, 3, H, W] -> encoder -> features [B, P, D] -> selector (sampled) -> keep
features, keep -> merger -> nearest code          what the model draws with
features, keep -> other merger -> projection      what the model reads
"""

import torch
from torch import nn
from torch.nn import functional as F

MERGER_EPS = 1e-6  # shared by all columns of the mergers' softmax


class SelfAttention(nn.Module):
  """Attention among all tokens; `weigh` turns scores [B, N, T, T] into weights."""

  def __init__(self, width, heads, encoder=False):
    super().__init__()
    self.heads = heads
    self.qkv = nn.Linear(width, 3 * width, bias=not encoder)
    if encoder:  # no bias on keys
      self.q_bias = nn.Parameter(torch.zeros(width))
      self.v_bias = nn.Parameter(torch.zeros(width))
    self.proj = nn.Linear(width, width)

  def forward(self, x, weigh):
    query, key, value = self.qkv(x).chunk(3, -1)
    if hasattr(self, "q_bias"):
      query, value = query + self.q_bias.to(x.dtype), value + self.v_bias.to(x.dtype)
    return self.proj(mix(query, key, value, self.heads, weigh))


class CrossAttention(nn.Module):
  """Attention of x [B, T, D] to other tokens [B, S, D]."""

  def __init__(self, width, heads):
    super().__init__()
    self.heads = heads
    for name in ("query", "key", "value", "proj"):
      setattr(self, name, nn.Linear(width, width))

  def forward(self, x, other, weigh):
    query, key, value = self.query(x), self.key(other), self.value(other)
    return self.proj(mix(query, key, value, self.heads, weigh))


def mix(query, key, value, heads, weigh):
  """Values mixed by weights of float32 scores."""
  query, key, value = (
    x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value)
  )
  scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
  return (weigh(scores).to(value.dtype) @ value).transpose(1, 2).flatten(2)


def softmax(scores):
  return scores.softmax(-1)


def allowed_softmax(allowed):
  """The mergers' softmax over allowed bool[B, T, S]; each column gets a little."""

  def weigh(scores):
    powers = (scores - scores.amax(-1, keepdim=True)).exp() * allowed[:, None]
    total = powers.sum(-1, keepdim=True) + MERGER_EPS
    return (powers + MERGER_EPS / scores.shape[-1]) / total

  return weigh


class Norm(nn.LayerNorm):
  """A layer norm in float32, whatever it is given."""

  def forward(self, x):
    weight, bias = self.weight.float(), self.bias.float()
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, self.eps).to(x.dtype)


class Mlp(nn.Module):
  def __init__(self, width, hidden):
    super().__init__()
    self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

  def forward(self, x):
    return self.fc2(F.gelu(self.fc1(x)))


class EncoderBlock(nn.Module):
  def __init__(self, sizes):
    super().__init__()
    width = sizes["embed_dim"]
    self.norm1, self.norm2 = Norm(width, eps=1e-6), Norm(width, eps=1e-6)
    self.attn = SelfAttention(width, sizes["num_heads"], encoder=True)
    self.mlp = Mlp(width, sizes["mlp_dim"])

  def forward(self, x):
    x = x + self.attn(self.norm1(x), softmax)
    return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
  """EVA's vision transformer, without the norm that LaVIT does not use."""

  def __init__(self, sizes):
    super().__init__()
    width, patch = sizes["embed_dim"], sizes["patch_size"]
    count = (sizes["image_size"] // patch) ** 2
    self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
    self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
    self.pos_embed = nn.Parameter(torch.zeros(1, count + 1, width))
    blocks = [EncoderBlock(sizes) for _ in range(sizes["num_layers"])]
    self.blocks = nn.ModuleList(blocks)

  def forward(self, pixels):
    """Patch features [B, P, D] of normalized pixels [B, 3, H, W]."""
    x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
    x = torch.cat([self.cls_token.to(x.dtype).expand(len(x), -1, -1), x], 1)
    x = x + self.pos_embed.to(x.dtype)
    for block in self.blocks:
      x = block(x)
    return x[:, 1:]


class Selector(nn.Module):
  """Log-probabilities float32[B, P, 2] of keeping (0) and dropping each patch."""

  def __init__(self, width):
    super().__init__()
    half = width // 2
    self.in_conv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
    self.out_conv = nn.Sequential(
      *(nn.Linear(width, half), nn.GELU()),
      *(nn.Linear(half, half // 2), nn.GELU(), nn.Linear(half // 2, 2)),
    )

  def forward(self, features):
    x = features.to(self.out_conv[0].weight.dtype)
    local, shared = F.gelu(self.in_conv(x)).chunk(2, -1)
    shared = shared.mean(1, keepdim=True).expand_as(local)
    return self.out_conv(torch.cat([local, shared], -1)).float().log_softmax(-1)


class MergerBlock(nn.Module):
  def __init__(self, sizes):
    super().__init__()
    width, heads = sizes["embed_dim"], sizes["merger_heads"]
    self.norm0, self.norm1, self.norm2 = Norm(width), Norm(width), Norm(width)
    self.token_causal_attn = SelfAttention(width, heads)
    self.token_cross_attn = CrossAttention(width, heads)
    self.mlp = Mlp(width, sizes["merger_mlp_dim"])

  def forward(self, x, origin, causal, dropped):
    x = x + self.token_causal_attn(self.norm0(x), causal)
    x = x + self.token_cross_attn(self.norm1(x), origin, dropped)
    return x + self.mlp(self.norm2(x))


class Merger(nn.Module):
  """Kept patches take up what dropped ones held."""

  def __init__(self, sizes):
    super().__init__()
    blocks = [MergerBlock(sizes) for _ in range(sizes["merger_layers"])]
    self.blocks = nn.ModuleList(blocks)
    self.ln_vision, self.norm = Norm(sizes["embed_dim"]), Norm(sizes["embed_dim"])

  def forward(self, x, keep):
    """Merged features [B, P, D] of features and keep bool[B, P]."""
    size, origin = keep.shape[1], self.ln_vision(x)
    itself = torch.eye(size, dtype=torch.bool, device=keep.device)
    past = torch.ones_like(itself).tril()
    causal = allowed_softmax((keep[:, None] | itself) & past)
    dropped = allowed_softmax((~keep)[:, None].expand(-1, size, -1))
    for block in self.blocks:
      x = block(x, origin, causal, dropped)
    return self.norm(x)


class Visual(nn.Module):
  """All in front of the language model."""

  def __init__(self, sizes, language_width):
    super().__init__()
    self.sizes, width = sizes, sizes["embed_dim"]
    self.encoder = Encoder(sizes)
    self.token_predictor = Selector(width)
    self.causal_encoder = Merger(sizes)
    self.encode_task_layer = nn.Sequential(
      nn.Linear(width, width), nn.Tanh(), nn.Linear(width, sizes["code_dim"])
    )
    table = nn.Embedding(sizes["num_codes"], sizes["code_dim"])
    self.quantize = nn.ModuleDict({"embedding": table})
    self.understanding = Merger(sizes)
    self.vit_proj = nn.Linear(width, language_width)
    if sizes["whitening"]:  # of a small encoder: a fixed linear map
      self.register_buffer("whitening_mean", torch.zeros(width))
      self.register_buffer("whitening_matrix", torch.zeros(width, width))

  def features(self, pixels):
    """Raw features, and those that the mergers see."""
    raw = self.encoder(pixels.to(self.vit_proj.weight.dtype))
    if not self.sizes["whitening"]:
      return raw, raw
    mean, matrix = self.whitening_mean.float(), self.whitening_matrix.float()
    return raw, ((raw.float() - mean) @ matrix).to(raw.dtype)

  def select(self, raw, seen, noise):
    """bool[B, P] kept patches; Gumbel noise float[B, P, 2]; one is always kept."""
    scored = raw if self.sizes["selector_input"] == "raw" else seen
    log_probs = self.token_predictor(scored)
    noisy = log_probs + noise.to(log_probs)
    keep = noisy[..., 0] >= noisy[..., 1]
    best = F.one_hot(log_probs[..., 0].argmax(1), keep.shape[1]).bool()
    return torch.where(keep.any(1, keepdim=True), keep, best)

  def codes(self, seen, keep):
    """int[B, P] nearest codes at all patches; those of kept ones mean something."""
    z = self.encode_task_layer(self.causal_encoder(seen, keep)).float()
    z, table = F.normalize(z, dim=-1, eps=1e-12), self.quantize["embedding"].weight
    table = table.float()
    return (table.square().sum(-1) - 2 * z @ table.T).argmin(-1)
