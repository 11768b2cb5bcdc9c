"""Tables of LaVIT's tokenizer and decoder files.

TOKENIZER  tokenizer_encoder.bin with vit_proj; ours is {"selector", "merger",
           "encode_task_layer", "codebook": {"embedding"}, "vit_proj"}
LOWRES     tokenizer_decoder.bin; ours is {"feature_decoder", "head"}
HIGHRES    highres_tokenizer_decoder.bin; the same
"""

from lavit_jax.weights import rules
from lavit_jax.weights.rules import Rule, dense, layer_norm, prefixed


def _fused_attention(source: str, path: str) -> list[Rule]:
  return [
    *dense(f"{source}.qkv", f"{path}/qkv"),
    *dense(f"{source}.proj", f"{path}/proj", rules.linear_from_heads),
  ]


def _cross_attention(source: str, path: str) -> list[Rule]:
  return [
    *dense(f"{source}.query", f"{path}/query"),
    *dense(f"{source}.key", f"{path}/key"),
    *dense(f"{source}.value", f"{path}/value"),
    *dense(f"{source}.proj", f"{path}/proj", rules.linear_from_heads),
  ]


SELECTOR = [
  *layer_norm("in_conv.0", "norm"),
  *dense("in_conv.1", "in_proj"),
  *dense("out_conv.0", "out_proj1"),
  *dense("out_conv.2", "out_proj2"),
  *dense("out_conv.4", "out_proj3"),
]

MERGER = [
  *layer_norm("blocks.{i}.norm0", "blocks/norm0"),
  *_fused_attention("blocks.{i}.token_causal_attn", "blocks/causal_attn"),
  *layer_norm("blocks.{i}.norm1", "blocks/norm1"),
  *_cross_attention("blocks.{i}.token_cross_attn", "blocks/cross_attn"),
  *layer_norm("blocks.{i}.norm2", "blocks/norm2"),
  *dense("blocks.{i}.mlp.fc1", "blocks/mlp/fc1"),
  *dense("blocks.{i}.mlp.fc2", "blocks/mlp/fc2"),
  *layer_norm("ln_vision", "ln_vision"),
  *layer_norm("norm", "norm"),
]

TASK_LAYER = [*dense("0", "fc1"), *dense("2", "fc2")]

QUANTIZER = [
  *prefixed(TASK_LAYER, "encode_task_layer.", "encode_task_layer/"),
  Rule("quantize.embedding.weight", "codebook/embedding"),
]

VIT_PROJ = dense("vit_proj", "vit_proj")

TOKENIZER = [
  *prefixed(SELECTOR, "token_predictor.", "selector/"),
  *prefixed(MERGER, "causal_encoder.", "merger/"),
  *QUANTIZER,
  *VIT_PROJ,
]

FEATURE_DECODER = [
  Rule("pos_embed", "pos_embed", rules.batched),
  Rule("query_embed", "query_embed", rules.batched),
  *dense("in_proj", "in_proj"),
  *layer_norm("blocks.{i}.norm0", "blocks/norm0"),
  *_fused_attention("blocks.{i}.self_attn", "blocks/self_attn"),
  *layer_norm("blocks.{i}.norm1", "blocks/norm1"),
  *_cross_attention("blocks.{i}.cross_attn", "blocks/cross_attn"),
  *layer_norm("blocks.{i}.norm2", "blocks/norm2"),
  *dense("blocks.{i}.mlp.fc1", "blocks/mlp/fc1"),
  *dense("blocks.{i}.mlp.fc2", "blocks/mlp/fc2"),
  *layer_norm("norm", "norm"),
  *prefixed(TASK_LAYER, "decode_task_layer.", "decode_task_layer/"),
]

LOWRES = [
  *prefixed(FEATURE_DECODER, "", "feature_decoder/"),
  *dense("unet_proj", "head/unet_proj"),
]

_POOL = "head/attnpool"

HIGHRES = [
  *prefixed(FEATURE_DECODER, "", "feature_decoder/"),
  *dense("unet_proj_1", "head/unet_proj1"),
  *dense("unet_proj_2", "head/unet_proj2"),
  Rule("unet_attnpool.positional_embedding", f"{_POOL}/positional_embedding"),
  *dense("unet_attnpool.q_proj", f"{_POOL}/query"),
  *dense("unet_attnpool.k_proj", f"{_POOL}/key"),
  *dense("unet_attnpool.v_proj", f"{_POOL}/value"),
  *dense("unet_attnpool.c_proj", f"{_POOL}/out", rules.linear_from_heads),
]
