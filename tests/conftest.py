"""Every test runs on the CPU as eight devices, with full float32 products."""

import os
import pathlib
import sys

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
_FLAG = "--xla_force_host_platform_device_count"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=8".strip()
# The config files are no package of the project; commands find them from its root.
TESTS = pathlib.Path(__file__).parent
sys.path.insert(0, str(TESTS.parent))
# Tests of one room lend their helpers to others.
sys.path += sorted({str(path.parent) for path in TESTS.glob("*/test_*.py")})

import jax  # noqa: E402  (the environment must be set before jax starts)

jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory):
  """Prepared toy records: train, test, novel and the text tokenizer."""
  import toy_run

  folder = tmp_path_factory.mktemp("toy_data")
  toy_run.prepare_data(folder)
  return folder


@pytest.fixture(scope="session")
def encoder_directory(tmp_path_factory):
  """A model directory with a random encoder and a whitening buffer."""
  import toy_run

  folder = tmp_path_factory.mktemp("encoder") / "model"
  toy_run.write_encoder(folder)
  return folder


@pytest.fixture(scope="session")
def visual_tokenizer_directory(tmp_path_factory, encoder_directory, toy_data):
  """A model directory with a random visual tokenizer, as stage 1 leaves it."""
  import toy_run

  folder = tmp_path_factory.mktemp("visual_tokenizer") / "model"
  words = toy_data / "text_tokenizer"
  toy_run.write_visual_tokenizer(folder, encoder_directory, words)
  return folder


@pytest.fixture(scope="session")
def tokenized_data(toy_data, visual_tokenizer_directory):
  """The toy data with codes beside the training and held-out records."""
  from lavit_jax import tokenize

  for split in ("train", "test"):
    tokenize.run(str(visual_tokenizer_directory), str(toy_data / split), 16)
  return toy_data
