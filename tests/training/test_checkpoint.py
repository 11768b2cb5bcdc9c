"""Checkpoints: whole or not at all, checked, kept by policy, restored onto any mesh."""

import json
import pathlib
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs import common
from lavit_jax.core import sharding
from lavit_jax.training import checkpoint
from lavit_jax.training import checkpoint_files as files

KEEP_ALL = files.Keep(last=9)


def mesh_of(**sizes):
  return sharding.make_mesh(sizes)


def state_at(step: int, mesh=None, axis=("fsdp",)):
  """A state with one sharded, one bfloat16 and one scalar leaf."""
  mesh = mesh or mesh_of(fsdp=8)
  spread = jax.sharding.NamedSharding(mesh, P(axis))
  whole = sharding.replicated(mesh)
  values = np.arange(64, dtype=np.float32).reshape(16, 4) + step
  return {
    "kernel": jax.device_put(values, spread),
    "half": jax.device_put(jnp.asarray(values, jnp.bfloat16), whole),
    "step": jax.device_put(np.int32(step), whole),
  }


def meta_at(step: int, **figures):
  return {"position": 8 * step, "config": {"seed": 0}, "figures": figures}


def written(folder, steps=(1, 2, 3), keep=KEEP_ALL):
  saved = checkpoint.Checkpoints(str(folder), keep)
  for step in steps:
    saved.save(step, state_at(step), meta_at(step, loss=abs(step - 4.0)))
  saved.close()
  return pathlib.Path(folder) / "checkpoints"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  written(folder)
  return folder


def opened(folder):
  return checkpoint.Checkpoints(str(folder), KEEP_ALL)


def abstract_of(state):
  return jax.eval_shape(lambda: state), jax.tree.map(lambda x: x.sharding, state)


def largest(folder: pathlib.Path) -> pathlib.Path:
  """A file of a checkpoint that holds arrays."""
  found = list((folder / "state").glob("**/d/*"))
  return max(found, key=lambda path: path.stat().st_size)


# Restoring


@pytest.mark.parametrize("sizes", [dict(fsdp=8), dict(data=2, tensor=4)], ids=str)
def test_a_state_comes_back_on_another_mesh(whole, sizes):
  target = state_at(0, mesh_of(**sizes), axis=tuple(sizes))
  found = opened(whole).restore(3, *abstract_of(target))
  for name, leaf in state_at(3).items():
    np.testing.assert_array_equal(found[name], leaf)
    assert found[name].dtype == leaf.dtype
    assert found[name].sharding == target[name].sharding


def test_what_stands_beside_the_state(whole):
  meta = opened(whole).meta(2)
  assert meta == {"position": 16, "config": {"seed": 0}, "figures": {"loss": 2.0}}


def test_saving_does_not_hold_the_state_back(tmp_path):
  """The next step donates the arrays that are being written."""
  saved, state = opened(tmp_path), {"a": jnp.zeros((4, 1 << 18))}
  step = jax.jit(lambda s: {"a": s["a"] + 1}, donate_argnums=0)
  for number in range(3):
    saved.save(number, state, {})
    for _ in range(4):
      state = step(state)
  saved.wait()
  target = abstract_of(state)
  for number in range(3):
    assert float(saved.restore(number, *target)["a"].mean()) == 4.0 * number
  saved.close()


# Damage


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


DAMAGE = {
  "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
  "emptied": lambda path: path.write_bytes(b""),
  "bit flipped": flip,
  "deleted": lambda path: path.unlink(),
}
PLACES = {
  "arrays": largest,
  "position and config": lambda folder: folder / "meta/metadata",
  "checksums": lambda folder: folder / files.CHECKSUMS,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_newest_checkpoint_falls_back(whole, tmp_path, caplog, how, place):
  shutil.copytree(whole, tmp_path / "run")
  DAMAGE[how](PLACES[place](tmp_path / "run/checkpoints/3"))
  with caplog.at_level("ERROR"):
    assert opened(tmp_path / "run").newest() == 2
  gone = (how, place) == ("deleted", "checksums")
  assert ("UNFINISHED" if gone else "DAMAGED") in caplog.text


def test_the_file_without_a_checksum_is_not_needed(whole, tmp_path):
  shutil.copytree(whole, tmp_path / "run")
  (tmp_path / "run/checkpoints/3/_CHECKPOINT_METADATA").write_bytes(b"")
  found = opened(tmp_path / "run").restore(3, *abstract_of(state_at(0)))
  np.testing.assert_array_equal(found["kernel"], state_at(3)["kernel"])


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_checkpoints_alone_are_refused(whole, tmp_path, how):
  shutil.copytree(whole, tmp_path / "run")
  for step in (1, 2, 3):
    DAMAGE[how](largest(tmp_path / "run/checkpoints" / str(step)))
  message = "expected a whole checkpoint in .*, got damaged ones only .*copy them again"
  with pytest.raises(ValueError, match=message) as error:
    opened(tmp_path / "run").newest()
  assert "\n" not in str(error.value)


def test_each_host_checks_its_share(whole):
  folder = opened(whole).folder / "3"
  count = len(json.loads((folder / files.CHECKSUMS).read_text()))
  assert count > 5 and not files.damage(folder, 1, 3)


def test_no_checkpoint_is_no_error(tmp_path):
  assert opened(tmp_path).newest() is None


def test_a_state_of_another_shape_is_one_sentence(whole):
  state = state_at(0) | {"kernel": jnp.zeros((16, 5))}
  with pytest.raises(ValueError, match="expected the state of this code and con") as e:
    opened(whole).restore(3, *abstract_of(state))
  assert "\n" not in str(e.value)


# Failing to write


def test_a_folder_removed_during_a_save_is_told_at_the_next_step(tmp_path, monkeypatch):
  folder = written(tmp_path, steps=(1,))
  saved = opened(tmp_path)
  seal = files.write_checksums

  def removed(path):
    shutil.rmtree(path)
    seal(path)

  monkeypatch.setattr(files, "write_checksums", removed)
  saved.save(2, state_at(2), meta_at(2))
  with pytest.raises(
    ValueError, match="checkpoint of step 2 .* whole one is of step 1"
  ):
    saved.wait()
  saved.check()  # told once
  assert opened(tmp_path).newest() == 1
  assert not list(folder.glob("*tmp*"))


def test_a_removed_run_directory_is_one_sentence(tmp_path):
  saved = opened(tmp_path / "run")
  saved.save(1, state_at(1), meta_at(1))
  saved.wait()
  shutil.rmtree(tmp_path / "run")
  (tmp_path / "run").write_text("in the way")
  with pytest.raises(
    ValueError, match="write the checkpoint of step 2 .* there is none"
  ):
    saved.save(2, state_at(2), meta_at(2))
    saved.wait()


@pytest.fixture
def small_disk(tmp_path):
  """A file system of four megabytes."""
  folder = tmp_path / "disk"
  folder.mkdir()
  command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
  if subprocess.run(command, capture_output=True).returncode:
    pytest.skip("mounting a small file system needs root")
  yield folder
  subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_at_the_next_step(small_disk):
  state = lambda size: {"a": jax.random.normal(jax.random.key(0), (size,))}
  saved = opened(small_disk)
  saved.save(1, state(1 << 17), {})
  saved.wait()
  reason = "(No space left|RESOURCE_EXHAUSTED)"
  message = f"of step 2 .*{reason}.* newest whole one is of step 1: make"
  with pytest.raises(ValueError, match=message) as error:
    saved.save(2, state(1 << 21), {})
    while True:
      saved.check()  # as the loop does at every step
  assert "\n" not in str(error.value)
  assert opened(small_disk).newest() == 1


# Keeping


def test_which_checkpoints_stay():
  losses = {10: 5.0, 20: 1.0, 30: 2.0, 50: 4.0}
  steps = [10, 20, 30, 40, 50, 60]
  kept = lambda **fields: sorted(files.kept(steps, losses, files.Keep(**fields)))
  assert kept(last=2) == [50, 60]
  assert kept(last=1, every=30) == [30, 60]
  assert kept(last=1, best=2, metric="loss") == [20, 30, 60]
  assert kept(last=1, best=1, metric="loss", order="highest") == [10, 60]


def test_the_policy_deletes_what_it_does_not_keep(tmp_path):
  keep = files.Keep(last=1, best=1, metric="loss")
  folder = written(tmp_path, steps=(1, 4, 5, 6), keep=keep)
  assert sorted(path.name for path in folder.iterdir()) == ["4", "6"]


def test_the_last_step_can_be_the_best(tmp_path):
  """Its figures are known only after its checkpoint has been written."""
  keep = files.Keep(last=1, best=1, metric="loss")
  folder = written(tmp_path, steps=(3, 6), keep=keep)
  saved = checkpoint.Checkpoints(str(tmp_path), keep)
  saved.save(7, state_at(7), meta_at(7))
  saved.note(7, {"loss": 0.5})
  saved.save(8, state_at(8), meta_at(8, loss=9.0))
  saved.close()
  found = sorted(path.name for path in folder.iterdir() if path.is_dir())
  assert found == ["7", "8"]


def test_a_figure_that_is_no_number_is_never_the_best():
  losses = {1: float("nan"), 2: 3.0, 3: 4.0}
  assert files.kept([1, 2, 3], losses, files.Keep(1, 0, 1, "loss")) == {2, 3}


@pytest.mark.parametrize(
  ("fields", "problem"),
  [
    (dict(eval_every=300), r"got 500 and 300; set --config.eval_every=500$"),
    (dict(eval_every=0), r"got 500 and 0; set"),
    (dict(checkpoint_every=0), r"got 0 and 500; .* --config.checkpoint_every=500$"),
    (dict(metric="train/accuracy"), r"'train/loss' or .* got 'train/accuracy'"),
  ],
  ids=str,
)
def test_best_checkpoints_without_figures_are_refused_at_the_start(fields, problem):
  config = common.base("pretrain", keep=dict(best=1, metric="eval/loss_text"))
  files.check_best(config)
  config.update(dict(eval_every=1000))
  files.check_best(config)  # every evaluation has its checkpoint
  config.update(dict(eval_every=500))
  config.keep.metric = fields.pop("metric", config.keep.metric)
  config.update(fields)
  with pytest.raises(ValueError, match=problem):
    files.check_best(config)


def test_remains_of_a_killed_run_are_cleared(tmp_path):
  folder = written(tmp_path, steps=(1, 2))
  shutil.copytree(folder / "2", folder / f"3{files.TEMPORARY}-1")
  (folder / "1" / files.CHECKSUMS).unlink()
  assert opened(tmp_path).newest() == 2
  assert not list(folder.glob("*tmp*"))


def test_figures_of_steps_gone_back_from_are_dropped(tmp_path):
  folder = written(tmp_path)
  files.write_late_figures(folder, {str(step): {"a": 1.0} for step in (1, 2, 3)})
  opened(tmp_path).go_back(1)
  assert files.late_figures(folder) == {"1": {"a": 1.0}}


@pytest.mark.parametrize(
  "fields", [dict(last=0), dict(order="best"), dict(best=1)], ids=str
)
def test_a_wrong_policy_is_refused(fields):
  with pytest.raises(ValueError, match="expected .*keep"):
    files.Keep(**fields)
