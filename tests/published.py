"""Published directories at tiny sizes, of golden and of random state dicts."""

import json
import pathlib

import golden_data
import numpy as np

from lavit_jax.models import unet, vae
from lavit_jax.weights import files, part, rules, stable_diffusion, tensors

HEADS = 2


def rounded(state: dict, dtype: str) -> dict:
  return {key: np.asarray(array).astype(dtype) for key, array in state.items()}


def write_file(path: pathlib.Path, state: dict) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  lazy = {key: tensors.of_array(np.asarray(array)) for key, array in state.items()}
  files.write_file(path, lazy)


def llama_config(state: dict, heads: int, eps: float = 1e-5) -> dict:
  rows, width = state["model.embed_tokens.weight"].shape
  return {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": width,
    "intermediate_size": state["model.layers.0.mlp.gate_proj.weight"].shape[0],
    "num_hidden_layers": golden_layers(state),
    "num_attention_heads": heads,
    "rms_norm_eps": eps,
    "vocab_size": rows,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
  }


def golden_layers(state: dict) -> int:
  return 1 + max(int(k.split(".")[2]) for k in state if k.startswith("model.layers"))


def random_llama(
  rows: int, width: int = 32, heads: int = 4, kv_heads: int = 2, seed: int = 0
) -> dict:
  """State dict of a random LLaMA of two layers."""
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(size=shape, scale=0.2).astype(np.float32)
  kv, mlp = width // heads * kv_heads, 48
  state = {"model.embed_tokens.weight": normal(rows, width)}
  for i in range(2):
    layer = f"model.layers.{i}"
    shapes = {
      "self_attn.q_proj": (width, width),
      "self_attn.k_proj": (kv, width),
      "self_attn.v_proj": (kv, width),
      "self_attn.o_proj": (width, width),
      "mlp.gate_proj": (mlp, width),
      "mlp.up_proj": (mlp, width),
      "mlp.down_proj": (width, mlp),
    }
    state |= {f"{layer}.{name}.weight": normal(*s) for name, s in shapes.items()}
    for name in ("input_layernorm", "post_attention_layernorm"):
      state[f"{layer}.{name}.weight"] = 1 + normal(width)
  state["model.norm.weight"] = 1 + normal(width)
  state["lm_head.weight"] = normal(rows, width)
  return state


def write_llama(folder: pathlib.Path, state: dict, config: dict, suffix: str) -> None:
  """A Hugging Face folder of three shards and an index."""
  folder.mkdir(parents=True, exist_ok=True)
  files.write_json(folder / "config.json", config)
  stem = "model" if suffix == ".safetensors" else "pytorch_model"
  keys = sorted(state)
  places = {}
  for number in range(3):
    name = f"{stem}-{number + 1:05d}-of-00003{suffix}"
    shard = {key: state[key] for key in keys[number::3]}
    write_file(folder / name, shard)
    places |= dict.fromkeys(shard, name)
  files.write_json(folder / f"{stem}{suffix}.index.json", {"weight_map": places})


def write_words(folder: pathlib.Path, size: int) -> None:
  """A text tokenizer of `size` ids: three marks, then characters."""
  vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
  vocab |= {chr(0x4E00 + i): i for i in range(3, size)}
  special = [
    {"id": i, "content": t, "special": True, "single_word": False}
    | {"lstrip": False, "rstrip": False, "normalized": False}
    for i, t in enumerate(("<unk>", "<s>", "</s>"))
  ]
  model = {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>"}
  text = {"version": "1.0", "added_tokens": special, "model": model}
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "tokenizer.json").write_text(json.dumps(text))
  (folder / "tokenizer_config.json").write_text(
    json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"})
  )


def lavit_states() -> tuple[dict[str, dict], int, int]:
  """State dicts by file of a whole LaVIT, its text ids and its codes.

  The vision files are the golden ones; the rest is random at matching sizes.
  """
  whole, dims, _ = golden_data.load("tokenizer_e2e.npz")
  those = lambda *prefixes: {k: v for k, v in whole.items() if k.startswith(prefixes)}
  encoder = {k.removeprefix("encoder."): v for k, v in those("encoder.").items()}
  tokenizer = those("token_predictor.", "causal_encoder.", "quantize.", "encode_task")
  text, codes = 70, whole["quantize.embedding.weight"].shape[0]
  llama = random_llama(text + 2 + codes, dims["llm"], heads=2)
  # Another merger, with activations as tame as those of the first.
  moved = {k: v * np.float32(1.25) for k, v in those("causal_encoder.").items()}
  files_of = {
    "visual_tokenizer/eva_vitg_psz14": encoder,
    "visual_tokenizer/tokenizer_encoder": tokenizer,
    "visual_tokenizer/tokenizer_decoder": golden_data.load("decoder_lowres.npz")[0],
    "visual_tokenizer/highres_tokenizer_decoder": golden_data.load(
      "decoder_highres.npz"
    )[0],
    "language_model/visual_weight": moved | those("vit_proj."),
    "language_model/model": llama,
  }
  return files_of, text, codes


def write_lavit(folder: pathlib.Path, suffix: str, dtype: str = "float32") -> dict:
  """A published LaVIT directory; returns its state dicts by file."""
  states, text, _ = lavit_states()
  states = {name: rounded(state, dtype) for name, state in states.items()}
  for name, state in states.items():
    if name != "language_model/model":
      write_file(folder / f"{name}{suffix}", state)
  llama = states["language_model/model"]
  config = llama_config(llama, 2)
  write_llama(folder / "language_model", llama, config, suffix)
  write_words(folder / "language_model", text)
  files.write_json(folder / "lavit_jax.json", {"num_heads": HEADS})
  return states


def assert_same(found: dict, expected: dict) -> None:
  """Same keys, dtypes and bits."""
  assert found.keys() == expected.keys()
  for key, array in expected.items():
    own = np.asarray(found[key])
    assert own.dtype == array.dtype and own.shape == array.shape, key
    assert own.tobytes() == np.ascontiguousarray(array).tobytes(), key


UNET = dict(
  _class_name="UNet2DConditionModel",
  in_channels=4,
  out_channels=4,
  block_out_channels=[32, 64],
  down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
  up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
  layers_per_block=1,
  attention_head_dim=4,
  norm_num_groups=8,
)
VAE = dict(
  _class_name="AutoencoderKL",
  in_channels=3,
  out_channels=3,
  latent_channels=4,
  block_out_channels=[16, 32],
  layers_per_block=1,
  down_block_types=["DownEncoderBlock2D"] * 2,
  up_block_types=["UpDecoderBlock2D"] * 2,
  norm_num_groups=8,
  scaling_factor=0.18215,
)
SCHEDULER = dict(
  _class_name="DDIMScheduler",
  num_train_timesteps=1000,
  beta_schedule="scaled_linear",
  beta_start=0.00085,
  beta_end=0.012,
  prediction_type="epsilon",
  timestep_spacing="leading",
  steps_offset=1,
  clip_sample=False,
  set_alpha_to_one=False,
)


def write_pixels(
  folder: pathlib.Path, context: int, pooled: int, suffix: str, dtype: str = "float32"
) -> None:
  """A diffusers folder of random U-Net and VAE; pooled is 0 for the SD 1.5 type."""
  config = UNET | {"cross_attention_dim": context}
  if pooled:
    config |= {
      "addition_embed_type": "text_time",
      "addition_time_embed_dim": 8,
      "projection_class_embeddings_input_dim": pooled + 48,
      "use_linear_projection": True,
    }
  rng = np.random.default_rng(7)
  sizes = unet.fields_from_config(config)
  none = None
  target = part.abstract_params(
    unet.UNet(**sizes),
    part.shape(1, 4, 4, 4),
    np.zeros(1, np.int32),
    part.shape(1, 2, context),
    none,
    part.shape(1, pooled) if pooled else none,
    part.shape(1, 6) if pooled else none,
  )
  of = lambda target, table: {
    key: rng.normal(size=shape, scale=0.1).astype(np.float32).astype(dtype)
    for key, shape in rules.source_shapes(table, target).items()
  }
  state = of(target, stable_diffusion.unet_table(sizes))
  write_file(folder / f"unet/diffusion_pytorch_model{suffix}", state)
  files.write_json(folder / "unet/config.json", config)
  sizes = vae.fields_from_config(VAE)
  target = part.abstract_params(vae.AutoencoderKL(**sizes), part.shape(1, 4, 4, 3))
  state = of(target, stable_diffusion.vae_table(sizes))
  write_file(folder / f"vae/diffusion_pytorch_model{suffix}", state)
  files.write_json(folder / "vae/config.json", VAE)
  (folder / "scheduler").mkdir()
  files.write_json(folder / "scheduler/scheduler_config.json", SCHEDULER)
  if not pooled:
    row = rng.normal(size=(1, 77, context)).astype(np.float32).astype(dtype)
    key = "" if suffix == ".bin" else "uncond_embeddings"
    write_file(folder / f"uncond_embeddings{suffix}", {key: row})


def write_whole_lavit(folder: pathlib.Path, suffix: str, dtype: str = "float32"):
  """As `write_lavit`, with both pixel decoders."""
  states = write_lavit(folder, suffix, dtype)
  low = states["visual_tokenizer/tokenizer_decoder"]
  high = states["visual_tokenizer/highres_tokenizer_decoder"]
  rows = lambda state, key: state[f"{key}.weight"].shape[0]
  write_pixels(folder / "pixel_decoding", rows(low, "unet_proj"), 0, suffix, dtype)
  context = rows(high, "unet_proj_1") + rows(high, "unet_proj_2")
  pooled = rows(high, "unet_attnpool.c_proj")
  write_pixels(folder / "highres_pixel_decoding", context, pooled, suffix, dtype)


def all_weights(folder: pathlib.Path) -> dict[str, dict]:
  """Arrays by key of every weight file below a folder."""
  found = {}
  for path in sorted(folder.rglob("*")):
    if path.suffix in (".bin", ".safetensors"):
      stem = path.stem.removeprefix("pytorch_")
      # Shards of one model count as one file.
      stem = stem.split("-")[0] if "-of-" in stem else stem
      name = str(path.relative_to(folder).with_name(stem))
      arrays = {k: np.asarray(t) for k, t in files.open_file(path).items()}
      found.setdefault(name, {}).update(arrays)
  return found
