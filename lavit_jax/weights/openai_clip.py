"""OpenAI's CLIP in both layouts: tables, configuration, in and out.

    folder  Hugging Face `CLIPModel`: config.json, model.safetensors, text tokenizer
    file    OpenAI's own keys, e.g. LaVIT's `openai_clip_ViT-L-14.bin`

Our side is the parameter tree of `models.openai_clip.OpenaiClip`. Both towers repeat
one block; OpenAI fuses query, key and value as we do, Hugging Face keeps them apart.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lavit_jax.models.openai_clip import EPS, LOGIT_SCALE, OpenaiClip
from lavit_jax.weights import files, rules
from lavit_jax.weights.part import Part, abstract_params, shape
from lavit_jax.weights.rules import Rule, dense, layer_norm
from lavit_jax.weights.tensors import Tensor

PART = "openai_clip"
HEAD_DIM = 64  # of every model of OpenAI; a file does not tell
# Buffers, and the sizes that OpenAI stores beside its weights.
OPTIONAL = ("*.position_ids", "input_resolution", "context_length", "vocab_size")
# What our module computes; a config that asks for something else is refused.
FIXED = {"hidden_act": "quick_gelu", "layer_norm_eps": EPS}
TOWERS = {"vision_tower": "vision_config", "text_tower": "text_config"}
HEADS = {"vision_tower": 12, "text_tower": 8}  # where a config leaves them out
OPEN_CLIP_FILE = "open_clip_config.json"  # whose default is the exact GELU
TEXT_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


def _blocks(source: str, path: str, names: Mapping[str, str]) -> list[Rule]:
  """One tower's blocks; `names` maps what we call a layer to what they do."""
  own, ours = f"{source}.{{i}}.", f"{path}/blocks/"
  return [
    *layer_norm(own + names["norm1"], f"{ours}norm1"),
    Rule(f"{own}{names['qkv']}weight", f"{ours}qkv/kernel", rules.linear),
    Rule(f"{own}{names['qkv']}bias", f"{ours}qkv/bias", rules.vector),
    *dense(own + names["out"], f"{ours}out", rules.linear_from_heads),
    *layer_norm(own + names["norm2"], f"{ours}norm2"),
    *dense(own + names["fc1"], f"{ours}mlp/fc1"),
    *dense(own + names["fc2"], f"{ours}mlp/fc2"),
  ]


_OPENAI = {
  "norm1": "ln_1",
  "qkv": "attn.in_proj_",
  "out": "attn.out_proj",
  "norm2": "ln_2",
  "fc1": "mlp.c_fc",
  "fc2": "mlp.c_proj",
}
_HUGGING_FACE = {
  "norm1": "layer_norm1",
  "qkv": "self_attn.qkv_proj.",  # joined and split below
  "out": "self_attn.out_proj",
  "norm2": "layer_norm2",
  "fc1": "mlp.fc1",
  "fc2": "mlp.fc2",
}

OPENAI = [
  Rule("visual.class_embedding", "vision_tower/cls_token"),
  Rule("visual.positional_embedding", "vision_tower/positions"),
  Rule("visual.conv1.weight", "vision_tower/patch_embed/kernel", rules.patches),
  *layer_norm("visual.ln_pre", "vision_tower/norm_before"),
  *_blocks("visual.transformer.resblocks", "vision_tower", _OPENAI),
  *layer_norm("visual.ln_post", "vision_tower/norm"),
  Rule("visual.proj", "vision_tower/project/kernel"),
  Rule("token_embedding.weight", "text_tower/embed/embedding"),
  Rule("positional_embedding", "text_tower/positions"),
  *_blocks("transformer.resblocks", "text_tower", _OPENAI),
  *layer_norm("ln_final", "text_tower/norm"),
  Rule("text_projection", "text_tower/project/kernel"),
  Rule("logit_scale", "scale"),
]

HUGGING_FACE = [
  Rule("vision_model.embeddings.class_embedding", "vision_tower/cls_token"),
  Rule("vision_model.embeddings.position_embedding.weight", "vision_tower/positions"),
  Rule(
    "vision_model.embeddings.patch_embedding.weight",
    "vision_tower/patch_embed/kernel",
    rules.patches,
  ),
  *layer_norm("vision_model.pre_layrnorm", "vision_tower/norm_before"),  # sic
  *_blocks("vision_model.encoder.layers", "vision_tower", _HUGGING_FACE),
  *layer_norm("vision_model.post_layernorm", "vision_tower/norm"),
  Rule("visual_projection.weight", "vision_tower/project/kernel", rules.linear),
  Rule("text_model.embeddings.token_embedding.weight", "text_tower/embed/embedding"),
  Rule("text_model.embeddings.position_embedding.weight", "text_tower/positions"),
  *_blocks("text_model.encoder.layers", "text_tower", _HUGGING_FACE),
  *layer_norm("text_model.final_layer_norm", "text_tower/norm"),
  Rule("text_projection.weight", "text_tower/project/kernel", rules.linear),
  Rule("logit_scale", "scale"),
]

_APART = re.compile(r"(.*\.)q_proj\.(weight|bias)")
_JOINED = re.compile(r"(.*\.)qkv_proj\.(weight|bias)")


def joined(source: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """Query, key and value as one tensor, where all three are there and equal."""
  out = dict(source)
  for before, kind in [m.groups() for m in map(_APART.fullmatch, source) if m]:
    keys = [f"{before}{name}_proj.{kind}" for name in "qkv"]
    three = [source[key] for key in keys if key in source]
    if len(three) == 3 and len({(t.shape, t.dtype) for t in three}) == 1:
      for key in keys:
        del out[key]
      out[f"{before}qkv_proj.{kind}"] = _concatenated(three)
  return out


def _concatenated(three: list[Tensor]) -> Tensor:
  rows, *rest = three[0].shape
  read = lambda: np.concatenate([tensor.read() for tensor in three])
  return Tensor((3 * rows, *rest), three[0].dtype, read)


def split(source: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """The inverse of `joined`."""
  out = {}
  for key, tensor in source.items():
    match = _JOINED.fullmatch(key)
    if match is None:
      out[key] = tensor
      continue
    before, kind = match.groups()
    for number, name in enumerate("qkv"):
      out[f"{before}{name}_proj.{kind}"] = _third(tensor, number)
  return out


def _third(tensor: Tensor, number: int) -> Tensor:
  rows, rest = tensor.shape[0] // 3, tensor.shape[1:]
  read = lambda: tensor.read()[number * rows : (number + 1) * rows]
  return Tensor((rows, *rest), tensor.dtype, read)


def read(source: pathlib.Path) -> Part:
  """Opens a folder or a file of either layout as a part; its tensors stay unread."""
  if source.is_dir():
    config = files.read_json(source / "config.json")
    heads = _heads(config, source)
    return _read(HUGGING_FACE, joined(files.open_folder(source)), heads)
  return _read(OPENAI, files.open_file(source), _heads_beside(source))


def _heads_beside(file: pathlib.Path) -> dict[str, int] | None:
  """Heads by the config.json beside a file, if there is one of a CLIP.

  Raises:
    ValueError: a configuration beside the file asks for what is not built here.
  """
  path = file.parent / "config.json"
  config = files.read_json(path) if path.is_file() else {}
  heads = None
  if config.get("model_type") == "clip":
    heads = _heads(config, file.parent)
  path = file.parent / OPEN_CLIP_FILE
  sizes = files.read_json(path).get("model_cfg", {}) if path.is_file() else None
  if sizes is not None and not sizes.get("quick_gelu"):
    raise ValueError(
      f"expected a CLIP with the quick GELU, got one whose {path} asks for the exact"
      " GELU; use one of OpenAI's models"
    )
  return heads


def _heads(config: Mapping[str, Any], folder: pathlib.Path) -> dict[str, int]:
  """Attention heads by tower; refuses what our module does not compute."""
  found = {}
  for tower, name in TOWERS.items():
    own = _own(config, name, HEADS[tower])
    if config.get("model_type") != "clip" or not isinstance(own, Mapping):
      raise ValueError(
        f"expected the config.json of a CLIPModel in {folder}, with {name}, got one"
        f" of {config.get('model_type')!r}; give a folder like clip-vit-large-patch14"
      )
    wrong = {k: own[k] for k, value in FIXED.items() if own.get(k, value) != value}
    heads = own.get("num_attention_heads", HEADS[tower])
    if wrong or not isinstance(heads, int) or heads < 1:
      raise ValueError(
        f"expected a CLIP with {FIXED} and a number of attention heads in {name} of"
        f" {folder}, got {wrong or heads}; use one of OpenAI's models"
      )
    found[tower] = heads
  return found


def _own(config: Mapping[str, Any], name: str, heads: int) -> Any:
  """A tower's configuration; the older `text_config_dict` goes before `text_config`.

  transformers takes the older one whole: what it leaves out has its default, whatever
  the newer one says.
  """
  own, older = config.get(name), config.get(f"{name}_dict")
  if not isinstance(older, Mapping):
    return own
  return dict(own or {}) | FIXED | {"num_attention_heads": heads} | dict(older)


def _read(
  table: list[Rule], source: Mapping[str, Tensor], heads: Mapping[str, int] | None
) -> Part:
  source, _ = rules.without(source, OPTIONAL)
  sizes = sizes_of(table, source, heads)
  side = sizes["vision"]["image_size"]
  ids = jax.ShapeDtypeStruct((1, sizes["text"]["max_length"]), jnp.int32)
  lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
  images = shape(1, side, side, 3)
  target = abstract_params(OpenaiClip(**sizes), images, ids, lengths)
  return Part(rules.import_tensors(table, source, target), sizes)


def sizes_of(
  table: list[Rule], source: Mapping[str, Tensor], heads: Mapping[str, int] | None
) -> dict[str, Any]:
  """The fields of `OpenaiClip`, read from shapes.

  Args:
    table: `OPENAI` or `HUGGING_FACE`.
    source: tensors by its keys.
    heads: attention heads by tower; as many as OpenAI has when None.
  """
  keys = {rule.path: rule.source for rule in table}
  look = lambda path, axes: rules.shape_of(source, keys[path].format(i=0), axes)

  def tower(name):
    width = look(f"{name}/norm/scale", 1)[0]
    count = heads[name] if heads else max(width // HEAD_DIM, 1)
    return {
      "embed_dim": width,
      "num_layers": rules.count_layers(
        source, keys[f"{name}/blocks/norm1/scale"].split("{i}")[0]
      ),
      "num_heads": count,
      "head_dim": width // count,
      "mlp_dim": look(f"{name}/blocks/mlp/fc1/kernel", 2)[0],
    }

  patch = look("vision_tower/patch_embed/kernel", 4)[-1]
  side = round((look("vision_tower/positions", 2)[0] - 1) ** 0.5)
  vocab, length = (
    look(f"text_tower/{name}", 2)[0] for name in ("embed/embedding", "positions")
  )
  text = tower("text_tower")
  both = look("text_tower/project/kernel", 2)  # either way round
  return {
    "vision": {
      "image_size": side * patch,
      "patch_size": patch,
      **tower("vision_tower"),
    },
    "text": {"vocab_size": vocab, "max_length": length, **text},
    "output_dim": both[0] * both[1] // text["embed_dim"],
  }


def write_file(part: Part, path: pathlib.Path, dtype: str | None) -> None:
  """Writes OpenAI's own keys into a new file."""
  for sizes in (part.config["vision"], part.config["text"]):
    if sizes["head_dim"] != HEAD_DIM:
      raise ValueError(
        f"expected heads of width {HEAD_DIM}, the only ones of OpenAI's own layout, got"
        f" {sizes['head_dim']}; export to a folder, whose config.json states them"
      )
  content = rules.export_tensors(OPENAI, part.params)
  files.write_file(path, files.stored_as(content, dtype))


def write_folder(
  part: Part, folder: pathlib.Path, suffix: str, dtype: str | None
) -> None:
  """Writes a Hugging Face `CLIPModel` into an existing folder."""
  content = split(rules.export_tensors(HUGGING_FACE, part.params))
  content = files.stored_as(content, dtype)
  stem = "model" if suffix == files.SAFETENSORS else "pytorch_model"
  files.write_folder(folder, content, stem, suffix)
  config = config_of(part.config, str(content["logit_scale"].dtype))
  files.write_json(folder / "config.json", config)


def config_of(sizes: Mapping[str, Any], dtype: str) -> dict[str, Any]:
  """The config.json of a part's sizes."""
  vision, text, width = sizes["vision"], sizes["text"], sizes["output_dim"]

  def tower(own, kind):
    return {
      "model_type": kind,
      **FIXED,
      "hidden_size": own["embed_dim"],
      "intermediate_size": own["mlp_dim"],
      "num_hidden_layers": own["num_layers"],
      "num_attention_heads": own["num_heads"],
      "projection_dim": width,
    }

  return {
    "architectures": ["CLIPModel"],
    "model_type": "clip",
    "projection_dim": width,
    "logit_scale_init_value": LOGIT_SCALE,
    "torch_dtype": dtype,
    "vision_config": {
      **tower(vision, "clip_vision_model"),
      "image_size": vision["image_size"],
      "patch_size": vision["patch_size"],
      "num_channels": 3,
    },
    "text_config": {
      **tower(text, "clip_text_model"),
      "vocab_size": text["vocab_size"],
      "max_position_embeddings": text["max_length"],
      # The tower is read at the highest id, which ends every text.
      "bos_token_id": text["vocab_size"] - 2,
      "eos_token_id": text["vocab_size"] - 1,
    },
  }


def text_tokenizer_of(source: pathlib.Path) -> pathlib.Path | None:
  """The folder of CLIP's text tokenizer: the source itself, or where the file lies."""
  folder = source if source.is_dir() else source.parent
  here = any((folder / name).is_file() for name in TEXT_TOKENIZER_FILES)
  return folder if here else None
