"""The GPU folder beside our own program: layers, codes, ids, conditions, pictures."""

import importlib
import os
import pathlib
import subprocess
import sys

import golden_data
import jax
import numpy as np
import published
import pytest
from PIL import Image

from lavit_jax import LaVIT
from lavit_jax.data.text import QUESTION
from lavit_jax.generate import engine, pixels, prompts
from lavit_jax.generate.beam import Beams
from lavit_jax.inference import gpu_folder, gpu_parity, pixel_parts, tokenizing
from lavit_jax.weights import exchange, files, model_directory

pytestmark = pytest.mark.judge
ATOL = 2e-5
TRUST = dict(trust_remote_code=True, local_files_only=True)
DRAWING = dict(max_new=12, min_new=3, guidance=3.0, temperature=0.7, top_k=9, top_p=0.8)
DECODING = {
  "caption": dict(beams=1, max_new=8, min_new=2),
  "answer": dict(beams=5, max_new=6, min_new=2),
  "draw": DRAWING,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """A model directory of the golden vision parts, and its GPU folder."""
  root = tmp_path_factory.mktemp("gpu")
  published.write_whole_lavit(root / "published", ".safetensors")
  whole = golden_data.load("tokenizer_e2e.npz")[0]
  keys = [k for k in whole if k.startswith(("causal_encoder.", "vit_proj."))]
  file = root / "published/language_model/visual_weight.safetensors"
  published.write_file(file, {key: whole[key] for key in keys})
  exchange.import_model("lavit", root / "published", root / "plain")
  model_directory.save(root / "model", {}, base=root / "plain", decoding=DECODING)
  os.environ["HF_MODULES_CACHE"] = str(root / "modules")
  gpu_folder.export(root / "model", root / "out")
  return root / "model", root / "out"


@pytest.fixture(scope="module")
def theirs(folders):
  import transformers

  model = transformers.AutoModelForImageTextToText.from_pretrained(folders[1], **TRUST)
  return model.eval(), transformers.AutoProcessor.from_pretrained(folders[1], **TRUST)


@pytest.fixture(scope="module")
def ours(folders):
  return LaVIT.load(folders[0], batch_size=4)


def tensor(array):
  import torch

  return torch.from_numpy(np.ascontiguousarray(array))


def pictures(count: int) -> list[np.ndarray]:
  rng = np.random.default_rng(3)
  return [rng.integers(0, 256, (40 + i, 60, 3)).astype(np.uint8) for i in range(count)]


def test_golden_tokenizer(theirs):
  arrays = golden_data.load("tokenizer_e2e.npz")[2]
  model, keep = theirs[0], arrays["keep"] > 0
  given = tensor(arrays["image"]), tensor(arrays["gumbel_noise"])
  codes, kept = model.tokenize(*given)
  np.testing.assert_array_equal(kept.numpy(), keep)
  ids = np.concatenate([own.numpy() for own in codes])
  np.testing.assert_array_equal(ids + 32002, arrays["llm_ids"])
  vectors = np.concatenate([own.numpy() for own in model.picture_vectors(*given)])
  np.testing.assert_allclose(vectors, arrays["continuous"], atol=ATOL, rtol=1e-4)


def load_pixels(folder):
  import diffusers

  pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, **TRUST)
  pipeline.set_progress_bar_config(disable=True)
  return pipeline


@pytest.fixture(scope="module")
def painters(folders):
  return {
    "highres": load_pixels(folders[1] / "pixels"),
    "lowres": load_pixels(folders[1] / "pixels_lowres"),
  }


@pytest.mark.parametrize("name", ["lowres", "highres"])
def test_golden_decoder(painters, name):
  import torch

  arrays, part = (
    golden_data.load(f"decoder_{name}.npz")[2],
    painters[name].feature_decoder,
  )
  counts = arrays["c0/token_nums"]
  rows = np.split(arrays["c0/x"], np.cumsum(counts)[:-1])
  table = part.quantize["embedding"]
  before = table.weight
  table.weight = torch.nn.Parameter(tensor(arrays["c0/x"]))  # codes are its rows
  places = np.split(np.arange(counts.sum()), np.cumsum(counts)[:-1])
  with torch.no_grad():
    features = part([tensor(own) for own in places])
    context, more = part.condition(features)
  table.weight = before
  assert len(rows) == len(features)
  close = lambda a, b: np.testing.assert_allclose(a.numpy(), b, atol=ATOL, rtol=1e-4)
  if name == "lowres":
    close(context, arrays["c0/out"])
  else:
    close(features, arrays["c0/rec_features"])
    close(context, arrays["c0/prompt_embeds"])
    close(more["pooled"], arrays["c0/pooled"])


def replies(ours, images, texts, how):
  keep = [found["keep"] for found in ours.tokenize(images)]
  words, encode = ours.language.vocabulary, ours.language.tokenizer.encode
  requests = [
    engine.Request(prompts.understanding(k, encode(t) if t else [], words), how)
    for k, t in zip(keep, texts)
  ]
  from lavit_jax.inference import pictures as squashed

  shown = squashed.stack(images, ours.image_size), np.array(keep)
  return [found[0].ids.tolist() for found in ours.replies(requests, shown)]


def cut(ids) -> list[list[int]]:
  """New ids without the end and what follows it."""
  rows = ids.tolist()
  return [row[: row.index(2)] if 2 in row else row for row in rows]


def test_codes_masks_and_greedy_captions_are_ours(ours, theirs):
  model, processor = theirs
  images = pictures(6)
  inputs = processor(images=images)
  codes, keep = model.tokenize(inputs["pixel_values"], inputs["selection_noise"])
  mine = ours.tokenize(images)
  for own, found, kept in zip(mine, codes, keep):
    np.testing.assert_array_equal(kept.numpy(), own["keep"])
    np.testing.assert_array_equal(found.numpy(), own["codes"])
  assert len({len(own) for own in codes}) > 1  # a batch of different lengths
  expected = replies(ours, images, [""] * 6, ours.how("caption"))
  assert cut(model.caption(**inputs)) == expected
  alone = processor(images=images[:1])
  assert cut(model.caption(**alone)) == expected[:1]
  cached = model.generate(**alone, max_new_tokens=4, do_sample=False)
  plain = model.generate(**alone, max_new_tokens=4, do_sample=False, use_cache=False)
  assert cached.tolist() == plain.tolist()


def test_answers_by_five_beams_are_ours(ours, theirs):
  model, processor = theirs
  images, words = pictures(4), [chr(0x4E00 + i) for i in range(3, 60)]
  questions = ["".join(words[i : 9 * i + 3]) for i in range(4)]
  how = ours.how("answer")
  how = Beams(how.settings, how.count, how.length_penalty, True, 0, today=True)
  texts = [QUESTION.format(question) for question in questions]
  expected = replies(ours, images, texts, how)
  found = model.answer(**processor(questions, images, question=True))
  assert cut(found) == expected


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_guided_drawings_with_given_noise_are_ours(ours, theirs, temperature):
  from lavit_jax.generate import tasks

  model, processor = theirs
  texts = [chr(0x4E10) * i + chr(0x4E20) for i in range(5)]
  given = {} if temperature else {"temperature": 0.0}
  if temperature:
    expected = ours.draw_codes(texts, seed=5)
  else:
    expected = ours.draw_codes(texts, how=ours.how("draw", **given))
  ids = [ours.language.tokenizer.encode(text) for text in texts]
  keys = tasks.drawing_keys(5, [[*own] for own in ids], 1)[:, 0]
  count = engine.bucket(DRAWING["top_k"], engine.LEAST_CANDIDATES)

  def noise(key, step):
    key = jax.random.fold_in(jax.random.wrap_key_data(key), step)
    return jax.random.gumbel(key, (count,))

  grid = [[noise(key, step) for step in range(DRAWING["max_new"])] for key in keys]
  inputs = processor(texts, drawing=True)
  found = model.draw_codes(**inputs, noise=tensor(np.array(grid)), **given)
  assert [own.tolist() for own in found] == [own.tolist() for own in expected]


@pytest.mark.parametrize("name, prefix", [("lowres", ""), ("highres", "highres_")])
def test_pictures_are_ours(ours, folders, painters, name, prefix):
  decoder = pixel_parts.load(str(folders[0]), ours.mesh, "float32", prefix)
  coder = pixel_parts.coder_of(ours.coder, decoder)
  codes = [np.array([3, 1, 4, 1, 5]), np.array([9])]
  packed = tokenizing.pack_codes(codes, coder.model.num_patches, coder.model.num_codes)
  features = tokenizing.decode_codes(coder, *packed)
  keys, params = jax.random.split(jax.random.key(1), 2), decoder.params
  row = (decoder.head, params["head"], None, features, keys, (8, 8, 4))
  condition, start = pixel_parts._prepare(*row)
  if prefix:
    condition = condition.replace(time_ids=pixels.time_ids((16, 16), 2))
  row = (decoder.schedule, condition, params["null"], start, decoder.settings)
  latents = pixels.sample(decoder.unet, params["unet"], *row)
  expected = pixels.decode(decoder.autoencoder, params["autoencoder"], latents)
  noise = np.stack([jax.random.normal(key, (8, 8, 4)) for key in keys])
  found = painters[name](
    [tensor(own) for own in codes],
    height=16,
    width=16,
    latents=tensor(noise.transpose(0, 3, 1, 2)),
    output_type="np",
  ).images
  assert np.abs(found - np.asarray(expected) / 255).max() <= 1e-3 + 0.5 / 255


def test_language_alone_continues_the_mark_with_codes(folders):
  import transformers

  folder = folders[1] / "language"
  words = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
  inputs = words("[IMG]", add_special_tokens=False, return_tensors="pt")
  start = words.convert_tokens_to_ids("[IMG]")
  assert inputs.input_ids.tolist() == [[start]]
  own = transformers.GenerationConfig.from_pretrained(folder, "draw.json")
  own.guidance_scale = None
  new = model.generate(inputs.input_ids, own)[0, 1:].tolist()
  assert len(new) >= 4 and all(i > start for i in new)
  assert words.convert_ids_to_tokens(start + 2) == "<code_0>"


def test_verify_goes_layer_by_layer(folders):
  certificate = gpu_parity.verify(*folders)
  names = {record["layer"] for record in certificate["layers"]}
  assert {"encoder/block 1", "merger/block 0", "language/output"} <= names
  assert {"highres_unet/0", "vae/1", "feature decoder/output"} <= names
  assert files.read_json(folders[1] / "parity.json") == certificate


@pytest.mark.parametrize("damage", ["missing", "extra", "pixels"])
def test_a_missing_or_extra_tensor_does_not_load(folders, tmp_path, damage):
  import shutil

  import transformers

  shutil.copytree(folders[1], tmp_path / "out")
  path = tmp_path / "out/visual.safetensors"
  if damage == "pixels":
    path = tmp_path / "out/pixels/feature_decoder/diffusion_pytorch_model.safetensors"
  state = {key: np.asarray(t) for key, t in files.open_file(path).items()}
  index = files.read_json(tmp_path / "out/model.safetensors.index.json")
  if damage == "extra":
    state["visual.more"] = np.ones(3, np.float32)
    index["weight_map"]["visual.more"] = "visual.safetensors"
  else:
    gone = next(key for key in state if key.endswith("fc1.bias"))
    del state[gone]
    index["weight_map"].pop(gone, None)
  files.write_json(tmp_path / "out/model.safetensors.index.json", index)
  published.write_file(path, state)
  with pytest.raises(ValueError, match="expected every tensor"):
    if damage == "pixels":
      load_pixels(tmp_path / "out/pixels")
    transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "out", **TRUST)


def test_bfloat16_keeps_what_codes_depend_on(folders, tmp_path):
  import torch
  import transformers

  gpu_folder.export(folders[0], tmp_path / "out", "bfloat16")
  model = transformers.AutoModelForImageTextToText.from_pretrained(
    tmp_path / "out", **TRUST
  )
  assert model.visual.vit_proj.weight.dtype == torch.bfloat16
  assert model.visual.token_predictor.out_conv[0].weight.dtype == torch.float32
  assert model.visual.quantize["embedding"].weight.dtype == torch.float32
  processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out", **TRUST)
  assert len(model.caption(**processor(images=pictures(2)))) == 2


def test_the_demo_runs_without_this_package(folders, tmp_path):
  Image.fromarray(pictures(1)[0]).save(tmp_path / "a.png")
  assert importlib.util.find_spec("lavit_jax")
  root = pathlib.Path(__file__).parents[2]
  lines = (
    "import runpy, sys\n"
    f"sys.path = [p for p in sys.path if p not in ('', {str(root)!r})]\n"
    "sys.modules['lavit_jax'] = None\n"
    f"sys.argv = ['demo.py', {str(tmp_path / 'a.png')!r}, {chr(0x4E05)!r}]\n"
    f"runpy.run_path({str(folders[1] / 'demo.py')!r}, run_name='__main__')\n"
  )
  clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
  config = folders[1] / "pixels/feature_decoder/config.json"
  before = config.read_text()
  config.write_text(before.replace("1024", "16"))  # pictures of 16 pixels
  done = subprocess.run(
    [sys.executable, "-c", lines],
    cwd=tmp_path,
    env=clean,
    capture_output=True,
    text=True,
  )
  config.write_text(before)
  assert done.returncode == 0, done.stderr[-2000:]
  assert "caption:" in done.stdout and (tmp_path / "drawing.png").is_file()


def test_golden_language(theirs):
  """The exported class with the golden language model: its guided and plain ids."""
  import torch

  state, dims, arrays = golden_data.load("llm.npz")
  model, text = theirs[0], dims["text"]
  decoding = {
    "draw": dict(max_new=12, min_new=5, guidance=3.0, temperature=0.0)
    | dict(top_k=0, top_p=1.0),
  }
  config = type(model.config)(
    **dict(vocab_size=text + 2 + dims["K"], hidden_size=dims["d"], text_size=text),
    **dict(intermediate_size=dims["ff"], num_hidden_layers=dims["L"]),
    **dict(num_attention_heads=dims["H"], rms_norm_eps=dims["eps"]),
    vision=model.config.vision,
    decoding=decoding,
  )
  own = type(model)(config).eval()
  missing, extra = own.load_state_dict({k: tensor(v) for k, v in state.items()}, False)
  assert not extra and all(key.startswith("visual.") for key in missing)
  mask = tensor(arrays["attention_mask"])
  with torch.no_grad():
    out = own(
      inputs_embeds=tensor(arrays["inputs_embeds"]),
      attention_mask=mask,
      position_ids=tensor(arrays["position_ids"]),
    ).logits
  used = arrays["attention_mask"] > 0
  np.testing.assert_allclose(out.numpy()[used], arrays["logits"][used], atol=ATOL)
  given = {"guidance": 3.0}, {"guidance": 1.5}
  for how, name in zip(given, ("t2i_greedy_ids", "t2i_greedy_ids_scale15")):
    prompts_of = (tensor(arrays["t2i_prompt_ids"]), tensor(arrays["t2i_prompt_mask"]))
    found = own.draw_codes(*prompts_of, **how)
    for row, codes in zip(arrays[name][:, 1:], found):
      ended = np.flatnonzero(row == text + 1)
      row = row[: ended[0]] if len(ended) else row
      # The reference may choose ids that are no codes and drops them later; we do not
      # choose them, so rows agree up to the first of them.
      until = np.flatnonzero(row < text + 2)
      until = until[0] if len(until) else max(len(row), len(codes))
      assert codes[:until].tolist() == (row[:until] - text - 2).tolist()
