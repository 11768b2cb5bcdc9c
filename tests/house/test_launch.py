"""The pod scripts print the exact commands; every script is clean for shellcheck."""

import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PLACE = ["--zone=us-east5-a", "--project=mine"]
TRAIN = ["--", "--config=configs/pretrain.py:7b", "--workdir=gs://bucket/run"]
TAIL = "--zone=us-east5-a --project=mine"


def call(script, *arguments):
  command = ["bash", str(ROOT / "launch/pod" / script), *arguments]
  return subprocess.run(command, capture_output=True, text=True, timeout=60)


def printed(script, *arguments):
  done = call(script, "--dry_run", *PLACE, *arguments)
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()


def test_scripts_are_clean():
  scripts = [*ROOT.glob("launch/**/*.sh"), ROOT / ".ci/run"]
  command = ["shellcheck", "--external-sources", *map(str, scripts)]
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
  assert len(scripts) > 9 and done.returncode == 0, done.stdout


# A Python of one version that makes environments of itself and installs nothing.
PYTHON = """#!/usr/bin/env bash
case "$*" in
  -c*) echo VERSION ;;
  *"-m venv"*)
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    printf '#!/usr/bin/env bash\\n' >"$3/bin/ruff"
    printf '#!/usr/bin/env bash\\necho "$0 $*"\\n' >"$3/bin/pytest"
    chmod +x "$3"/bin/*
    ;;
  *"-m pip"*) echo "pip of VERSION in $(dirname "$0")" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
  """A repository with nothing but what the test command reads."""
  folder = tmp_path / "checkout"
  (folder / "launch").mkdir(parents=True)
  for name in ("launch/environment.sh", "launch/test.sh"):
    shutil.copy(ROOT / name, folder / name)
  for name in ("requirements.txt", "pyproject.toml"):
    shutil.copy(ROOT / name, folder / name)
  for version in ("3.11", "3.12"):
    python = tmp_path / "bin" / f"python{version}"
    python.parent.mkdir(exist_ok=True)
    python.write_text(PYTHON.replace("VERSION", version))
    python.chmod(0o755)
  shutil.copy(tmp_path / "bin/python3.11", tmp_path / "bin/python3")
  return folder


def run_tests(checkout, **environment):
  path = f"{checkout.parent / 'bin'}:/usr/bin:/bin"
  return subprocess.run(
    ["bash", str(checkout / "launch/test.sh"), "-k", "golden"],
    env={"PATH": path} | environment,
    capture_output=True,
    text=True,
    timeout=60,
  )


def tested(checkout, **environment):
  """What the test command prints: pip's lines, and which pytest it ran."""
  done = run_tests(checkout, **environment)
  assert done.returncode == 0, done.stderr
  return done.stdout.replace(f"{checkout}/", "").splitlines()


RAN = "/bin/pytest --numprocesses=2 --dist=loadfile -k golden"


def test_each_version_of_python_has_an_environment(checkout):
  assert tested(checkout) == ["pip of 3.11 in .venv/bin", f".venv{RAN}"]
  other = {"PYTHON": "python3.12"}
  made = ["pip of 3.12 in .venv-3.12/bin", f".venv-3.12{RAN}"]
  assert tested(checkout, **other) == made
  assert tested(checkout, **other) == made[1:]
  assert tested(checkout) == [f".venv{RAN}"]
  assert tested(checkout, PYTHON="python3.11") == [f".venv{RAN}"]


def test_the_first_environment_is_the_plain_one(checkout):
  made = ["pip of 3.12 in .venv/bin", f".venv{RAN}"]
  assert tested(checkout, PYTHON="python3.12") == made
  assert tested(checkout) == made[1:]


def test_a_python_that_is_not_there_is_refused(checkout):
  tested(checkout)
  done = run_tests(checkout, PYTHON="python3.99")
  assert done.returncode != 0 and not done.stdout
  assert done.stderr.endswith("among python3.99; install one or set PYTHON\n")


def test_create_asks_for_one_slice():
  assert printed("create.sh", "--pod=v5p-128") == [
    "gcloud compute tpus queued-resources create lavit --node-id=lavit"
    f" --accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5 {TAIL}"
  ]


def test_create_asks_for_spot_slices():
  asked = printed("create.sh", "--pod=v6e-256", "--slices=2", "--spot", "--name=big")
  assert asked == [
    "gcloud compute tpus queued-resources create big --node-count=2 --node-prefix=big"
    f" --accelerator-type=v6e-256 --runtime-version=v2-alpha-tpuv6e {TAIL} --spot"
  ]


def test_run_gives_every_slice_the_same_command():
  lines = printed("run.sh", "--slices=2", *TRAIN, "--config.mesh.fsdp=32")
  inside = (
    "cd lavit_jax && . launch/environment.sh && enter_environment tpu && python -m"
    " lavit_jax.train --config=configs/pretrain.py:7b --workdir=gs://bucket/run"
    " --config.mesh.fsdp=32"
  )
  assert lines == [
    f"gcloud compute tpus tpu-vm ssh lavit-{slice} --worker=all {TAIL}"
    f" '--command={inside}'"
    for slice in range(2)
  ]


def test_setup_copies_what_is_committed():
  lines = printed("setup.sh")
  assert lines[1].startswith("git archive --format=tar.gz")
  assert lines[2].endswith(f"lavit:lavit_jax.tar.gz --worker=all {TAIL}")
  assert "enter_environment tpu" in lines[3] and len(lines) == 4


def test_watch_creates_trains_and_starts_again():
  lines = printed("watch.sh", "--pod=v5p-128", "--spot", *TRAIN)
  verbs = [line.split(" ")[:5] for line in lines]
  states = [line for line in lines if line.startswith("# when")]
  assert [line.split()[-1] for line in states] == ["NONE", "ACTIVE", "SUSPENDED"]
  assert ["gcloud", "compute", "tpus", "queued-resources", "create"] in verbs
  assert ["gcloud", "compute", "tpus", "queued-resources", "delete"] in verbs
  assert lines[-1] == "gcloud storage ls gs://bucket/run/model/manifest.json"


def test_delete_gives_all_slices_back():
  (line,) = printed("delete.sh", "--name=big")
  expected = f"gcloud compute tpus queued-resources delete big {TAIL} --force --quiet"
  assert line == expected


def test_kubernetes_runs_the_same_command():
  (line,) = printed("gke.sh", "--pod=v5p-128", "--slices=2", *TRAIN)
  assert line.startswith("xpk workload create --cluster=lavit --workload=lavit")
  assert "--num-slices=2" in line and "lavit_jax.train --config=configs/" in line


@pytest.mark.parametrize(
  "script, arguments, message",
  [
    ("create.sh", PLACE, "expected --pod, e.g. --pod=v5p-128, got none"),
    ("create.sh", ["--pod=v5p-8"], "expected --zone and --project, got zone ''"),
    ("create.sh", [*PLACE, "--pod=a100-8"], "expected --pod as v4-N, v5litepod-N"),
    ("run.sh", PLACE, "expected the arguments of train after --, got none"),
    ("run.sh", ["--nodes=2"], "got --nodes=2; see launch/pod/common.sh"),
    ("setup.sh", [*PLACE, "--slices=0"], "--slices as a whole number from 1, got '0'"),
    (
      "watch.sh",
      [*PLACE, "--pod=v4-8", "--", "--workdir=runs/a"],
      "gs://BUCKET/FOLDER",
    ),
  ],
)
def test_mistakes_end_in_one_sentence(script, arguments, message):
  done = call(script, "--dry_run", *arguments)
  assert done.returncode != 0 and message in done.stderr
  assert done.stderr.count("\n") == 1 and not done.stdout
