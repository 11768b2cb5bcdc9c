"""A run directory in a bucket, which a file system in memory plays."""

import json

import fsspec
import jax.numpy as jnp
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from configs import common
from lavit_jax.stages import stage_run
from lavit_jax.training import checkpoint_files as files
from lavit_jax.training import metrics


class Bucket(MemoryFileSystem):
  """Takes the options that epath gives to a bucket's file system."""

  protocol = "gcs"
  store: dict = {}
  pseudo_dirs = [""]

  @classmethod
  def _strip_protocol(cls, path):
    return MemoryFileSystem._strip_protocol(str(path).removeprefix("gs://"))


@pytest.fixture
def bucket():
  """The folder gs://bucket/run."""
  fsspec.register_implementation("gcs", Bucket, clobber=True)
  epath.backend.fsspec_backend._get_filesystem.cache_clear()
  yield epath.Path("gs://bucket/run")
  epath.backend.fsspec_backend._get_filesystem.cache_clear()


def test_metrics_grow_over_resumptions(bucket):
  config = common.base("toy")
  for step in (1, 2):
    writer = metrics.Writer(str(bucket), config)
    writer.write(step, "train", {"loss": 0.5})
    writer.close()
  lines = (bucket / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_checksums_and_their_damage(bucket):
  folder = bucket / "checkpoints/7"
  (folder / "state").mkdir(parents=True)
  (folder / "state/a").write_bytes(b"123")
  assert files.steps(bucket / "checkpoints") == []
  assert files.writing(bucket / "checkpoints", 7) == folder
  files.write_checksums(folder)
  assert files.steps(bucket / "checkpoints") == [7]
  assert files.damage(folder) == []
  (folder / "state/a").write_bytes(b"124")
  assert files.damage(folder) == ["state/a differs from its checksum"]
  files.set_aside(folder)
  assert files.steps(bucket / "checkpoints") == []


def test_the_model_directory_is_copied(bucket):
  class Stage:
    def finish(self, state, folder):
      made = epath.Path(folder)
      (made / "text_tokenizer").mkdir(parents=True)
      (made / "manifest.json").write_text("{}")
      (made / "text_tokenizer/tokenizer.json").write_text(str(state.sum()))

  stage_run._finish(Stage(), jnp.ones(3), bucket / "model")
  assert (bucket / "model/manifest.json").read_text() == "{}"
  assert (bucket / "model/text_tokenizer/tokenizer.json").read_text() == "3.0"
