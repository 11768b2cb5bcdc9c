"""Table of the EVA-CLIP ViT-g/14 encoder, `visual_tokenizer/eva_vitg_psz14.bin`.

Our side is the parameter tree of `models.vit.VisionTransformer`.
"""

from lavit_jax.weights import rules
from lavit_jax.weights.rules import Rule, dense, layer_norm

ENCODER = [
  Rule("cls_token", "cls_token", rules.token),
  Rule("pos_embed", "pos_embed", rules.batched),
  *dense("patch_embed.proj", "patch_embed", rules.patches),
  *layer_norm("blocks.{i}.norm1", "blocks/norm1"),
  Rule("blocks.{i}.attn.q_bias", "blocks/attn/q_bias", rules.vector),
  Rule("blocks.{i}.attn.v_bias", "blocks/attn/v_bias", rules.vector),
  Rule("blocks.{i}.attn.qkv.weight", "blocks/attn/qkv/kernel", rules.linear),
  *dense("blocks.{i}.attn.proj", "blocks/attn/proj", rules.linear_from_heads),
  *layer_norm("blocks.{i}.norm2", "blocks/norm2"),
  *dense("blocks.{i}.mlp.fc1", "blocks/mlp/fc1"),
  *dense("blocks.{i}.mlp.fc2", "blocks/mlp/fc2"),
  *layer_norm("norm", "norm"),
  *dense("head", "head"),
]
