"""Beside PyTorch: .bin files, strict loading by transformers and diffusers, parity."""

import os
import pickle

import golden_data
import jax
import numpy as np
import published
import pytest

from lavit_jax.core import sharding
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.generate import serving
from lavit_jax.weights import exchange, files, model_directory, parity

pytestmark = pytest.mark.judge
DTYPES = ("float32", "bfloat16")
ATOL = 2e-5


def torch_llama(folder, tied: bool = False, **more):
  """A random LLaMA saved by transformers itself."""
  import torch
  import transformers

  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=tied,
    **more,
  )
  model = transformers.LlamaForCausalLM(config)
  with torch.no_grad():
    for p in model.parameters():
      p += 0.3 * torch.randn(p.shape)
  model.save_pretrained(folder)
  return model.eval()


def load_strictly(folder):
  """The model of a folder, with no key missing, unexpected or of another shape."""
  import torch
  import transformers

  model, report = transformers.LlamaForCausalLM.from_pretrained(
    folder, output_loading_info=True, dtype=torch.float32
  )
  assert not any(report[kind] for kind in report), report
  return model.eval()


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_transformers_loads_the_export_strictly_and_agrees(tmp_path, suffix):
  import torch

  model = torch_llama(tmp_path / "llama")
  exchange.import_model("llama", tmp_path / "llama", tmp_path / "model")
  exchange.export_model("llama", tmp_path / "model", tmp_path / "out", suffix)
  back = load_strictly(tmp_path / "out")
  for (key, a), (other, b) in zip(
    model.state_dict().items(), back.state_dict().items()
  ):
    assert key == other
    assert torch.equal(a, b), key
  certificate = exchange.verify("llama", tmp_path / "out", tmp_path / "model")
  assert certificate["torch"]
  assert certificate["modules"][0]["other_side"] == "torch"
  assert certificate["modules"][0]["largest_deviation"] < ATOL


def test_llama3_agrees(tmp_path):
  rope = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0)
  rope |= dict(high_freq_factor=4.0, original_max_position_embeddings=16)
  model = torch_llama(tmp_path / "llama", tied=True, rope_parameters=rope)
  model.generation_config.eos_token_id = [2, 7]
  model.save_pretrained(tmp_path / "llama")
  exchange.import_model("llama", tmp_path / "llama", tmp_path / "model")
  exchange.export_model("llama", tmp_path / "model", tmp_path / "out")
  back = load_strictly(tmp_path / "out")
  assert back.generation_config.eos_token_id == [2, 7]
  assert back.lm_head.weight is back.model.embed_tokens.weight
  record = exchange.verify("llama", tmp_path / "out", tmp_path / "model")["modules"][0]
  assert record["other_side"] == "torch"
  assert record["largest_deviation"] < ATOL * max(1, record["largest_value"])


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3"])
def test_other_families_agree_in_training_and_in_serving(tmp_path, family):
  import torch
  import transformers

  torch.manual_seed(0)
  sizes = dict(vocab_size=100, hidden_size=32, intermediate_size=48, head_dim=16)
  heads = dict(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
  if family == "Qwen2":
    del sizes["head_dim"]  # it has none of its own
  config = getattr(transformers, f"{family}Config")(**sizes, **heads)
  model = getattr(transformers, f"{family}ForCausalLM")(config)
  with torch.no_grad():
    for p in model.parameters():
      p += 0.3 * torch.randn(p.shape)
  model.eval().save_pretrained(tmp_path / "given")
  exchange.import_model("llama", tmp_path / "given", tmp_path / "model")
  exchange.export_model("llama", tmp_path / "model", tmp_path / "out")
  back, report = type(model).from_pretrained(
    tmp_path / "out", output_loading_info=True, dtype=torch.float32
  )
  assert not any(report[kind] for kind in report), report
  part = model_directory.read_part(tmp_path / "model", "llama")
  ours, params = parity.llama_module(part.config), parity.whole(part.params)
  ids = np.random.default_rng(1).integers(0, 100, (2, 9)).astype(np.int32)
  places, ones = np.arange(9)[None].repeat(2, 0).astype(np.int32), np.ones_like(ids)
  expected = back(torch.tensor(ids)).logits.detach().numpy()
  row = (ids, places, ones)
  packed = golden_data.run(ours, params, *row, method="everything")[..., :100]
  largest = max(1, np.abs(expected).max())
  np.testing.assert_allclose(packed, expected, atol=ATOL * largest)
  mesh = sharding.make_mesh({}, jax.devices()[:1])
  side = serving.prepare(ours, params, Vocabulary(90, 8), mesh)

  @golden_data.compiled
  def cached(side):
    inputs = serving.embed(ours, side.weights, ids[:, :8])
    first, cache = serving.prefill(
      ours, side.weights, inputs, ones[:, :8], places[:, :8], 1
    )
    last = (cache, ids[:, 8:], places[:, 8:], np.ones((2, 1, 9), bool), 8)
    return first, serving.extend(ours, side.weights, *last)[0][:, 0]

  for found, at in zip(cached(side), (7, 8), strict=True):
    np.testing.assert_allclose(found[:, :100], expected[:, at], atol=ATOL * largest)


@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_lavit_in_bin_comes_back_and_agrees(tmp_path, dtype):
  published.write_whole_lavit(tmp_path / "lavit", ".bin", dtype)
  exchange.import_model("lavit", tmp_path / "lavit", tmp_path / "model")
  exchange.export_model("lavit", tmp_path / "model", tmp_path / "out", ".bin")
  before, after = (published.all_weights(tmp_path / n) for n in ("lavit", "out"))
  assert before.keys() == after.keys()
  for name, state in before.items():
    published.assert_same(after[name], state)
  certificate = exchange.verify("lavit", tmp_path / "out", tmp_path / "model")
  records = {r["module"]: r for r in certificate["modules"]}
  assert len(records) == 12
  print({name: r["largest_deviation"] for name, r in records.items()})
  for name, record in records.items():
    assert record["other_side"] == "torch", name
    assert record["largest_deviation"] < ATOL * max(1, record["largest_value"]), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_bin_files_round_trip(tmp_path, dtype):
  state = published.rounded(golden_data.load("encoder.npz")[0], dtype)
  published.write_file(tmp_path / "eva.bin", state)
  exchange.import_model("eva", tmp_path / "eva.bin", tmp_path / "model", num_heads=2)
  exchange.export_model("eva", tmp_path / "model", tmp_path / "out.bin")
  published.assert_same(files.open_file(tmp_path / "out.bin"), state)


def test_bin_and_safetensors_import_alike(tmp_path):
  state = published.random_llama(100)
  config = published.llama_config(state, 4) | {"num_key_value_heads": 2}
  sums = []
  for suffix in (".bin", ".safetensors"):
    source, target = tmp_path / f"from{suffix}", tmp_path / f"to{suffix}"
    published.write_llama(source, state, config, suffix)
    exchange.import_model("llama", source, target)
    sums.append(model_directory.checksum(target, ["llama"]))
  assert sums[0] == sums[1]


class Bomb:
  """Runs a command when it is unpickled."""

  def __init__(self, mark):
    self.mark = mark

  def __reduce__(self):
    return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, how):
  import torch

  path, mark = tmp_path / "eva.bin", tmp_path / "ran"
  held = {"cls_token": torch.zeros(3), "x": Bomb(mark)}
  if how == "pickle":
    path.write_bytes(pickle.dumps(held))
  else:
    torch.save(held, path, _use_new_zipfile_serialization=how == "zip")
  with pytest.raises(ValueError, match="nothing of it was run") as error:
    exchange.import_model("eva", path, tmp_path / "model", num_heads=2)
  assert "\n" not in str(error.value)
  assert sorted(p.name for p in tmp_path.iterdir()) == ["eva.bin"]


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_truncated_bin(tmp_path, keep):
  published.write_file(tmp_path / "eva.bin", golden_data.load("encoder.npz")[0])
  data = (tmp_path / "eva.bin").read_bytes()
  size = int(keep * len(data)) if keep < 1 else keep
  (tmp_path / "eva.bin").write_bytes(data[:size])
  with pytest.raises(ValueError, match=r"expected (a whole PyTorch|only tensors)"):
    exchange.import_model("eva", tmp_path / "eva.bin", tmp_path / "model", num_heads=2)
  assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("held", [3, [1, 2], {"a": "text"}, {"a": {"b": 1}}])
def test_bin_without_tensors(tmp_path, held):
  import torch

  torch.save(held, tmp_path / "eva.bin")
  with pytest.raises(ValueError, match="^expected (a tensor|tensors)"):
    exchange.import_model("eva", tmp_path / "eva.bin", tmp_path / "model", num_heads=2)


def test_diffusers_loads_the_export_strictly(tmp_path):
  import diffusers

  published.write_pixels(tmp_path / "sd", 24, 0, ".safetensors")
  exchange.import_model("diffusion", tmp_path / "sd", tmp_path / "model")
  exchange.export_model("diffusion", tmp_path / "model", tmp_path / "out")
  for name, kind in (
    ("unet", diffusers.UNet2DConditionModel),
    ("vae", diffusers.AutoencoderKL),
  ):
    _, report = kind.from_pretrained(tmp_path / "out" / name, output_loading_info=True)
    assert not any(report[key] for key in report), report
  scheduler = diffusers.DDIMScheduler.from_pretrained(tmp_path / "out/scheduler")
  assert scheduler.config.steps_offset == 1
  records = exchange.verify("diffusion", tmp_path / "out", tmp_path / "model")[
    "modules"
  ]
  assert {r["module"] for r in records if r["other_side"] == "torch"} == {"unet", "vae"}
  assert np.max([r["largest_deviation"] for r in records]) < ATOL
