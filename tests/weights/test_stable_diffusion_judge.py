"""The U-Net and the VAE beside diffusers', at small random sizes."""

import golden_data
import numpy as np
import pytest

from lavit_jax.models import unet, vae
from lavit_jax.weights import stable_diffusion

pytestmark = pytest.mark.judge

ATOL = 2e-5
SHARED = dict(norm_num_groups=8, cross_attention_dim=24)
CROSS_DOWN, DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, UP = "CrossAttnUpBlock2D", "UpBlock2D"
UNETS = {
  "sd15": dict(
    block_out_channels=(32, 48, 64, 64),
    down_block_types=(CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN),
    up_block_types=(UP, CROSS_UP, CROSS_UP, CROSS_UP),
    attention_head_dim=4,
  ),
  "sdxl": dict(
    block_out_channels=(32, 48, 64),
    down_block_types=(DOWN, CROSS_DOWN, CROSS_DOWN),
    up_block_types=(CROSS_UP, CROSS_UP, UP),
    transformer_layers_per_block=(1, 2, 3),
    attention_head_dim=(2, 4, 8),
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=20 + 6 * 8,
  ),
  "plain levels": dict(
    block_out_channels=(32, 64),
    down_block_types=(DOWN, DOWN),
    up_block_types=(UP, UP),
    layers_per_block=1,
    attention_head_dim=8,
  ),
  "one level": dict(
    block_out_channels=(32,),
    down_block_types=(CROSS_DOWN,),
    up_block_types=(CROSS_UP,),
    layers_per_block=3,
    attention_head_dim=4,
    upcast_attention=True,
  ),
  "a grid beside the latents": dict(
    in_channels=4 + 5,
    block_out_channels=(32, 48),
    down_block_types=(DOWN, CROSS_DOWN),
    up_block_types=(CROSS_UP, UP),
    layers_per_block=1,
    attention_head_dim=4,
  ),
}


def perturbed(model, seed: int):
  """The torch model with every parameter moved, norms too, and its arrays."""
  import torch

  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for p in model.parameters():
      p += 0.05 * torch.randn(p.shape, generator=generator)
  state = {key: value.numpy() for key, value in model.state_dict().items()}
  return model.eval(), state


def fields_of(model) -> dict:
  """Our fields; input channels beyond the latents' are a grid."""
  config = dict(model.config)
  grid_dim = config["in_channels"] - config["out_channels"]
  return unet.fields_from_config(config | {unet.GRID_KEY: grid_dim})


def inputs_of(fields: dict, masked: bool) -> dict:
  rng = np.random.default_rng(1)
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  side = 2 * 2 ** (len(fields["level_channels"]) - 1)
  inputs = dict(
    latents=normal(3, side, 2 * side, 4),
    timesteps=np.array([0, 501, 999], np.int32),
    context=normal(3, 10, fields["context_dim"]),
  )
  if masked:
    inputs["context_mask"] = np.arange(10) < np.array([[10], [7], [1]])
  if fields["grid_dim"]:
    inputs["grid"] = normal(3, side, 2 * side, fields["grid_dim"])
  if fields["pooled_dim"]:
    inputs["pooled"] = normal(3, fields["pooled_dim"])
    inputs["time_ids"] = np.array([[512, 640, 0, 8, 512, 512]] * 3, np.float32)
  return inputs


def peer_unet(model, inputs: dict) -> np.ndarray:
  import torch

  tensors = {key: torch.from_numpy(value) for key, value in inputs.items()}
  added = None
  if "pooled" in tensors:
    added = {"text_embeds": tensors["pooled"], "time_ids": tensors["time_ids"]}
  joined = [tensors[name] for name in ("latents", "grid") if name in tensors]
  with torch.no_grad():
    out = model(
      torch.cat(joined, -1).permute(0, 3, 1, 2),
      tensors["timesteps"],
      tensors["context"],
      encoder_attention_mask=tensors.get("context_mask"),
      added_cond_kwargs=added,
    ).sample
  return out.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "whole"])
@pytest.mark.parametrize("name", UNETS)
def test_unet_equals_diffusers(name, masked):
  from diffusers import UNet2DConditionModel

  model, state = perturbed(UNet2DConditionModel(**(SHARED | UNETS[name])), seed=0)
  fields = fields_of(model)
  ours = unet.UNet(**fields, dtype="float32")
  inputs = inputs_of(fields, masked)
  target = golden_data.abstract_params(ours, **inputs)
  table = stable_diffusion.unet_table(fields)
  params = golden_data.import_checked(table, state, target)
  out = golden_data.compiled(lambda p: ours.apply({"params": p}, **inputs))(params)
  expected = peer_unet(model, inputs)
  assert out.shape == expected.shape and np.abs(expected).max() > 0.5
  print(f"{name}: largest difference {np.abs(out - expected).max():.2e}")
  np.testing.assert_allclose(out, expected, atol=ATOL, rtol=ATOL)


@pytest.mark.parametrize("name", UNETS)
def test_an_exported_unet_config_builds_the_same_model(name):
  from diffusers import UNet2DConditionModel

  model = UNet2DConditionModel(**(SHARED | UNETS[name]))
  fields = fields_of(model)
  config = stable_diffusion.unet_config(fields)
  again = UNet2DConditionModel.from_config(config)
  assert fields_of(again) == fields
  shapes = lambda m: {key: value.shape for key, value in m.state_dict().items()}
  assert shapes(again) == shapes(model)


@pytest.fixture(scope="module")
def vae_pair():
  """diffusers' VAE, ours, and our parameters."""
  from diffusers import AutoencoderKL

  config = stable_diffusion.vae_config(
    dict(
      latent_channels=4,
      level_channels=(16, 24, 32),
      num_layers=2,
      num_groups=8,
      scaling_factor=0.13,
    )
  )
  model, state = perturbed(AutoencoderKL.from_config(config), seed=3)
  fields = vae.fields_from_config(dict(model.config))
  ours = vae.AutoencoderKL(**fields)
  target = golden_data.abstract_params(ours, np.zeros((1, 16, 16, 3), np.float32))
  table = stable_diffusion.vae_table(fields)
  params = golden_data.import_checked(table, state, target)
  return model, ours, params


def test_vae_encodes_as_diffusers(vae_pair):
  import torch

  model, ours, params = vae_pair
  images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 24, 3)).astype(np.float32)
  with torch.no_grad():
    peer = model.encode(torch.from_numpy(images).permute(0, 3, 1, 2)).latent_dist
  mean, log_variance = golden_data.run(ours, params, images, method="encode")
  for out, expected in ((mean, peer.mean), (log_variance, peer.logvar)):
    expected = expected.permute(0, 2, 3, 1).numpy()
    print(f"largest difference {np.abs(out - expected).max():.2e}")
    np.testing.assert_allclose(out, expected, atol=ATOL, rtol=ATOL)


def test_vae_decodes_as_diffusers(vae_pair):
  import torch

  model, ours, params = vae_pair
  latents = np.random.default_rng(0).normal(size=(2, 6, 8, 4)).astype(np.float32)
  with torch.no_grad():
    expected = model.decode(torch.from_numpy(latents).permute(0, 3, 1, 2)).sample
  expected = expected.permute(0, 2, 3, 1).numpy()
  out = golden_data.run(ours, params, latents, method="decode")
  print(f"largest difference {np.abs(out - expected).max():.2e}")
  np.testing.assert_allclose(out, expected, atol=ATOL, rtol=ATOL)
