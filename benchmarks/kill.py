"""Kills `prepare` and `tokenize` with signal 9 at random moments and checks the result.

    python benchmarks/kill.py [--verb=both|prepare|tokenize] [--kills=10] [--seed=0]

Tars of JPEGs are prepared once without interruption. Then the same command is killed at
random moments and given again, until it ends by itself; where kills are left, it
starts anew in another folder. Every finished folder must equal the uninterrupted one
byte for byte, so nothing is lost or doubled. `tokenize` then goes the same way with a
tiny model.
"""

import argparse
import hashlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

ENVIRONMENT = os.environ | {
  "JAX_PLATFORMS": "cpu",
  "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
}


def contents(folder: pathlib.Path) -> dict[str, str]:
  """Checksums of every file but the lock."""
  files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")
  return {
    str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
    for p in files
  }


def run(command: list[str], die_after: float | None = None) -> bool:
  """Runs a command; returns whether it was killed before its end."""
  process = subprocess.Popen(
    command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  if die_after is not None:
    end = time.monotonic() + die_after
    while time.monotonic() < end and process.poll() is None:
      time.sleep(0.002)
    if process.poll() is None:
      process.send_signal(signal.SIGKILL)
      process.communicate()
      return True
  _, error = process.communicate()
  if process.returncode:
    raise SystemExit(f"failed: {error[-2000:]}")
  return False


def trial(name, command, fresh, kills, chance):
  """Kills a command so often, at moments spread over its length.

  Args:
    name: what is tried, for the printed line.
    command: function of a folder: the command that works on it.
    fresh: function of a folder: makes it as it is before the command.
    kills: how often.
    chance: source of the moments.
  """
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place)
    fresh(folder / "whole")
    started = time.monotonic()
    run(command(folder / "whole"))
    seconds, expected = time.monotonic() - started, contents(folder / "whole")
    done, rounds, moments, ended = 0, 0, [], True
    while done < kills or not ended:
      target = folder / f"round{rounds}"
      if ended:
        fresh(target)
      moment = chance.uniform(0.2, 1.0) * seconds if done < kills else None
      ended = not run(command(target), moment)
      if ended:
        assert contents(target) == expected, f"{name}: {target} differs"
        rounds += 1
      else:
        done += 1
        moments.append(moment)
        print(f"{name}: kill {done} at {moment:.2f} s", file=sys.stderr, flush=True)
        time.sleep(0.3)  # orphaned workers end by themselves
        for file, found in contents(target).items():
          assert file.endswith(".tmp") or found == expected[file], f"half of {file}"
    print(
      f"{name}: {done} kills at {min(moments):.2f} to {max(moments):.2f} s of"
      f" {seconds:.2f} s, {rounds} folders finished, all {len(expected)} files equal"
      " the uninterrupted ones",
      flush=True,
    )


def main() -> None:
  """Command line entry."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--kills", type=int, default=10)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--tars", type=int, default=24)
  parser.add_argument("--records", type=int, default=40, help="per tar")
  parser.add_argument("--verb", choices=["both", "prepare", "tokenize"], default="both")
  given = parser.parse_args()
  import web_data

  chance = random.Random(given.seed)
  with tempfile.TemporaryDirectory() as place:
    place = pathlib.Path(place)
    tars = web_data.tars(place / "tars", given.tars, given.records)
    verb = [sys.executable, "-m", "lavit_jax.prepare", "--source=webdataset"]

    def prepare(folder):
      return [*verb, f"--input={tars}", f"--target={folder}", "--processes=2"]

    if given.verb != "tokenize":
      trial("prepare", prepare, lambda folder: None, given.kills, chance)
    if given.verb == "prepare":
      return
    run(prepare(place / "data"))
    models = _model(place)
    helper = str(ROOT / "tests" / "tokenize_process.py")

    def tokenize(folder):
      return [sys.executable, helper, str(models), str(folder), "0", "1", "0"]

    copy = lambda folder: shutil.copytree(place / "data", folder)
    trial("tokenize", tokenize, copy, given.kills, chance)


def _model(place: pathlib.Path) -> pathlib.Path:
  """A tiny model directory with random weights."""
  import toy_run
  import web_data

  from lavit_jax.data import text

  words = (web_data.caption(i) for i in range(100))
  text.train_text_tokenizer(words, 500, place / "words")
  toy_run.write_encoder(place / "encoder")
  toy_run.write_visual_tokenizer(place / "model", place / "encoder", place / "words")
  return place / "model"


if __name__ == "__main__":
  main()
