"""Paths as a shell user expects them, and one sentence for what a user can mend."""

import errno
import os

import pytest
from absl import flags

from lavit_jax.core import command_line


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  names = ["a.png", "b.png", "c[1].png", "d, e.png", "photos/in/x.JPG", "photos/y.txt"]
  for name in [*names, *(f"s-{i:03d}.png" for i in range(3)), "home/h.png"]:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  return tmp_path


@pytest.mark.parametrize(
  "given, found",
  [
    (["a.png,b.png"], ["a.png", "b.png"]),
    (["a.png, b.png"], ["a.png", "b.png"]),
    (["a.png", "a.png"], ["a.png"]),
    (["[ab].png"], ["a.png", "b.png"]),
    (["c[1].png"], ["c[1].png"]),
    (["d, e.png,a.png"], ["d, e.png", "a.png"]),
    (["s-{000..002}.png"], ["s-000.png", "s-001.png", "s-002.png"]),
    (["{a,b}.png,s-00?.png"], ["a.png", "b.png", *(f"s-00{i}.png" for i in range(3))]),
    (["photos"], ["photos/in/x.JPG"]),
    (["photos/**/*.JPG"], ["photos/in/x.JPG"]),
  ],
)
def test_what_a_shell_user_writes_is_found(folder, given, found):
  assert command_line.expand(given, (".png", ".jpg")) == found


def test_home_is_written_out(folder):
  assert command_line.expand(["~/h.png"]) == [f"{folder}/home/h.png"]
  config = {"init_from": "~/model", "data": {"train": "~/train"}, "steps": 3}
  command_line.home_in(config)
  home = f"{folder}/home"
  assert config["init_from"] == f"{home}/model" and config["steps"] == 3
  assert config["data"] == {"train": f"{home}/train"}
  values = flags.FlagValues()
  command_line.define_path("workdir", None, "A folder.", flag_values=values)
  values(["program", "--workdir=~/run"])
  assert values.workdir == f"{home}/run"


def test_what_is_missing_is_named(folder):
  for given in ("none.png", "none-*.png", "none"):
    with pytest.raises(ValueError, match="found none; give a file"):
      command_line.expand([given])
  with pytest.raises(ValueError, match="expected files at s-003.png, found none"):
    command_line.expand(["s-{002..003}.png"])


def wrapped(inner: Exception) -> Exception:
  """An error of a library, raised from another one."""
  outer = RuntimeError("write failed")
  outer.__cause__ = inner
  return outer


@pytest.mark.parametrize(
  "error, said",
  [
    (ValueError("expected a, got b"), "expected a, got b"),
    (OSError(errno.ENOSPC, "No space left", "out"), "the disk of out is full"),
    (wrapped(OSError(errno.ENOSPC, "No space left", "out")), "the disk of out is full"),
    (FileExistsError(errno.EEXIST, "File exists", "data/codes"), "found a file; move"),
    (NotADirectoryError(errno.ENOTDIR, "", "data/codes"), "a folder at data/codes"),
    (ImportError("Please install gcsfs to access"), "pip install gcsfs"),
    (PermissionError(errno.EACCES, "", "x"), "no right to read or write x"),
  ],
)
def test_mistakes_of_users_end_in_a_sentence(error, said):
  with pytest.raises(SystemExit, match=said):
    with command_line.in_sentences():
      raise error


def test_faults_of_the_program_keep_their_traceback():
  with pytest.raises(KeyError):
    with command_line.in_sentences():
      raise KeyError("x")


def test_an_interrupted_run_says_how_it_goes_on(capsys):
  with pytest.raises(SystemExit) as stopped:
    with command_line.in_sentences():
      raise KeyboardInterrupt
  assert stopped.value.code == 130
  assert capsys.readouterr().err.strip() == command_line.STOPPED


def test_a_bucket_without_its_package_is_named(monkeypatch):
  from etils import epath

  monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
  with pytest.raises(SystemExit, match="pip install gcsfs"):
    with command_line.in_sentences():
      epath.Path("gs://bucket/folder").exists()


def test_a_file_where_a_folder_should_be(tmp_path):
  (tmp_path / "codes").touch()
  with pytest.raises(SystemExit, match=f"expected a folder at {tmp_path}"):
    with command_line.in_sentences():
      os.makedirs(tmp_path / "codes" / "part")
