"""CLIP in both layouts beside transformers' CLIPModel, with random weights."""

import numpy as np
import published
import pytest

from lavit_jax.models import openai_clip
from lavit_jax.weights import exchange, files, model_directory, parity

pytestmark = pytest.mark.judge
ATOL = 2e-5
SIZES = openai_clip.VARIANTS["tiny"]


@pytest.fixture(scope="module")
def clip():
  """A random model made by transformers' own configuration."""
  import torch
  import transformers

  torch.manual_seed(0)
  shared = dict(projection_dim=SIZES["output_dim"], hidden_act="quick_gelu")

  def tower(own):
    return shared | dict(
      hidden_size=own["embed_dim"],
      intermediate_size=own["mlp_dim"],
      num_hidden_layers=own["num_layers"],
      num_attention_heads=own["num_heads"],
    )

  text, vision = SIZES["text"], SIZES["vision"]
  ids = dict(vocab_size=text["vocab_size"], max_position_embeddings=text["max_length"])
  ids |= dict(bos_token_id=97, eos_token_id=2)  # as in the published configuration
  sides = dict(image_size=vision["image_size"], patch_size=vision["patch_size"])
  config = transformers.CLIPConfig(
    text_config=tower(text) | ids,
    vision_config=tower(vision) | sides,
    projection_dim=SIZES["output_dim"],
  )
  model = transformers.CLIPModel(config).eval()
  with torch.no_grad():
    for p in model.parameters():
      p += 0.1 * torch.randn(p.shape)
  return model


def openai_state(model) -> dict:
  """The same weights under OpenAI's keys, written down apart from our tables."""
  import torch

  state = model.state_dict()
  out = {
    "logit_scale": state["logit_scale"],
    "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
    "visual.positional_embedding": state[
      "vision_model.embeddings.position_embedding.weight"
    ],
    "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
    "visual.proj": state["visual_projection.weight"].T.contiguous(),
    "text_projection": state["text_projection.weight"].T.contiguous(),
    "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
    "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
  }
  for there, here in (
    ("visual.ln_pre", "vision_model.pre_layrnorm"),
    ("visual.ln_post", "vision_model.post_layernorm"),
    ("ln_final", "text_model.final_layer_norm"),
  ):
    out |= {f"{there}.{kind}": state[f"{here}.{kind}"] for kind in ("weight", "bias")}
  names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1"}
  names |= {"mlp.c_proj": "mlp.fc2", "attn.out_proj": "self_attn.out_proj"}
  for there, here, count in (
    ("visual.transformer", "vision_model", SIZES["vision"]["num_layers"]),
    ("transformer", "text_model", SIZES["text"]["num_layers"]),
  ):
    for i in range(count):
      block, own = f"{there}.resblocks.{i}", f"{here}.encoder.layers.{i}"
      for kind in ("weight", "bias"):
        out |= {
          f"{block}.{a}.{kind}": state[f"{own}.{b}.{kind}"] for a, b in names.items()
        }
        three = [state[f"{own}.self_attn.{n}_proj.{kind}"] for n in "qkv"]
        out[f"{block}.attn.in_proj_{kind}"] = torch.cat(three)
  return out


def embeddings(model, images, ids):
  import torch

  with torch.no_grad():
    seen = model.vision_model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    read = model.text_model(torch.from_numpy(ids).long())
    both = (seen.pooler_output, read.pooler_output)
    maps = (model.visual_projection, model.text_projection)
    return [project(x).numpy() for project, x in zip(maps, both)]


def ours(folder, images, ids):
  part = model_directory.read_part(folder, "openai_clip")
  module = openai_clip.OpenaiClip(**part.config, dtype="float32")
  params = {"params": parity.whole(part.params)}
  return module.apply(params, images, ids, ids.argmax(-1) + 1)


@pytest.mark.parametrize("layout", ["folder.safetensors", "folder.bin", "openai.bin"])
def test_both_layouts_embed_as_transformers_does(tmp_path, clip, layout):
  import torch

  if layout == "folder.safetensors":
    clip.save_pretrained(source := tmp_path / "hf")
  elif layout == "folder.bin":
    clip.config.save_pretrained(source := tmp_path / "hf")
    old = {"text_model.embeddings.position_ids": torch.arange(13)[None]}
    torch.save(clip.state_dict() | old, source / "pytorch_model.bin")
  else:
    torch.save(openai_state(clip), source := tmp_path / "openai_clip_ViT-L-14.bin")
  exchange.import_model("openai_clip", source, tmp_path / "model")
  rng = np.random.default_rng(0)
  images = rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
  ids = rng.integers(0, 97, (3, 13)).astype(np.int32)
  for row, end in zip(ids, (3, 7, 12)):
    row[end:] = 98
  expected = embeddings(clip, images, ids)
  for a, b in zip(ours(tmp_path / "model", images, ids), expected, strict=True):
    assert np.ptp(b) > 1
    np.testing.assert_allclose(a, b, atol=ATOL)
  record = exchange.verify("openai_clip", source, tmp_path / "model")["modules"][0]
  assert record["other_side"] == "torch" and record["passed"]


def test_exports_load_strictly_and_come_back_bit_for_bit(tmp_path, clip):
  import torch
  import transformers

  clip.save_pretrained(tmp_path / "hf")
  exchange.import_model("openai_clip", tmp_path / "hf", tmp_path / "model")
  exchange.export_model("openai_clip", tmp_path / "model", tmp_path / "out")
  back, report = transformers.CLIPModel.from_pretrained(
    tmp_path / "out", output_loading_info=True
  )
  assert not any(report[kind] for kind in report), report
  for key, value in clip.state_dict().items():
    assert torch.equal(value, back.state_dict()[key]), key
  exchange.export_model("openai_clip", tmp_path / "model", tmp_path / "out.bin")
  expected = {key: value.numpy() for key, value in openai_state(clip).items()}
  published.assert_same(files.open_file(tmp_path / "out.bin"), expected)
  assert parity.clip_ids_of(SIZES["text"]).max() == 98


def test_a_program_instead_of_tensors_is_refused(tmp_path):
  import torch

  class Program(torch.nn.Module):
    def forward(self, x):
      return x + 1

  torch.jit.script(Program()).save(str(tmp_path / "ViT-L-14.pt"))
  with pytest.raises(ValueError, match="expected only tensors in .* got a TorchScript"):
    files.open_file(tmp_path / "ViT-L-14.pt")
