"""The vision side of LaVIT: encoder, selector, mergers, codebook, projection.

pixels [B, 3, H, W] -> encoder -> features [B, P, D] -> selector (sampled) -> keep
features, keep -> merger -> nearest code          what the model draws with
features, keep -> other merger -> projection      what the model reads
"""

import torch
from torch import nn
from torch.nn import functional as F

from .blocks_lavit import Block, Norm

MERGER_EPS = 1e-6  # shared by all columns of the mergers' softmax


class Encoder(nn.Module):
  """EVA's vision transformer, without the norm that LaVIT does not use."""

  def __init__(self, sizes):
    super().__init__()
    width, patch = sizes["embed_dim"], sizes["patch_size"]
    row = (width, sizes["num_heads"], sizes["mlp_dim"], "attn")
    self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
    self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
    self.pos_embed = nn.Parameter(torch.zeros(1, sizes["num_patches"] + 1, width))
    blocks = [Block(*row, eps=1e-6) for _ in range(sizes["num_layers"])]
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


def allowed_softmax(allowed):
  """The mergers' softmax over allowed bool[B, T, S]; each column gets a little."""

  def weigh(scores):
    powers = (scores - scores.amax(-1, keepdim=True)).exp() * allowed[:, None]
    total = powers.sum(-1, keepdim=True) + MERGER_EPS
    return (powers + MERGER_EPS / scores.shape[-1]) / total

  return weigh


class Merger(nn.Module):
  """Kept patches take up what dropped ones held."""

  def __init__(self, sizes):
    super().__init__()
    width, names = sizes["embed_dim"], ("token_causal_attn", "token_cross_attn")
    row = (width, sizes["merger_heads"], sizes["merger_mlp_dim"], *names)
    self.blocks = nn.ModuleList(Block(*row) for _ in range(sizes["merger_layers"]))
    self.ln_vision, self.norm = Norm(width), Norm(width)

  def forward(self, x, keep):
    """Merged features [B, P, D] of features and keep bool[B, P]."""
    size, origin = keep.shape[1], self.ln_vision(x)
    itself = torch.eye(size, dtype=torch.bool, device=keep.device)
    causal = (keep[:, None] | itself) & torch.ones_like(itself).tril()
    dropped = (~keep)[:, None].expand(-1, size, -1)
    for block in self.blocks:
      x = block(x, origin, allowed_softmax(causal), allowed_softmax(dropped))
    return self.norm(x)


class Visual(nn.Module):
  """All in front of the language model."""

  def __init__(self, sizes, language_width):
    super().__init__()
    self.sizes, width = sizes, sizes["embed_dim"]
    self.encoder, self.token_predictor = Encoder(sizes), Selector(width)
    self.causal_encoder, self.understanding = Merger(sizes), Merger(sizes)
    narrow = nn.Linear(width, sizes["code_dim"])
    self.encode_task_layer = nn.Sequential(nn.Linear(width, width), nn.Tanh(), narrow)
    table = nn.Embedding(sizes["num_codes"], sizes["code_dim"])
    self.quantize = nn.ModuleDict({"embedding": table})
    self.vit_proj = nn.Linear(width, language_width)
    if sizes["whitening"]:  # of a small encoder: a fixed linear map
      self.register_buffer("whitening_mean", torch.zeros(width))
      self.register_buffer("whitening_matrix", torch.zeros(width, width))

  def look(self, pixels, noise):
    """What the mergers see, and bool[B, P] patches kept by noise float[B, P, 2]."""
    raw = seen = self.encoder(pixels.to(self.vit_proj.weight))
    if self.sizes["whitening"]:
      mean, matrix = self.whitening_mean.float(), self.whitening_matrix.float()
      seen = ((raw.float() - mean) @ matrix).to(raw.dtype)
    scored = raw if self.sizes["selector_input"] == "raw" else seen
    log_probs = self.token_predictor(scored)
    noisy = log_probs + noise.to(log_probs)
    keep = noisy[..., 0] >= noisy[..., 1]
    best = F.one_hot(log_probs[..., 0].argmax(1), keep.shape[1]).bool()
    return seen, torch.where(keep.any(1, keepdim=True), keep, best)

  def codes(self, seen, keep):
    """int[B, P] nearest codes at all patches; those of kept ones mean something."""
    z = self.encode_task_layer(self.causal_encoder(seen, keep)).float()
    z, table = F.normalize(z, dim=-1), self.quantize["embedding"].weight.float()
    return (table.square().sum(-1) - 2 * z @ table.T).argmin(-1)

  def vectors(self, seen, keep):
    """What the language model reads at all patches: [B, P, width of LLaMA]."""
    return self.vit_proj(self.understanding(seen, keep))
