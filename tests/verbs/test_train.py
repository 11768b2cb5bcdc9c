"""Mistakes in what `train` is given: one sentence each, before anything is trained."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
import toy_run

from lavit_jax.data import records
from lavit_jax.stages import stage_run
from lavit_jax.toy import prepared

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def language_config(tokenized_data, visual_tokenizer_directory):
  return lambda: toy_run.language_run(tokenized_data, visual_tokenizer_directory)


@pytest.fixture(scope="module")
def tokenizer_config(toy_data, encoder_directory):
  return lambda: toy_run.visual_tokenizer_run(toy_data, encoder_directory)


# Bad input


def refused(config, workdir, match):
  with pytest.raises(ValueError, match=match) as error:
    stage_run.run(config, str(workdir))
  assert "\n" not in str(error.value)


def test_unknown_stage(language_config, tmp_path):
  config = language_config()
  config.stage = "pretraining"
  refused(config, tmp_path, "'pretraining' is not one of .'contrastive'")


def test_image_size_no_multiple_of_the_patch(toy_data, tmp_path):
  config = toy_run.contrastive_run(toy_data)
  config.model.vit.image_size = 42
  message = "image size 42 is not a multiple of patch size 8; crop or resize"
  refused(config, tmp_path, message)


def test_mesh_that_does_not_divide_the_devices(language_config, tmp_path):
  config = language_config()
  config.mesh.update(dict(data=1, fsdp=3, tensor=1))
  refused(config, tmp_path, r"there are 8; .* choose from \[1, 2, 4, 8\] or set one")


def test_mesh_that_does_not_divide_the_batch(language_config, tmp_path):
  config = language_config()
  config.batch_size = 6
  message = r"= 4 do not divide batch_size = 6; use .* one of \[1, 2, 3, 6\], or change"
  refused(config, tmp_path, message)


def test_mesh_that_does_not_divide_the_micro_batch(language_config, tmp_path):
  config = language_config()
  config.accumulate = 2
  message = r"= 4 do not divide micro_batch = 2; use .* one of \[1, 2\], or change"
  refused(config, tmp_path, message)


def test_accumulation_that_does_not_divide_the_batch(language_config, tmp_path):
  config = language_config()
  config.accumulate = 3
  refused(config, tmp_path, "batch_size 4 is not a multiple of accumulate 3; choose")


def test_mesh_that_does_not_divide_the_heads(language_config, tmp_path):
  config = language_config()
  config.model.num_heads = config.model.num_kv_heads = 6
  config.mesh.update(dict(data=1, fsdp=2, tensor=4))
  message = r"tensor = 4 do not divide num_heads = 6; use .* \[1, 2, 3, 6\], or change"
  refused(config, tmp_path, message)


def test_mesh_that_does_not_divide_the_row(language_config, tmp_path):
  config = language_config()
  config.data.row_length = 95
  config.mesh.update(dict(data=1, fsdp=4, sequence=2, tensor=1))
  refused(config, tmp_path, r"sequence = 2 do not divide row_length = 95")


def test_checkpoint_of_another_configuration(language_run, language_config):
  config = language_config()
  config.optimizer.learning_rate = 0.5
  config.model.mlp_dim = 80
  config.log_every = 3  # may change
  message = (
    r"another configuration \(model.mlp_dim: 96 -> 80; optimizer.learning_rate: 0.003"
    r" -> 0.5\); restore those values, say --change=optimizer.learning_rate where that"
    r" is meant, or choose a new --workdir"
  )
  refused(config, language_run, message)


def test_checkpoint_over_other_frozen_parts(
  tokenizer_run, tokenizer_config, encoder_directory, tmp_path
):
  shutil.copytree(tokenizer_run, tmp_path / "run")
  config = tokenizer_config()
  folder = tmp_path / "model"
  shutil.copytree(encoder_directory, folder)
  config.init_from = str(folder)
  manifest = json.loads((folder / "manifest.json").read_text())
  manifest["parts"]["vit"]["checksum"] = "0" * 64
  (folder / "manifest.json").write_text(json.dumps(manifest))
  message = (
    "trained over frozen parts .* now holds .*'vit': '0000.* give the same model"
  )
  refused(config, tmp_path / "run", message)


def test_missing_model_directory(language_config, language_run, tmp_path):
  for folder in (tmp_path / "none", language_run):  # a run is not its model
    config = language_config()
    config.init_from = str(folder)
    message = "expected a model directory at .*, but it has no manifest.json; give the"
    refused(config, tmp_path / "run", message)


def test_model_directory_without_the_part(encoder_directory, language_config, tmp_path):
  config = language_config()
  config.init_from = str(encoder_directory)
  message = "has no part 'visual_tokenizer', only .* run the stage that trains it first"
  refused(config, tmp_path, message)


@pytest.mark.parametrize("how", ["missing", "cut"])
def test_half_copied_model_directory(
  how, visual_tokenizer_directory, language_config, tmp_path
):
  folder = tmp_path / "model"
  shutil.copytree(visual_tokenizer_directory, folder)
  file = folder / "vit-00000.safetensors"
  data = file.read_bytes()
  file.unlink()
  if how == "cut":
    file.write_bytes(data[: len(data) // 2])
  config = language_config()
  config.init_from = str(folder)
  message = {
    "missing": "expected the file .*vit-00000.safetensors, found none; copy the",
    "cut": "expected a whole safetensors file .*vit-00000.safetensors, got .* copy it",
  }
  refused(config, tmp_path / "run", f"{message[how]}.* again")


def test_missing_unfinished_and_empty_data(tokenizer_config, tmp_path):
  config = tokenizer_config()
  config.data.train = str(tmp_path / "none")
  message = "expected a finished folder with manifest.json, got no such folder at"
  refused(config, tmp_path / "run", message)
  (tmp_path / "none").mkdir()
  refused(config, tmp_path / "run", "got an unfinished folder at .*; run python -m")
  records.write_shards([], tmp_path / "empty", "toy", 4)
  config.data.train = str(tmp_path / "empty")
  refused(config, tmp_path / "run", "expected records in .*, got an empty set; add")


def test_data_without_pictures(tokenizer_config, tmp_path):
  texts = [{"task": "text", "turns": [["", "words"]]}]
  record = {"id": "a", "image": b"", "texts": texts}
  records.write_shards([record], tmp_path / "texts", "toy", 4)
  config = tokenizer_config()
  config.data.train = str(tmp_path / "texts")
  refused(config, tmp_path / "run", "expected records with pictures, got none in")


def test_data_without_codes(language_config, tmp_path):
  config = language_config()
  folder = tmp_path / "data"
  records.write_shards(prepared.toy_records("train", 8), folder, "toy", 8)
  config.data.train = str(folder)
  message = "expected a finished folder .*data/codes; run python -m lavit_jax.tokenize"
  refused(config, tmp_path / "run", message)


def test_codes_of_another_visual_tokenizer(
  encoder_directory, toy_data, language_config, tmp_path
):
  folder = tmp_path / "model"
  words = toy_data / "text_tokenizer"
  toy_run.write_visual_tokenizer(folder, encoder_directory, words, seed=9)
  config = language_config()
  config.init_from = str(folder)
  message = (
    "expected a sidecar of the visual tokenizer .* run python -m lavit_jax.tokeni"
  )
  refused(config, tmp_path / "run", message)


def test_codes_of_another_text_tokenizer(language_config, tmp_path):
  from lavit_jax.data import text

  text.train_text_tokenizer(["other words"] * 3, 300, tmp_path / "words")
  config = language_config()
  config.data.text_tokenizer = str(tmp_path / "words")
  message = (
    "expected a sidecar of the text tokenizer .* run python -m lavit_jax.tokenize"
  )
  refused(config, tmp_path / "run", message)


def test_captions_longer_than_a_row(language_config, tmp_path):
  config = language_config()
  config.data.row_length = 20
  config.mesh.update(dict(data=1, fsdp=4, tensor=2))
  message = (
    r"expected caption documents of at most 20 tokens, got \d+ in record .* set a"
    r" longer row or skip them"
  )
  refused(config, tmp_path, message)


def test_source_of_the_mixture_that_the_data_lacks(language_config, tmp_path):
  config = language_config()
  config.data.mixture = dict(captions=1.0)
  refused(config, tmp_path, "expected shares of tokens for .* name only these sources")


def test_misspelt_field_on_the_command_line(tmp_path):
  command = [sys.executable, "-m", "lavit_jax.train", f"--workdir={tmp_path}"]
  command += ["--config=configs/pretrain.py:tiny", "--config.optimizer.warmup_step=3"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 1 and "Traceback" not in done.stderr
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith("error: the config has no field 'warmup_step'")
  assert 'Did you mean "warmup_steps"' in last


def test_user_error_on_the_command_line_is_one_line(tmp_path):
  command = [sys.executable, "-m", "lavit_jax.train", f"--workdir={tmp_path}"]
  command += ["--config=configs/visual_tokenizer.py:tiny", "--config.init_from=nowhere"]
  command += ["--config.data.train=nowhere", "--config.data.eval=nowhere"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 1 and "Traceback" not in done.stderr
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith("error: expected a model directory at nowhere")
