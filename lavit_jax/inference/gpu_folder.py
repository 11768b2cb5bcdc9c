"""The GPU folder: a model directory as torch, transformers and diffusers read it.

    DIR/            LaVIT by AutoModelForImageTextToText, with trust_remote_code
    DIR/language/   the same language model as a plain LlamaForCausalLM, its tokenizer
    DIR/pixels/     codes to pictures by DiffusionPipeline (gpu_pixels)

The language weights lie in language/ alone: the index of DIR points there. The PyTorch
files of `lavit_jax/gpu` are copied; this program imports none of them.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.generate import decoding
from lavit_jax.inference import gpu_card, gpu_pixels
from lavit_jax.models.whitening import Whitening
from lavit_jax.weights import eva, files, llama, model_directory, rules, text_export
from lavit_jax.weights import visual_tokenizer as tables
from lavit_jax.weights.part import Part
from lavit_jax.weights.tensors import Tensor

CODE = pathlib.Path(__file__).parents[1] / "gpu"
LANGUAGE, VISUAL_FILE = "language", "visual.safetensors"
INDEX = "model.safetensors.index.json"
NEEDED = ("vit", "visual_tokenizer", "codebook", "llama", "understanding")
UNUSED = ("visual.encoder.norm.*", "visual.encoder.head.*")  # LaVIT never reads them
# Codes depend on these, which stay float32 whatever the rest is stored as.
EXACT = ("visual.token_predictor.", "visual.quantize.", "visual.whitening_")


def export(
  source: str | os.PathLike, target: str | os.PathLike, dtype: str | None = None
) -> None:
  """Writes the folder.

  Args:
    source: model directory, or LaVIT's published one.
    target: new folder.
    dtype: stored dtype, None for that of the source.

  Raises:
    ValueError: the model lacks a part, or the target exists.
  """
  target = files.check_new(target)
  present = model_directory.read_manifest(source)["parts"]
  if missing := [name for name in NEEDED if name not in present]:
    raise ValueError(
      f"expected a model that reads and draws at {source}, got one without"
      f" {', '.join(missing)}; train configs/pretrain.py first"
    )
  parts = {name: model_directory.read_part(source, name) for name in present}
  with files.appearing(target) as folder:
    _write_language(source, parts, folder, dtype)
    visual = files.stored_as(visual_tensors(parts), dtype)
    visual |= {k: t for k, t in visual_tensors(parts).items() if k.startswith(EXACT)}
    files.write_file(folder / VISUAL_FILE, visual)
    files.write_json(folder / INDEX, _index(folder, visual))
    files.write_json(folder / "config.json", _config(source, parts, folder))
    files.write_json(folder / "processor_config.json", _processor(parts))
    for path in sorted(CODE.glob("*.py")):
      shutil.copyfile(path, folder / path.name)
    gpu_pixels.write(parts, folder, dtype)
    (folder / "README.md").write_text(gpu_card.text(source, parts))


def visual_tensors(parts: Mapping[str, Part]) -> dict[str, Tensor]:
  """Tensors by their names in the PyTorch model, converted when they are read."""
  table = [
    *rules.prefixed(eva.ENCODER, "visual.encoder.", "vit/"),
    *rules.prefixed(tables.SELECTOR, "visual.token_predictor.", "tokenizer/selector/"),
    *rules.prefixed(tables.MERGER, "visual.causal_encoder.", "tokenizer/merger/"),
    *rules.prefixed(tables.QUANTIZER, "visual.", "tokenizer/"),
    *rules.prefixed(tables.MERGER, "visual.understanding.", "understanding/merger/"),
    *rules.prefixed(tables.VIT_PROJ, "visual.", "understanding/"),
    rules.Rule("visual.whitening_mean", "whitening/mean"),
    rules.Rule("visual.whitening_matrix", "whitening/matrix"),
  ]
  tokenizer = dict(parts["visual_tokenizer"].params)
  del tokenizer["feature_decoder"]  # of pixels/
  tree = {
    "vit": parts["vit"].params,
    "tokenizer": tokenizer | {"codebook": parts["codebook"].params},
    "understanding": parts["understanding"].params,
  }
  if "whitening" in parts:
    tree["whitening"] = parts["whitening"].params
    assert set(tree["whitening"]) == set(Whitening.__dataclass_fields__)
  return rules.without(rules.export_tensors(table, tree), UNUSED)[0]


def text_size_of(parts: Mapping[str, Part]) -> int:
  """T of the joint vocabulary."""
  return parts["llama"].config["text_size"]


def decoding_of(source, parts: Mapping[str, Part]) -> dict[str, dict[str, Any]]:
  """The decoding defaults of every task."""
  said = model_directory.decoding_of(source)
  return decoding.complete(said, parts["visual_tokenizer"].config["num_patches"])


def _write_language(source, parts, folder: pathlib.Path, dtype: str | None) -> None:
  """language/: weights, configs by task and the tokenizer of the joint vocabulary."""
  inside, size = folder / LANGUAGE, text_size_of(parts)
  inside.mkdir()
  llama.write(parts["llama"], inside, files.SAFETENSORS, dtype)
  words = model_directory.text_tokenizer_folder(source)
  if words is None:
    raise ValueError(
      f"expected the text tokenizer of the language model in {source}, found none; copy"
      f" it to {source}/{model_directory.TEXT_TOKENIZER}"
    )
  codes = parts["codebook"].config["num_codes"]
  text_export.write(words, inside, size, codes)
  for task, own in decoding_of(source, parts).items():
    fields = parts["llama"].config
    marks = {name: fields[name] for name in ("begin", "end", "pad") if name in fields}
    config = generation_config(task, own, size, fields["vocab_size"], **marks)
    files.write_json(inside / f"{task}.json", config)


def generation_config(
  task: str,
  own: Mapping[str, Any],
  text_size: int,
  vocab_size: int,
  begin: int = Vocabulary.begin,
  end: int = Vocabulary.end,
  pad: int = Vocabulary.pad,
) -> dict[str, Any]:
  """transformers' generation config of a task; what it may not say is suppressed."""
  drawing = task == "draw"
  closed = range(text_size + 1) if drawing else range(text_size, vocab_size)
  config = {
    "bos_token_id": begin,
    "eos_token_id": text_size + 1 if drawing else end,
    "pad_token_id": pad,
    "max_new_tokens": own["max_new"],
    "min_new_tokens": own["min_new"],
    "suppress_tokens": list(closed),
  }
  if not drawing:
    beams = {"num_beams": own["beams"], "length_penalty": own["length_penalty"]}
    return config | beams | {
      "early_stopping": task == "answer",
      "repetition_penalty": own["repetition_penalty"],
      "do_sample": False,
    }  # fmt: skip
  sampled = {name: own[name] for name in ("temperature", "top_k", "top_p")}
  sampled = (
    sampled | {"do_sample": True} if own["temperature"] else {"do_sample": False}
  )
  return config | sampled | {"guidance_scale": own["guidance"]}


def _index(folder: pathlib.Path, visual: Mapping[str, Tensor]) -> dict[str, Any]:
  """Which file below the folder holds each tensor."""
  places = dict.fromkeys(visual, VISUAL_FILE)
  for path in sorted((folder / LANGUAGE).glob("*.safetensors")):
    keys = files.open_file(path)
    places |= dict.fromkeys(keys, f"{LANGUAGE}/{path.name}")
  total = sum(tensor.nbytes for tensor in visual.values())
  total += sum(p.stat().st_size for p in (folder / LANGUAGE).glob("*.safetensors"))
  return {"metadata": {"total_size": total}, "weight_map": places}


def _config(source, parts: Mapping[str, Part], folder: pathlib.Path) -> dict[str, Any]:
  """config.json of the whole model: LLaMA's own, and the vision side."""
  config = json.loads((folder / LANGUAGE / "config.json").read_text())
  visual, vit = parts["visual_tokenizer"].config, parts["vit"].config
  sizes = {
    name: vit[name]
    for name in ("embed_dim", "image_size", "mlp_dim", "num_heads", "num_layers")
  }
  sizes |= {
    "patch_size": vit["patch_size"],
    "num_patches": visual["num_patches"],
    "merger_layers": visual["num_layers"],
    "merger_heads": visual["num_heads"],
    "merger_mlp_dim": visual["mlp_dim"],
    "code_dim": visual["code_dim"],
    "num_codes": visual["num_codes"],
    "selector_input": visual.get("selector_input", "whitened"),
    "whitening": "whitening" in parts,
  }
  return config | {
    "model_type": "lavit",
    "architectures": ["LavitForConditionalGeneration"],
    "auto_map": {
      "AutoConfig": "configuration_lavit.LavitConfig",
      "AutoModelForImageTextToText": "modeling_lavit.LavitForConditionalGeneration",
    },
    "text_size": text_size_of(parts),
    "vision": sizes,
    "decoding": decoding_of(source, parts),
  }


def _processor(parts: Mapping[str, Part]) -> dict[str, Any]:
  return {
    "auto_map": {"AutoProcessor": "processing_lavit.LavitProcessor"},
    "processor_class": "LavitProcessor",
    "image_size": parts["vit"].config["image_size"],
    "num_patches": parts["visual_tokenizer"].config["num_patches"],
  }
