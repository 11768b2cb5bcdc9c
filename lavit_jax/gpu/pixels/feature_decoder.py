"""Visual codes to what a U-Net is conditioned on: the one component of our own.

codes -> codebook rows [B, S, C] -> decoder -> features [B, P, D] -> heads
      -> context [B, P, Dc], and a pooled vector [B, E] or a grid [B, Dg, p, p]
"""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.nn import functional as F

from .blocks_lavit import Block, Norm, linears, mix, softmax

PADDING_SCORE = -10000.0  # finite, as the model was trained: it counts without codes


class FeatureDecoder(ModelMixin, ConfigMixin):
  """Codebook, feature decoder and the heads that condition a U-Net.

  `head` names their widths: `condition_dim`, with `grid_dim` and `hidden_dim` where the
  U-Net has a grid; or `first_dim`, `second_dim` and `pooled_dim` of the SDXL type.
  """

  @classmethod
  def from_pretrained(cls, *args, **kwargs):
    """As diffusers does it, but nothing may be missing or left over."""
    model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
    if wrong := {name: found for name, found in info.items() if found}:
      raise ValueError(
        f"expected every tensor of the model and no other, got {wrong}; copy the folder"
        " again"
      )
    return model

  @register_to_config
  def __init__(
    self,
    embed_dim: int,
    num_layers: int,
    num_heads: int,
    mlp_dim: int,
    num_patches: int,
    code_dim: int,
    num_codes: int,
    head: dict,
    whitening: bool = False,
    null_slots: int = 0,
    patch_latents: list | None = None,
    ratios: dict | None = None,
    steps: int = 25,
    guidance: float = 7.0,
  ):
    super().__init__()
    width = embed_dim
    self.quantize = nn.ModuleDict({"embedding": nn.Embedding(num_codes, code_dim)})
    self.in_proj = nn.Linear(code_dim, width)
    self.pos_embed = nn.Parameter(torch.zeros(1, num_patches, width))
    self.query_embed = nn.Parameter(torch.zeros(1, num_patches, width))
    row = (width, num_heads, mlp_dim, "self_attn", "cross_attn")
    self.blocks = nn.ModuleList(Block(*row) for _ in range(num_layers))
    self.norm = Norm(width)
    task = (nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
    self.decode_task_layer = nn.Sequential(*task)
    if "pooled_dim" in head:
      self.unet_proj_1 = nn.Linear(width, head["first_dim"])
      self.unet_proj_2 = nn.Linear(width, head["second_dim"])
      names = dict.fromkeys(("q_proj", "k_proj", "v_proj"), (width, width))
      self.unet_attnpool = linears(**names, c_proj=(width, head["pooled_dim"]))
      table = nn.Parameter(torch.zeros(num_patches + 1, width))
      self.unet_attnpool.positional_embedding = table
    else:
      self.unet_proj = nn.Linear(width, head["condition_dim"])
    if "grid_dim" in head:
      self.grid_hidden = nn.Linear(width, head["hidden_dim"])
      self.grid_proj = nn.Linear(head["hidden_dim"], head["grid_dim"])
    if whitening:
      self.register_buffer("whitening_mean", torch.zeros(width))
      self.register_buffer("whitening_matrix", torch.zeros(width, width))
    if null_slots:  # the embedding of an empty text
      size = (null_slots, head["condition_dim"])
      self.register_buffer("null_embedding", torch.zeros(size))
    if patch_latents:  # [channels, side]: a fixed transform where there is no VAE
      channels, side = patch_latents
      self.register_buffer("patch_kernel", torch.zeros(channels, 3, side, side))

  def forward(self, codes):
    """Features [B, P, D] of a list of int[T] codes, and what they condition."""
    size = max(1, max(map(len, codes)))
    filled = torch.zeros(len(codes), size, device=self.device)
    ids = torch.zeros(len(codes), size, dtype=torch.long, device=self.device)
    for i, own in enumerate(codes):
      ids[i, : len(own)], filled[i, : len(own)] = own.to(ids), 1
    vectors = self.in_proj(self.quantize["embedding"](ids)) * filled[..., None]
    vectors = (vectors + self.pos_embed[:, :size]).to(self.dtype)
    shift = (1 - filled)[:, None, None] * PADDING_SCORE
    x = self.query_embed.expand(len(codes), -1, -1)
    for block in self.blocks:
      x = block(x, vectors, softmax, lambda scores: softmax(scores + shift))
    return self.decode_task_layer(self.norm(x))

  def condition(self, features):
    """Context [B, P, Dc], and "pooled" or "grid" of features [B, P, D]."""
    if hasattr(self, "whitening_mean"):
      features = (features - self.whitening_mean) @ self.whitening_matrix
    if "pooled_dim" in self.config.head:
      context = torch.cat([self.unet_proj_1(features), self.unet_proj_2(features)], -1)
      return context, {"pooled": self._pool(features)}
    more = {}
    if "grid_dim" in self.config.head:
      hidden = F.gelu(self.grid_hidden(features), approximate="tanh")
      side = round(features.shape[1] ** 0.5)
      more["grid"] = self.grid_proj(hidden).transpose(1, 2).unflatten(2, (side, side))
    return self.unet_proj(features), more

  def _pool(self, x):
    own = self.unet_attnpool
    tokens = torch.cat([x.mean(1, keepdim=True), x], 1) + own.positional_embedding
    row = (own["q_proj"](tokens[:, :1]), own["k_proj"](tokens), own["v_proj"](tokens))
    return own["c_proj"](mix(*row, self.config.num_heads, softmax))[:, 0]
