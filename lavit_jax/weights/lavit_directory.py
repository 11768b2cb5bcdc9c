"""The published LaVIT directory (reference facts, section 9), in and out.

    language_model/          LLaMA over 32,000 + 2 + 16,384 ids, visual_weight
    visual_tokenizer/        eva_vitg_psz14, tokenizer_encoder, tokenizer_decoder,
                             highres_tokenizer_decoder
    pixel_decoding/          unet vae scheduler uncond_embeddings     (SD 1.5)
    highres_pixel_decoding/  unet vae scheduler                       (SDXL type)

Weight files end in .bin or .safetensors. Parts on our side: vit, visual_tokenizer,
codebook, llama, understanding (stage-2 merger and projection); condition, unet, vae,
null_condition; and for high resolution the same with "highres_" before them, and
highres_feature_decoder.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.layers import linear
from lavit_jax.models import condition_heads
from lavit_jax.models.visual_tokenizer import VisualTokenizer
from lavit_jax.weights import eva, files, llama, pixel_folders, rules, sums
from lavit_jax.weights import visual_tokenizer as tables
from lavit_jax.weights.part import Part, abstract_params, shape
from lavit_jax.weights.tensors import Tensor

LANGUAGE, VISUAL = "language_model", "visual_tokenizer"
ENCODER_FILE, TOKENIZER_FILE = "eva_vitg_psz14", "tokenizer_encoder"
LOWRES_FILE, HIGHRES_FILE = "tokenizer_decoder", "highres_tokenizer_decoder"
UNDERSTANDING_FILE = "visual_weight"
# Folders of the pixel decoders by what precedes their parts' names.
HIGHRES = "highres_"
PIXELS = {"": "pixel_decoding", HIGHRES: "highres_pixel_decoding"}
# How the reference samples, and its aspect ratios (facts, section 8).
SAMPLING = {"steps": 25, "guidance": 7.0, "solver": "ddim"}
RATIOS = {
  "": {"1:1": (512, 512)},
  HIGHRES: {
    "1:1": (1024, 1024),
    "4:3": (896, 1152),
    "3:2": (832, 1216),
    "16:9": (768, 1344),
    "2:3": (1216, 832),
    "3:4": (1152, 896),
  },
}
SIZES_FILE = "lavit_jax.json"  # written by us: what the files do not tell
# The whole tokenizer object may have been saved; these belong to other files.
TOKENIZER_OPTIONAL = ("encoder.*", "vit_proj.*")
UNDERSTANDING_OPTIONAL = (
  *("encoder.*", "token_predictor.*", "quantize.*", "encode_task_layer.*"),
)
ENCODING = ("selector", "merger", "encode_task_layer")
UNDERSTANDING = [
  *rules.prefixed(tables.MERGER, "causal_encoder.", "merger/"),
  *tables.VIT_PROJ,
]
QUANTIZING = [rule for rule in tables.TOKENIZER if rule not in tables.VIT_PROJ]


def is_published(folder: str | pathlib.Path) -> bool:
  """True for a folder in the published layout."""
  folder = pathlib.Path(folder)
  return any((folder / VISUAL).glob(f"{TOKENIZER_FILE}.*"))


def read(folder: str | pathlib.Path) -> dict[str, Part]:
  """Opens every part that a published directory holds; tensors stay unread.

  Args:
    folder: the directory.

  Raises:
    ValueError: a file is missing or does not fit; all that differs is listed.
  """
  folder = pathlib.Path(folder)
  facts = own_facts(folder)
  num_heads = int(facts.get("num_heads", eva.NUM_HEADS))
  source = _needed(folder / VISUAL, ENCODER_FILE)
  parts = {"vit": _named(ENCODER_FILE, eva.read, source, num_heads)}
  parts |= _tokenizer_parts(folder / VISUAL, num_heads)
  for prefix, name in PIXELS.items():
    said = facts.get("pixels", {}).get(prefix, {})
    parts |= _pixel_parts(folder / name, prefix, parts, said)
  if (folder / LANGUAGE).is_dir():
    parts |= _language_parts(folder / LANGUAGE, parts)
  return parts


def own_facts(folder: str | pathlib.Path) -> dict[str, Any]:
  """What `write` stored beside the published files; {} where the authors wrote them.

  num_heads; decoding defaults by task; sampling and ratios by pixel decoder; sums of
  the weight files.
  """
  path = pathlib.Path(folder) / SIZES_FILE
  return files.read_json(path) if path.is_file() else {}


def file_sums(folder: str | pathlib.Path, part: str) -> dict[str, str]:
  """Sums by file of what a part is read from, as `write` stored them; {} without."""
  place = LANGUAGE if part in ("llama", "understanding") else VISUAL
  for prefix, name in PIXELS.items():
    if part in {f"{prefix}{own}" for own in ("unet", "vae", "null_condition")}:
      place = name
  stored = own_facts(folder).get("sums", {})
  return {name: value for name, value in stored.items() if name.startswith(f"{place}/")}


def _needed(folder: pathlib.Path, stem: str) -> dict[str, Tensor]:
  found = files.open_either(folder, stem)
  if found is None:
    raise ValueError(
      f"expected {stem}.bin or {stem}.safetensors in {folder}, found neither; download"
      " the rest of the LaVIT directory"
    )
  return found


def _named(file: str, function, *arguments) -> Any:
  """Calls a reader; its complaint begins with the file's name."""
  try:
    return function(*arguments)
  except ValueError as error:
    raise ValueError(f"{file}: {error}") from error


def _tokenizer_parts(folder: pathlib.Path, num_heads: int) -> dict[str, Part]:
  """visual_tokenizer, codebook, and what condition the pixel decoders."""
  encoding, _ = rules.without(_needed(folder, TOKENIZER_FILE), TOKENIZER_OPTIONAL)
  lowres = files.open_either(folder, LOWRES_FILE)
  highres = files.open_either(folder, HIGHRES_FILE)
  if lowres is None and highres is None:
    _needed(folder, LOWRES_FILE)
  sizes = _named(TOKENIZER_FILE, _sizes, encoding, lowres or highres, num_heads)
  model = VisualTokenizer(**sizes)
  patches = shape(1, sizes["num_patches"], sizes["embed_dim"])
  keep = jax.ShapeDtypeStruct((1, sizes["num_patches"]), bool)
  whole = abstract_params(model, patches, keep)
  table = {"embedding": shape(sizes["num_codes"], sizes["code_dim"])}
  target = {name: whole[name] for name in ENCODING} | {"codebook": table}
  params = _named(TOKENIZER_FILE, rules.import_tensors, QUANTIZING, encoding, target)
  codebook = Part(
    params.pop("codebook"), {name: sizes[name] for name in ("num_codes", "code_dim")}
  )
  trunk, parts = whole["feature_decoder"], {}
  if lowres is not None:
    head, decoder = _named(LOWRES_FILE, _lowres, lowres, trunk)
    parts |= {"condition": head} if head else {}
  if highres is not None:
    head, own = _named(HIGHRES_FILE, _highres, highres, trunk, sizes)
    parts |= {f"{HIGHRES}condition": head, f"{HIGHRES}feature_decoder": Part(own, {})}
    decoder = decoder if lowres is not None else own
  params["feature_decoder"] = decoder
  return {"visual_tokenizer": Part(params, sizes), "codebook": codebook} | parts


def _sizes(encoding, decoder, num_heads: int) -> dict[str, int | str]:
  """The fields of `VisualTokenizer`, from the shapes of its files."""
  width = rules.shape_of(encoding, "causal_encoder.norm.weight", 1)[0]
  num_codes, code_dim = rules.shape_of(encoding, "quantize.embedding.weight", 2)
  fc1 = rules.shape_of(encoding, "causal_encoder.blocks.0.mlp.fc1.weight", 2)
  return {
    "embed_dim": width,
    "num_layers": rules.count_layers(encoding, "causal_encoder.blocks."),
    "num_heads": num_heads,
    "head_dim": width // num_heads,
    "mlp_dim": fc1[0],
    "num_patches": rules.shape_of(decoder, "pos_embed", 3)[1],
    "code_dim": code_dim,
    "num_codes": num_codes,
    "selector_input": "raw",
  }


def _lowres(source, trunk) -> tuple[Part | None, Any]:
  """The condition's projection, if it is there, and the decoder that precedes it."""
  if "unet_proj.weight" not in source:
    return None, rules.import_tensors(tables.FEATURE_DECODER, source, trunk)
  width = rules.shape_of(source, "unet_proj.weight", 2)[0]
  features = shape(1, *trunk["query_embed"].shape)
  head = abstract_params(condition_heads.LowResHead(width), features)
  target = {"feature_decoder": trunk, "head": head}
  params = rules.import_tensors(tables.LOWRES, source, target)
  config = {"head": {"condition_dim": width}}
  return Part(params["head"], config), params["feature_decoder"]


def _highres(source, trunk, sizes: Mapping[str, int]) -> tuple[Part, Any]:
  """The high-resolution head, and the feature decoder of its own before it."""
  config = {
    "first_dim": rules.shape_of(source, "unet_proj_1.weight", 2)[0],
    "second_dim": rules.shape_of(source, "unet_proj_2.weight", 2)[0],
    "pooled_dim": rules.shape_of(source, "unet_attnpool.c_proj.weight", 2)[0],
    "num_heads": sizes["num_heads"],
    "head_dim": sizes["head_dim"],
  }
  features = shape(1, *trunk["query_embed"].shape)
  head = abstract_params(condition_heads.HighResHead(**config), features)
  target = {"feature_decoder": trunk, "head": head}
  params = rules.import_tensors(tables.HIGHRES, source, target)
  return Part(params["head"], {"head": config}), params["feature_decoder"]


def _pixel_parts(
  folder: pathlib.Path, prefix: str, parts: Mapping[str, Part], said: Mapping[str, Any]
) -> dict[str, Part]:
  """U-Net, VAE and null condition; scheduler and sampling go to the condition."""
  if not pixel_folders.is_folder(folder):
    return {}
  found = _named(folder.name, pixel_folders.read, folder)
  _check_whole(folder, found, ours=bool(said))
  scheduler = found.pop("scheduler", None)
  found = {prefix + name: part for name, part in found.items()}
  name = f"{prefix}condition"
  if name in parts and scheduler is not None:
    facts = {"ratios": RATIOS[prefix], "sampling": SAMPLING} | said
    facts |= {"scheduler": dict(scheduler.config)}
    config = dict(parts[name].config) | facts
    found[name] = Part(parts[name].params, config)
  return found


def _check_whole(folder: pathlib.Path, found: Mapping[str, Part], ours: bool) -> None:
  """Names what a pixel decoder's folder lacks, before anything is drawn with it."""
  missing = [name for name in ("unet", "vae", "scheduler") if name not in found]
  pooled = "unet" in found and found["unet"].config["pooled_dim"]
  if not (pooled or ours or missing or "null_condition" in found):
    missing = [pixel_folders.NULL_FILE]  # of ours, one may start from zeros
  if missing:
    raise ValueError(
      f"expected unet, vae and scheduler (with uncond_embeddings in low resolution) in"
      f" {folder}, got a folder without {', '.join(missing)}; download the rest of it,"
      " or remove it to read and write without drawing"
    )


def prefix_of(parts: Mapping[str, Part]) -> str:
  """What precedes the names of the only pixel decoder among parts."""
  high = any(f"{HIGHRES}{name}" in parts for name in ("unet", "vae"))
  return HIGHRES if high else ""


def side_of(parts: Mapping[str, Part], prefix: str) -> int | None:
  """Pixels of a square picture's side, None where the parts do not say."""
  name = f"{prefix}condition"
  ratios = parts[name].config.get("ratios", {}) if name in parts else {}
  return ratios["1:1"][0] if "1:1" in ratios else None


def _language_parts(folder: pathlib.Path, parts: Mapping[str, Part]) -> dict[str, Part]:
  """llama and, where visual_weight is there, understanding."""
  codes = parts["codebook"].config["num_codes"]
  known = llama.text_size(folder)
  if known is None:
    rows = files.read_json(folder / "config.json").get("vocab_size", 0)
    known = int(rows) - codes - 2
  found = {"llama": _named(LANGUAGE, llama.read, folder, Vocabulary(known, codes))}
  source = files.open_either(folder, UNDERSTANDING_FILE)
  if source is not None:
    own, _ = rules.without(source, UNDERSTANDING_OPTIONAL)
    encoding = parts["visual_tokenizer"].params
    width = parts["visual_tokenizer"].config["embed_dim"]
    proj = linear.dense(width, found["llama"].config["embed_dim"])
    target = {"merger": encoding["merger"]}
    target["vit_proj"] = abstract_params(proj, shape(1, 1, width))
    params = _named(
      UNDERSTANDING_FILE, rules.import_tensors, UNDERSTANDING, own, target
    )
    found["understanding"] = Part(params, {})
  return found


def write(
  parts: Mapping[str, Part],
  folder: pathlib.Path,
  suffix: str = files.TORCH,
  dtype: str | None = None,
  decoding: Mapping[str, Any] | None = None,
) -> None:
  """Writes parts in the published layout into an existing folder.

  Args:
    parts: as `read` gives them; those that are absent are left out.
    folder: where to write.
    suffix: ".bin", which the reference reads, or ".safetensors".
    dtype: stored dtype, None for that of the parts.
    decoding: decoding defaults by task; the reference's when None.
  """
  if "whitening" in parts:
    raise ValueError(
      "expected a model on raw encoder features, got one with a whitening buffer, for"
      " which the published layout has no place; export a model trained on EVA-CLIP"
    )
  encoding, codebook = parts["visual_tokenizer"], parts["codebook"]
  params = dict(encoding.params)
  decoder = params.pop("feature_decoder")
  out = {
    f"{VISUAL}/{ENCODER_FILE}": eva.write(parts["vit"]),
    f"{VISUAL}/{TOKENIZER_FILE}": rules.export_tensors(
      QUANTIZING, params | {"codebook": codebook.params}
    ),
  }
  out |= _decoder_files(parts, decoder)
  if "understanding" in parts:
    tree = parts["understanding"].params
    out[f"{LANGUAGE}/{UNDERSTANDING_FILE}"] = rules.export_tensors(UNDERSTANDING, tree)
  for name in (VISUAL, LANGUAGE):
    (folder / name).mkdir()
  for stem, content in out.items():
    files.write_file(folder / f"{stem}{suffix}", files.stored_as(content, dtype))
  if "llama" in parts:
    llama.write(parts["llama"], folder / LANGUAGE, suffix, dtype)
  for prefix, name in PIXELS.items():
    own = pixel_parts_out(parts, prefix)
    if own:
      side = side_of(parts, prefix)
      pixel_folders.write(own, folder / name, suffix, dtype, side)
  facts = {"num_heads": encoding.config["num_heads"], "decoding": decoding or {}}
  facts["pixels"] = {prefix: _sampling(parts, prefix) for prefix in PIXELS}
  weights = (p for p in sorted(folder.rglob("*")) if files.is_file_name(p))
  facts["sums"] = {str(p.relative_to(folder)): sums.of_file(p) for p in weights}
  files.write_json(folder / SIZES_FILE, facts)


def _sampling(parts: Mapping[str, Part], prefix: str) -> dict[str, Any]:
  """How a pixel decoder samples, and its aspect ratios, as far as its part says."""
  name = f"{prefix}condition"
  config = parts[name].config if name in parts else {}
  return {fact: config[fact] for fact in ("sampling", "ratios") if fact in config}


def _decoder_files(parts: Mapping[str, Part], decoder) -> dict[str, dict[str, Tensor]]:
  """Feature decoders with their heads, by file."""
  out = {}
  if "condition" in parts and "pooled_dim" not in parts["condition"].config["head"]:
    tree = {"feature_decoder": decoder, "head": parts["condition"].params}
    out[f"{VISUAL}/{LOWRES_FILE}"] = rules.export_tensors(tables.LOWRES, tree)
  if f"{HIGHRES}condition" in parts:
    own = parts.get(f"{HIGHRES}feature_decoder")
    tree = {"feature_decoder": own.params if own else decoder}
    tree["head"] = parts[f"{HIGHRES}condition"].params
    out[f"{VISUAL}/{HIGHRES_FILE}"] = rules.export_tensors(tables.HIGHRES, tree)
  if not out:
    trunk = rules.export_tensors(tables.FEATURE_DECODER, decoder)
    out[f"{VISUAL}/{LOWRES_FILE}"] = trunk
  return out


def pixel_parts_out(parts: Mapping[str, Part], prefix: str) -> dict[str, Part]:
  """The parts of one pixel decoder, as `pixel_folders.write` takes them."""
  names = ("unet", "vae", "null_condition", "scheduler")
  own = {name: parts[prefix + name] for name in names if prefix + name in parts}
  condition = parts.get(f"{prefix}condition")
  if own and condition is not None and "scheduler" in condition.config:
    own["scheduler"] = Part({}, condition.config["scheduler"])
  return own
