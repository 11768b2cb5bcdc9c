"""What the GPU folder says of a model, without PyTorch."""

import json

import numpy as np
import published
import pytest

from lavit_jax.data import text, text_files
from lavit_jax.diffusion import schedule
from lavit_jax.generate import decoding
from lavit_jax.inference import gpu_folder, gpu_parity, gpu_pixels
from lavit_jax.models import patch_latents
from lavit_jax.weights import exchange, files, parity, text_export


def test_a_fast_tokenizer_knows_marks_and_codes_and_encodes_as_before(tmp_path):
  import tokenizers

  before = text.train_text_tokenizer(["a red circle", "two dogs"], 300, tmp_path / "in")
  (tmp_path / "out").mkdir()
  text_export.write(tmp_path / "in", tmp_path / "out", before.text_size, 5)
  made = tokenizers.Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
  size = before.text_size
  assert made.get_vocab_size() == size + 2 + 5
  names = ["[IMG]", "[/IMG]", "<code_0>", "<code_4>"]
  assert [made.token_to_id(name) for name in names] == [
    size,
    size + 1,
    size + 2,
    size + 6,
  ]
  assert made.encode("[IMG]<code_4>").ids == [size, size + 6]
  made.encode_special_tokens = True  # a mark in a text is mere characters
  for probe in (*text_files.PROBES, "a red [IMG] circle", "<code_1>"):
    assert made.encode(probe, add_special_tokens=False).ids == before.encode(probe)
  with pytest.raises(ValueError, match="expected a text tokenizer of 9 ids"):
    text_export.write(tmp_path / "in", tmp_path / "out", 9, 5)


def test_generation_configs_say_what_a_task_may_choose():
  own = decoding.complete({}, 256)
  made = lambda task: gpu_folder.generation_config(task, own[task], 10, 16)
  caption, answer, draw = map(made, ("caption", "answer", "draw"))
  assert caption["suppress_tokens"] == answer["suppress_tokens"] == [*range(10, 16)]
  assert (caption["num_beams"], answer["num_beams"]) == (2, 5)
  assert answer["early_stopping"] and not caption["early_stopping"]
  assert draw["suppress_tokens"] == [*range(11)] and draw["eos_token_id"] == 11
  assert draw["do_sample"] and draw["guidance_scale"] == 4.0
  greedy = gpu_folder.generation_config(
    "draw", own["draw"] | {"temperature": 0}, 10, 16
  )
  assert not greedy["do_sample"]


@pytest.mark.parametrize("solver, spacing", [("ddim", "leading"), ("dpm", "linspace")])
def test_the_scheduler_is_the_models_own_with_its_silent_defaults(solver, spacing):
  silent = {k: v for k, v in published.SCHEDULER.items() if k != "timestep_spacing"}
  made = gpu_pixels.scheduler_config(silent | {"skip_prk_steps": True}, solver)
  assert made["timestep_spacing"] == spacing and "skip_prk_steps" not in made
  assert made["beta_end"] == silent["beta_end"]
  kept = gpu_pixels.scheduler_config(schedule.STABLE_DIFFUSION, solver)
  assert kept["timestep_spacing"] == "leading"


def test_the_patch_transform_becomes_a_transposed_convolution():
  module = patch_latents.PatchLatents(**patch_latents.VARIANTS["tiny"])
  latents = np.random.default_rng(0).normal(size=(2, 3, 4, module.latent_channels))
  expected = module.apply({}, latents, method="decode")
  kernel = gpu_pixels.patch_kernel(module)
  found = np.einsum("bhwc,cxpq->bhpwqx", latents, kernel)
  found = found.reshape(expected.shape)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_folder_is_written_whole_and_needs_a_model_that_reads(tmp_path):
  published.write_whole_lavit(tmp_path / "in", ".safetensors")
  gpu_folder.export(tmp_path / "in", tmp_path / "out")
  index = files.read_json(tmp_path / "out/model.safetensors.index.json")
  places = index["weight_map"]
  assert places["lm_head.weight"] == "language/model.safetensors"
  assert places["visual.understanding.norm.bias"] == "visual.safetensors"
  for name in set(places.values()):
    held = {key for key, place in places.items() if place == name}
    assert held == set(files.open_file(tmp_path / "out" / name))
  for name in ("pixels", "pixels_lowres"):
    assert (tmp_path / "out" / name / "feature_decoder/blocks_lavit.py").is_file()
  card = (tmp_path / "out/README.md").read_text()
  assert "| language |" in card and "bfloat16" in card
  config = json.loads((tmp_path / "out/config.json").read_text())
  assert config["vision"]["num_patches"] == 16 and config["text_size"] == 70
  exchange.import_model("llama", tmp_path / "in/language_model", tmp_path / "model")
  with pytest.raises(ValueError, match="expected a model that reads and draws"):
    gpu_folder.export(tmp_path / "model", tmp_path / "other")


def test_nothing_is_verified_without_pytorch(tmp_path, monkeypatch, capsys):
  from lavit_jax import convert

  monkeypatch.setattr(parity, "has", lambda *packages: False)
  with pytest.raises(ValueError, match="expected torch, transformers, diffusers"):
    gpu_parity.verify(tmp_path, tmp_path)
  given = dict(source="a", target="b", num_heads=2, base=None, format=None, dtype=None)
  flags = type("Flags", (), {"FLAGS": type("Given", (), given)})
  monkeypatch.setattr(convert, "flags", flags)
  monkeypatch.setattr(exchange, "verify", lambda *arguments: {"torch": False})
  convert.main(["convert", "verify", "llama"])
  said = capsys.readouterr().out
  assert "NOT compared with PyTorch" in said and "verified" not in said
  monkeypatch.setattr(exchange, "verify", lambda *arguments: {"torch": True})
  convert.main(["convert", "verify", "llama"])
  assert capsys.readouterr().out == "verified b\n"
