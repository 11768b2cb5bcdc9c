"""EVA-CLIP ViT-g/14, `visual_tokenizer/eva_vitg_psz14.bin`: table, in and out.

Our side is the parameter tree of `models.vit.VisionTransformer`.
"""

from collections.abc import Mapping

from lavit_jax.models.vit import VisionTransformer
from lavit_jax.weights import rules
from lavit_jax.weights.part import Part, abstract_params, shape
from lavit_jax.weights.rules import Rule, dense, layer_norm
from lavit_jax.weights.tensors import Tensor

NUM_HEADS = 16  # the files do not tell

# What precedes the encoder's keys: timm's own files hold it bare, as LaVIT's does;
# EVA-CLIP's checkpoints below "visual."; those of open_clip, which wraps timm's module,
# below "visual.trunk.". Both of the latter hold a text tower besides, left out here.
LAYOUTS = {
  "eva": "",
  "eva_timm": "",
  "eva_clip": "visual.",
  "eva_open_clip": "visual.trunk.",
}
TEXT_TOWER = ("text.*", "logit_scale", "logit_bias")

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
  source: Mapping[str, Tensor], num_heads: int = NUM_HEADS, layout: str = "eva"
) -> Part:
  """Makes the part `vit` of a file's tensors, which stay unread.

  Args:
    source: the file's tensors.
    num_heads: attention heads.
    layout: a key of `LAYOUTS`.
  """
  prefix = LAYOUTS[layout]
  source, _ = rules.without(source, TEXT_TOWER if prefix else ())
  bare = {key.removeprefix(prefix): t for key, t in source.items()}
  sizes = sizes_of(bare, num_heads)
  side = sizes["image_size"]
  target = abstract_params(VisionTransformer(**sizes), shape(1, side, side, 3))
  table = rules.prefixed(ENCODER, prefix, "")
  return Part(rules.import_tensors(table, source, target), sizes)


def write(part: Part, layout: str = "eva") -> dict[str, Tensor]:
  """The file's tensors of the part `vit`, converted when they are read."""
  table = rules.prefixed(ENCODER, LAYOUTS[layout], "")
  return rules.export_tensors(table, part.params)
