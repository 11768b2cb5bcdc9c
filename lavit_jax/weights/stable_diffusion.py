"""Tables of diffusers' U-Net and VAE folders (Stable Diffusion 1.5 and SDXL types).

Our side are the parameter trees of `models.unet.UNet` and `models.vae.AutoencoderKL`.
The sizes of a model decide its keys, so a table is made from the model's fields.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from einops import rearrange

from lavit_jax.models import published_config, unet, vae
from lavit_jax.models.unet import GRID_KEY, NUM_TIME_IDS
from lavit_jax.weights import rules
from lavit_jax.weights.rules import Rule, Transform, dense, layer_norm

# Keys of the VAE's attention: query, key, value, output. Files older than
# diffusers 0.18, Stable Diffusion 1.5's own among them, hold the second kind.
ATTENTION_KEYS = ("to_q", "to_k", "to_v", "to_out.0")
OLD_ATTENTION_KEYS = ("query", "key", "value", "proj_attn")


def _convolution_forward(kernel, shape):
  return rearrange(kernel, "d c k q -> k q c d").reshape(shape)


def _convolution_inverse(kernel):
  return rearrange(kernel, "k q c d -> d c k q")


def _pointwise_forward(kernel, shape):
  return kernel[:, :, 0, 0].T.reshape(shape)


def _pointwise_inverse(kernel):
  return kernel.T[:, :, None, None]


# A convolution on both sides, output channels first there and last here.
convolution = Transform(_convolution_forward, _convolution_inverse)
# A 1 x 1 convolution there, a linear map here.
pointwise = Transform(_pointwise_forward, _pointwise_inverse)


def _conv(source: str, path: str) -> list[Rule]:
  return dense(source, path, convolution)


def _resnet(source: str, path: str) -> list[Rule]:
  """A residual block; rows whose parameter a model lacks match nothing."""
  return [
    *layer_norm(f"{source}.norm1", f"{path}/norm1"),
    *_conv(f"{source}.conv1", f"{path}/conv1"),
    *dense(f"{source}.time_emb_proj", f"{path}/time"),
    *layer_norm(f"{source}.norm2", f"{path}/norm2"),
    *_conv(f"{source}.conv2", f"{path}/conv2"),
    *_conv(f"{source}.conv_shortcut", f"{path}/shortcut"),
  ]


def _attention(source: str, path: str) -> list[Rule]:
  return [
    Rule(f"{source}.to_q.weight", f"{path}/query/kernel", rules.linear),
    Rule(f"{source}.to_k.weight", f"{path}/key/kernel", rules.linear),
    Rule(f"{source}.to_v.weight", f"{path}/value/kernel", rules.linear),
    *dense(f"{source}.to_out.0", f"{path}/out", rules.linear_from_heads),
  ]


def _transformer(source: str, path: str, projection: Transform) -> list[Rule]:
  block, ours = f"{source}.transformer_blocks.{{i}}", f"{path}/blocks"
  return [
    *layer_norm(f"{source}.norm", f"{path}/norm"),
    *dense(f"{source}.proj_in", f"{path}/proj_in", projection),
    *layer_norm(f"{block}.norm1", f"{ours}/norm1"),
    *_attention(f"{block}.attn1", f"{ours}/self_attn"),
    *layer_norm(f"{block}.norm2", f"{ours}/norm2"),
    *_attention(f"{block}.attn2", f"{ours}/cross_attn"),
    *layer_norm(f"{block}.norm3", f"{ours}/norm3"),
    *dense(f"{block}.ff.net.0.proj", f"{ours}/mlp/up"),
    *dense(f"{block}.ff.net.2", f"{ours}/mlp/out"),
    *dense(f"{source}.proj_out", f"{path}/proj_out", projection),
  ]


def unet_table(fields: Mapping[str, Any]) -> list[Rule]:
  """The table of a U-Net with these fields of `models.unet.UNet`."""
  projection = rules.linear if fields["linear_projection"] else pointwise

  def level(source, path, num_layers):
    found = []
    for j in range(num_layers):
      found += _resnet(f"{source}.resnets.{j}", f"{path}/resnet{j}")
      found += _transformer(
        f"{source}.attentions.{j}", f"{path}/transformer{j}", projection
      )
    return found

  table = [
    *_conv("conv_in", "conv_in"),
    *_embedding("time_embedding", "time"),
    *_embedding("add_embedding", "pooled"),
    *level("mid_block", "middle", 2),
    *layer_norm("conv_norm_out", "norm_out"),
    *_conv("conv_out", "conv_out"),
  ]
  for i in range(len(fields["level_channels"])):
    table += level(f"down_blocks.{i}", f"down{i}", fields["num_layers"])
    table += _conv(f"down_blocks.{i}.downsamplers.0.conv", f"down{i}/down")
    table += level(f"up_blocks.{i}", f"up{i}", fields["num_layers"] + 1)
    table += _conv(f"up_blocks.{i}.upsamplers.0.conv", f"up{i}/up/conv")
  return table


def _embedding(source: str, path: str) -> list[Rule]:
  return [
    *dense(f"{source}.linear_1", f"{path}/fc1"),
    *dense(f"{source}.linear_2", f"{path}/fc2"),
  ]


def attention_keys(keys: Iterable[str]) -> Sequence[str]:
  """Which names a VAE file gives its attention: `ATTENTION_KEYS` or the old ones."""
  old = any(".attentions.0.proj_attn." in key for key in keys)
  return OLD_ATTENTION_KEYS if old else ATTENTION_KEYS


def vae_table(
  fields: Mapping[str, Any], attention: Sequence[str] = ATTENTION_KEYS
) -> list[Rule]:
  """The table of a VAE with these fields of `models.vae.AutoencoderKL`.

  Args:
    fields: the model's sizes.
    attention: keys of query, key, value and output; see `attention_keys`.
  """
  table = [
    *_conv("quant_conv", "to_moments"),
    *_conv("post_quant_conv", "from_latents"),
  ]
  for half in ("encoder", "decoder"):
    table += _conv(f"{half}.conv_in", f"{half}/conv_in")
    table += _vae_middle(f"{half}.mid_block", f"{half}/middle", attention)
    table += layer_norm(f"{half}.conv_norm_out", f"{half}/norm_out")
    table += _conv(f"{half}.conv_out", f"{half}/conv_out")
  for i in range(len(fields["level_channels"])):
    down, up = f"encoder.down_blocks.{i}", f"decoder.up_blocks.{i}"
    for j in range(fields["num_layers"]):
      table += _resnet(f"{down}.resnets.{j}", f"encoder/down{i}_resnet{j}")
    table += _conv(f"{down}.downsamplers.0.conv", f"encoder/down{i}")
    for j in range(fields["num_layers"] + 1):
      table += _resnet(f"{up}.resnets.{j}", f"decoder/up{i}_resnet{j}")
    table += _conv(f"{up}.upsamplers.0.conv", f"decoder/up{i}/conv")
  return table


def _vae_middle(source: str, path: str, attention: Sequence[str]) -> list[Rule]:
  query, key, value, out = (f"{source}.attentions.0.{name}" for name in attention)
  ours = f"{path}/attention"
  return [
    *_resnet(f"{source}.resnets.0", f"{path}/resnet0"),
    *layer_norm(f"{source}.attentions.0.group_norm", f"{ours}/norm"),
    *dense(query, f"{ours}/query"),
    *dense(key, f"{ours}/key"),
    *dense(value, f"{ours}/value"),
    *dense(out, f"{ours}/proj", rules.linear_from_heads),
    *_resnet(f"{source}.resnets.1", f"{path}/resnet1"),
  ]


LOCAL = ("_name_or_path",)  # of whoever saved the file


def config_json(name: str, part: Mapping[str, Any]) -> dict[str, Any]:
  """diffusers' config.json of the part "unet" or "vae".

  It is the published one, whole, where the part came from one and still has its sizes:
  it says more than our module reads.

  Args:
    name: "unet" or "vae".
    part: the part's configuration.
  """
  make, read = {
    "unet": (unet_config, unet.fields_from_config),
    "vae": (vae_config, vae.fields_from_config),
  }[name]
  fields, before = published_config.own_fields(part), part.get("published")
  if before is None:
    return make(fields)
  listed = lambda values: {
    k: list(v) if isinstance(v, tuple) else v for k, v in values.items()
  }
  said = listed(read(before))
  if any(said.get(key, value) != value for key, value in listed(fields).items()):
    return make(fields)
  return {key: value for key, value in before.items() if key not in LOCAL}


def unet_config(fields: Mapping[str, Any]) -> dict[str, Any]:
  """diffusers' config.json of a U-Net with these fields."""
  attends = [depth > 0 for depth in fields["depths"]]
  down = ["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends]
  up = ["CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)]
  depths = [depth or 1 for depth in fields["depths"][:-1]] + [fields["middle_depth"]]
  config = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": fields["channels"] + fields.get("grid_dim", 0),
    "out_channels": fields["channels"],
    "block_out_channels": list(fields["level_channels"]),
    "layers_per_block": fields["num_layers"],
    "down_block_types": down,
    "up_block_types": up,
    "transformer_layers_per_block": depths,
    "attention_head_dim": list(fields["num_heads"]),
    "cross_attention_dim": fields["context_dim"],
    "norm_num_groups": fields["num_groups"],
    "norm_eps": fields.get("eps", 1e-5),
    "use_linear_projection": fields["linear_projection"],
  }
  if fields.get("grid_dim"):
    config[GRID_KEY] = fields["grid_dim"]
  if fields["pooled_dim"]:
    joined = fields["pooled_dim"] + NUM_TIME_IDS * fields["time_id_dim"]
    config |= {
      "addition_embed_type": "text_time",
      "addition_time_embed_dim": fields["time_id_dim"],
      "projection_class_embeddings_input_dim": joined,
    }
  return config


def vae_config(fields: Mapping[str, Any]) -> dict[str, Any]:
  """diffusers' config.json of a VAE with these fields."""
  num_levels = len(fields["level_channels"])
  return {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": fields["latent_channels"],
    "block_out_channels": list(fields["level_channels"]),
    "layers_per_block": fields["num_layers"],
    "down_block_types": ["DownEncoderBlock2D"] * num_levels,
    "up_block_types": ["UpDecoderBlock2D"] * num_levels,
    "norm_num_groups": fields["num_groups"],
    "scaling_factor": fields["scaling_factor"],
  }
