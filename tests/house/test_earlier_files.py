"""Files that an earlier commit wrote still load: a checkpoint and a model directory.

`fixtures/run_of_edfe16e.tar.xz` is a run of stage 2 at the sizes of `toy_run`, of two
steps: config.json, its last checkpoint and its model.
"""

import pathlib
import tarfile

import jax
import numpy as np
import pytest
import toy_run

from lavit_jax import LaVIT
from lavit_jax.core import sharding
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.models import lavit
from lavit_jax.training import base, checkpoint, checkpoint_files, optimizer
from lavit_jax.weights import model_directory

ARCHIVE = pathlib.Path(__file__).parents[1] / "fixtures/run_of_edfe16e.tar.xz"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("earlier")
  with tarfile.open(ARCHIVE) as archive:
    archive.extractall(folder, filter="data")
  return folder


def test_a_model_directory_gives_the_codes_that_it_gave(run):
  model = LaVIT.load(run / "model", dtype="float32")
  picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
  found = model.tokenize([picture])[0]
  assert found["codes"].tolist() == [9, 1, 1, 19, 1, 1, 19, 7, 10, 9]
  kept = [0, 5, 11, 12, 13, 17, 19, 20, 21, 23]
  assert np.flatnonzero(found["keep"]).tolist() == kept
  assert isinstance(model.caption([picture])[0], str)


def test_a_checkpoint_holds_what_the_model_directory_of_its_run_holds(run):
  config, sizes = toy_run.language_config(), model_directory.part_config
  words = Vocabulary(
    sizes(run / "model", "llama")["text_size"],
    sizes(run / "model", "visual_tokenizer")["num_codes"],
  )
  init = lavit.init_function(toy_run.language_model(config, words), toy_run.PATCHES)
  tx = optimizer.make(config.optimizer, config.num_steps)
  mesh = sharding.make_mesh({"fsdp": -1})
  abstract, shardings, _ = base.born_sharded(init, tx, mesh)
  saved = checkpoint.Checkpoints(str(run), checkpoint_files.Keep(2, 0, 0, "", "lowest"))
  assert saved.newest() == 2
  state = saved.restore(2, abstract, shardings)
  assert int(state.step) == 2 and saved.meta(2)["position"] == 8
  understood = {name: abstract.params[name] for name in ("merger", "vit_proj")}
  for name, tree in (
    ("llama", abstract.params["llama"]),
    ("understanding", understood),
  ):
    held = state.params["llama"] if name == "llama" else state.params
    stored = model_directory.load(run / "model", name, tree, sharding.replicated(mesh))
    jax.tree.map(
      lambda one, other: np.testing.assert_array_equal(one, other),
      stored,
      {key: held[key] for key in stored},
    )
