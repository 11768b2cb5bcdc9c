"""Every test runs on the CPU as eight devices, with full float32 products."""

import ctypes
import fcntl
import gc
import os
import pathlib
import shutil
import sys
import tempfile

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
_FLAG = "--xla_force_host_platform_device_count"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=8".strip()
# One folder of compiled programs for all workers and for the commands that tests start:
# what one has compiled, the others read. The first process makes it and removes it.
_made_cache = None
if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
  _made_cache = tempfile.mkdtemp(prefix="lavit_jax_compiled_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _made_cache
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")
# The config files are no package of the project; commands find them from its root.
TESTS = pathlib.Path(__file__).parent
sys.path.insert(0, str(TESTS.parent))
# Tests of one room lend their helpers to others.
sys.path += sorted({str(path.parent) for path in TESTS.glob("*/test_*.py")})

import jax  # noqa: E402  (the environment must be set before jax starts)

jax.config.update("jax_default_matmul_precision", "highest")

# The files that take longest come first, so that no worker is left with one at the end.
LONGEST = (
  "test_quickstart",
  "test_resume",
  "test_pixel_decoder_stage",
  "test_meshes",
  "test_visual_tokenizer_stage",
  "test_finetune",
  "test_pixels",
  "test_decode",
  "test_lean_steps",
  "test_unet_meshes",
  "test_pretrain",
)


def pytest_collection_modifyitems(items):
  rank = {name: place for place, name in enumerate(LONGEST)}
  items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_unconfigure(config):
  del config
  if _made_cache:
    shutil.rmtree(_made_cache, ignore_errors=True)


@pytest.fixture(autouse=True, scope="module")
def let_go_of_programs():
  """A file's programs leave memory with it; what the next one needs it reads back."""
  yield
  jax.clear_caches()
  gc.collect()
  system = ctypes.CDLL(None)
  if hasattr(system, "malloc_trim"):  # glibc keeps what compiling took for itself
    system.malloc_trim(0)


@pytest.fixture(scope="module")
def compile_fast():
  """Small programs that run once: compiling is nearly all of their time."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
  """Makes a folder for all workers: (name, make) -> the folder.

  `make(folder)` runs in the worker that asks first; the others wait for it.
  """
  root = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    root = root.parent

  def folder_of(name, make) -> pathlib.Path:
    folder, done = root / "shared" / name, root / "shared" / f"{name}.done"
    folder.parent.mkdir(exist_ok=True)
    with open(root / "shared" / f"{name}.lock", "w") as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        make(folder)
        done.touch()
    return folder

  return folder_of


@pytest.fixture(scope="session")
def toy_data(made_once):
  """Prepared toy records: train, test, novel and the text tokenizer."""
  import toy_run

  return made_once("toy_data", toy_run.prepare_data)


@pytest.fixture(scope="session")
def encoder_directory(made_once):
  """A model directory with a random encoder and a whitening buffer."""
  import toy_run

  return made_once("encoder", toy_run.write_encoder)


@pytest.fixture(scope="session")
def visual_tokenizer_directory(made_once, encoder_directory, toy_data):
  """A model directory with a random visual tokenizer, as stage 1 leaves it."""
  import toy_run

  words = toy_data / "text_tokenizer"
  write = lambda folder: toy_run.write_visual_tokenizer(
    folder, encoder_directory, words
  )
  return made_once("visual_tokenizer", write)


@pytest.fixture(scope="session")
def tokenized_data(made_once, toy_data, visual_tokenizer_directory):
  """The toy data with codes beside the training and held-out records."""
  from lavit_jax.inference import sidecars

  def make(folder):
    shutil.copytree(toy_data, folder)
    for split in ("train", "test"):
      sidecars.run(str(visual_tokenizer_directory), str(folder / split), 16)

  return made_once("tokenized", make)


@pytest.fixture(scope="session")
def language_run(made_once, tokenized_data, visual_tokenizer_directory):
  """A finished run of stage 2, its compiled programs in its own directory."""
  import toy_run

  def make(folder):
    config = toy_run.language_run(tokenized_data, visual_tokenizer_directory)
    toy_run.train_on_its_own(config, folder)

  return made_once("language_run", make)


@pytest.fixture(scope="session")
def tokenizer_run(made_once, toy_data, encoder_directory):
  """A finished run of stage 1, its compiled programs in its own directory."""
  import toy_run

  def make(folder):
    config = toy_run.visual_tokenizer_run(toy_data, encoder_directory)
    toy_run.train_on_its_own(config, folder)

  return made_once("tokenizer_run", make)
