"""EVA-CLIP ViT-g/14, `visual_tokenizer/eva_vitg_psz14.bin`: table, in and out.

Our side is the parameter tree of `models.vit.VisionTransformer`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lavit_jax.models.vit import VisionTransformer
from lavit_jax.weights import rules
from lavit_jax.weights.part import Part, abstract_params, shape
from lavit_jax.weights.rules import Rule, dense, layer_norm
from lavit_jax.weights.tensors import Tensor

NUM_HEADS = 16  # the files do not tell

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


def sizes_of(source: Mapping[str, Tensor], num_heads: int) -> dict[str, int]:
  """The fields of `VisionTransformer`, read from the shapes of a file.

  Args:
    source: tensors by the keys of `ENCODER`.
    num_heads: attention heads.
  """
  width, _, patch, _ = rules.shape_of(source, "patch_embed.proj.weight", 4)
  length = rules.shape_of(source, "pos_embed", 3)[1]
  side = round((length - 1) ** 0.5)
  return {
    "image_size": side * patch,
    "patch_size": patch,
    "embed_dim": width,
    "num_layers": rules.count_layers(source, "blocks."),
    "num_heads": num_heads,
    "head_dim": width // num_heads,
    "mlp_dim": rules.shape_of(source, "blocks.0.mlp.fc1.weight", 2)[0],
    "clip_dim": rules.shape_of(source, "head.weight", 2)[0],
  }


def read(
  source: Mapping[str, Tensor],
  num_heads: int = NUM_HEADS,
  table: Sequence[Rule] = ENCODER,
) -> Part:
  """Makes the part `vit` of a file's tensors, which stay unread."""
  sizes = sizes_of(source, num_heads)
  side = sizes["image_size"]
  target = abstract_params(VisionTransformer(**sizes), shape(1, side, side, 3))
  return Part(rules.import_tensors(table, source, target), sizes)


def write(part: Part, table: Sequence[Rule] = ENCODER) -> dict[str, Any]:
  """The file's tensors of the part `vit`, converted when they are read."""
  return rules.export_tensors(table, part.params)
