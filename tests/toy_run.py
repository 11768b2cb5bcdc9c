"""Tiny models, data and configs, with which the stages themselves run in the tests."""

import contextlib
import functools
import os
import pathlib
import shutil
from collections.abc import Iterator

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.compilation_cache import compilation_cache

from configs import contrastive as contrastive_config
from configs import pretrain as pretrain_config
from configs import visual_tokenizer as visual_tokenizer_config
from lavit_jax import prepare, train
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.data import documents, rows
from lavit_jax.models import vit
from lavit_jax.models.visual_tokenizer import VisualTokenizer
from lavit_jax.models.whitening import Whitening
from lavit_jax.stages import base, pretrain
from lavit_jax.weights import model_directory

# Eight heads and widths of their own, so that every mesh divides them and an array's
# shape tells what it is.
VIT = dict(
  image_size=40,
  patch_size=8,
  embed_dim=32,
  num_layers=2,
  num_heads=8,
  head_dim=4,
  mlp_dim=48,
  clip_dim=8,
)
TOKENIZER = dict(
  embed_dim=32,
  num_layers=2,
  num_heads=8,
  head_dim=4,
  mlp_dim=48,
  num_patches=25,
  code_dim=8,
  num_codes=24,
  selector_input="raw",
)
LLAMA = dict(
  embed_dim=64,
  num_layers=2,
  num_heads=8,
  num_kv_heads=8,
  head_dim=8,
  mlp_dim=96,
  rope_base=10000.0,
  norm_eps=1e-5,
)
SIZE, PATCHES, WIDTH = 40, 25, 32
WORDS = Vocabulary(text_size=40, num_codes=24)


# Models


def tower() -> vit.VisionTransformer:
  return vit.VisionTransformer(**VIT, dtype="float32")


def visual_tokenizer() -> VisualTokenizer:
  return VisualTokenizer(**TOKENIZER, dtype="float32")


def whitening() -> Whitening:
  rng = np.random.default_rng(5)
  mean = rng.normal(size=WIDTH, scale=0.1).astype(np.float32)
  matrix = np.eye(WIDTH) + rng.normal(size=(WIDTH, WIDTH), scale=0.1)
  return Whitening(mean=mean, matrix=matrix.astype(np.float32))


@functools.cache
def frozen() -> dict:
  """Encoder and whitening as the stages hold them."""
  images = jnp.zeros((1, SIZE, SIZE, 3))
  return {"vit": golden_data.random_params(tower(), images), "whitening": whitening()}


@functools.cache
def visual_tokenizer_params() -> dict:
  inputs = jnp.zeros((1, PATCHES, WIDTH))
  return golden_data.random_params(visual_tokenizer(), inputs, inputs[..., 0] == 0)


def language_config(**changes):
  """The stage-2 config of the tiny variant around the tiniest sizes."""
  config = pretrain_config.get_config("tiny")
  config.update(dict(num_steps=6, batch_size=4, unroll=1, eval_batches=1))
  config.model = LLAMA
  config.optimizer.warmup_steps = 2
  config.update(changes)
  return config


def language_model(config=None, words: Vocabulary = WORDS):
  return pretrain.make_model(config or language_config(), words, TOKENIZER)


@functools.cache
def language_params() -> dict:
  """Random parameters of LLaMA, stage-2 merger and projection."""
  model = language_model()
  boxed = jax.eval_shape(pretrain.init_function(model, PATCHES), jax.random.key(0))
  tree = base.train_state.linear.split_boxes(boxed["params"])[0]
  return random_tree(tree, 3)


def random_tree(abstract, seed: int, std: float = 0.2):
  """Normal values in a tree of shapes, norm scales around 1."""
  rng = np.random.default_rng(seed)

  def fill(path, leaf):
    noise = rng.normal(size=leaf.shape, scale=std).astype(np.float32)
    return noise + (path[-1].key == "scale")

  return jax.tree_util.tree_map_with_path(fill, abstract)


def recorder() -> optax.GradientTransformation:
  """An "optimizer" that moves nothing and keeps the gradient as its state."""

  def update(grads, state, params=None):
    del state, params
    return jax.tree.map(jnp.zeros_like, grads), grads

  return optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params), update
  )


# Batches


def pictures(count: int, seed: int = 0) -> np.ndarray:
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, SIZE, SIZE, 3)).astype(np.uint8)


def random_document(rng, kind: int, words: Vocabulary = WORDS) -> rows.Document:
  """A document of a kind with a few codes and one turn of text."""
  keep = rng.permutation(np.arange(PATCHES) < rng.integers(3, 6))
  ids = lambda n: rng.integers(3, words.text_size, n).astype(np.int32)
  prompt = ids(2) if kind == documents.IMAGE_TEXT else ids(0)
  codes = rng.integers(0, words.num_codes, keep.sum()).astype(np.int32)
  image = pictures(1, rng.integers(99))[0] if kind == documents.IMAGE_TEXT else None
  whole = rows.Document(kind, [(prompt, ids(4))], codes, keep, image, 0, 0)
  length = len(rows.spell(whole, words)[0])
  return rows.Document(kind, whole.turns, codes, keep, image, 0, length)


def row_of(chosen: list[rows.Document], length: int, slots: int, words=WORDS) -> dict:
  return rows.interleave(chosen, length, slots, SIZE, PATCHES, words)


def packed_batch(count: int, length: int = 56, slots: int = 2, seed: int = 0) -> dict:
  """Rows that hold every kind of document, as numpy arrays."""
  rng = np.random.default_rng(seed)
  kinds = (
    documents.IMAGE_TEXT,
    documents.TEXT_IMAGE,
    documents.UNCONDITIONAL,
    documents.IMAGE_TEXT,
    documents.TEXT,
  )
  made = [
    row_of([random_document(rng, kind) for kind in kinds], length, slots)
    for _ in range(count)
  ]
  return {name: np.stack([row[name] for row in made]) for name in made[0]}


# Folders


def prepare_data(folder: pathlib.Path, train: int = 64, test: int = 32) -> None:
  """Prepared toy records and their text tokenizer."""
  prepare.prepare_toy(str(folder), train, test)


def write_encoder(folder: pathlib.Path) -> None:
  """A model directory as stage 0 leaves it: encoder and whitening."""
  white = {"mean": whitening().mean, "matrix": whitening().matrix}
  parts = {
    "vit": model_directory.Part(frozen()["vit"], VIT),
    "whitening": model_directory.Part(white, {"embed_dim": WIDTH}),
  }
  model_directory.save(folder, parts)


def write_visual_tokenizer(folder: pathlib.Path, encoder, text_tokenizer, seed=0):
  """A model directory as stage 1 leaves it."""
  rng = np.random.default_rng(seed)
  shape = (TOKENIZER["num_codes"], TOKENIZER["code_dim"])
  table = rng.normal(size=shape).astype(np.float32)
  table /= np.linalg.norm(table, axis=1, keepdims=True)
  sizes = dict(num_codes=shape[0], code_dim=shape[1])
  parts = {
    "visual_tokenizer": model_directory.Part(visual_tokenizer_params(), TOKENIZER),
    "codebook": model_directory.Part({"embedding": table}, sizes),
  }
  model_directory.save(folder, parts, base=encoder, text_tokenizer=text_tokenizer)


def contrastive_run(data: pathlib.Path):
  """The config of stage 0 on the prepared toy data."""
  config = contrastive_config.get_config("tiny")
  config.model.vit = VIT
  config.data.update(_folders(data))
  return config


def visual_tokenizer_run(data: pathlib.Path, encoder: pathlib.Path):
  """The config of stage 1: six steps, the codebook arrives after four."""
  config = visual_tokenizer_config.get_config("tiny")
  config.update(
    dict(
      init_from=str(encoder),
      num_steps=6,
      phase_a_steps=4,
      batch_size=8,
      unroll=1,
      kmeans_per_code=2,
      checkpoint_every=3,
      eval_batches=1,
      mesh=dict(data=1, fsdp=-1),
    )
  )
  config.model = TOKENIZER
  config.optimizer.warmup_steps = 2
  config.data.update({k: v for k, v in _folders(data).items() if k in config.data})
  return config


def language_run(data: pathlib.Path, model: pathlib.Path):
  """The config of stage 2 on tokenized toy data: six steps."""
  config = language_config(init_from=str(model), checkpoint_every=3)
  config.mesh.update(dict(data=2, fsdp=2, sequence=1, tensor=2))
  config.data.update(_folders(data))
  config.data.update(dict(row_length=96, plan_rows=24, eval_rows=4))
  return config


# Runs


@contextlib.contextmanager
def own_compiled_programs() -> Iterator[None]:
  """Runs keep their compiled programs in their own directories, as a user's do."""
  shared = os.environ.pop("JAX_COMPILATION_CACHE_DIR")
  try:
    yield
  finally:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = shared
    jax.config.update("jax_compilation_cache_dir", shared)
    compilation_cache.reset_cache()


def train_on_its_own(config, folder: pathlib.Path) -> None:
  """A run that keeps its compiled programs; other tests read copies of them."""
  with own_compiled_programs():
    train.run(config, str(folder))
  shared = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
  for path in (folder / "compiled").glob("*-cache"):
    if not (shared / path.name).exists():
      shutil.copy(path, shared / path.name)


def _folders(data: pathlib.Path) -> dict[str, str]:
  names = dict(train="train", eval="test", text_tokenizer="text_tokenizer")
  return {field: str(data / name) for field, name in names.items()}
