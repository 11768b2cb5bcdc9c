"""One paste for a bug report: `python -m lavit_jax.doctor [--config=...]`.

    python -m lavit_jax.doctor --config=configs/pretrain.py:7b --workdir=gs://b/run \
        --config.data.train=/data/train

Prints versions, chips and hosts; with a config also which of its paths can be reached,
and how full the rows of its data are. On a pod, run it on every host at once.
"""

import importlib.metadata
import os
import platform
import tempfile
import time
from collections.abc import Iterator

import jax
import ml_collections
from absl import app, flags
from etils import epath
from ml_collections import config_flags

from lavit_jax.core import command_line
from lavit_jax.data import corpora, pack_plan, records
from lavit_jax.training import code_version, hosts

PACKAGES = (
  *("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "tensorstore"),
  *("grain", "array_record", "transformers", "numpy"),
)
VARIABLES = ("JAX_", "XLA_FLAGS", "LIBTPU_", "TPU_", "MEGASCALE_", "SLURM_NTASKS")


def define_flags() -> None:
  """Defines the flags, in this program only: `train` has flags of these names."""
  config_flags.DEFINE_config_file("config", None, "Stage config to look at.")
  command_line.define_path("workdir", "", "Run directory to look at.")


def versions() -> Iterator[str]:
  """Versions of the code and of what it stands on."""
  yield f"lavit_jax {code_version.code_version()}, Python {platform.python_version()}"
  found = []
  for name in PACKAGES:
    try:
      found.append(f"{name} {importlib.metadata.version(name)}")
    except importlib.metadata.PackageNotFoundError:
      found.append(f"no {name}")
  yield ", ".join(found)
  yield f"{platform.platform()}, {os.cpu_count()} cores"


def machines() -> Iterator[str]:
  """This host, its devices, and the environment that decides about them."""
  yield hosts.banner()
  for device in jax.local_devices()[:8]:
    used = (device.memory_stats() or {}).get("bytes_limit")
    memory = f", {used / 1e9:.1f} GB" if used else ""
    place = getattr(device, "coords", None)
    yield f"  {device}{memory}{f', at {place}' if place else ''}"
  names = sorted(name for name in os.environ if name.startswith(VARIABLES))
  yield "environment: " + (
    ", ".join(f"{n}={os.environ[n]}" for n in names) or "nothing"
  )


def reach(path: str, write: bool = False) -> str:
  """Whether a path can be read, or written, and how long that took."""
  began, target = time.monotonic(), epath.Path(path)
  try:
    if write:
      target.mkdir(parents=True, exist_ok=True)
      mark = target / f".doctor-{jax.process_index()}"
      mark.write_text("reached")
      mark.unlink()
      told = "can be written"
    else:
      told = "is there" if target.exists() else "IS NOT THERE"
  except Exception as error:  # whatever a file system or a bucket's client throws
    told = f"CANNOT BE REACHED: {str(error).splitlines()[0]}"
  return f"{path} {told} ({time.monotonic() - began:.2f} s)"


def reach_run(path: str) -> str:
  """Whether a run directory can be written; one that holds a run is left as it is."""
  try:
    holds = epath.Path(path, "config.json").exists()
  except Exception:  # `reach` tells what is wrong
    holds = False
  if not holds:
    return reach(path, write=True)
  if "://" in path:
    return f"{reach(path)}, holds a run; writing is not tried"
  rights = "can be written" if os.access(path, os.W_OK) else "CANNOT BE WRITTEN"
  return f"{reach(path)}, holds a run and {rights} by its rights"


def paths(config: ml_collections.ConfigDict | None, workdir: str) -> Iterator[str]:
  """What the config reads, and where a run would write."""
  named = {}
  if config is not None:
    named = {"init_from": config.get("init_from", "")}
    folders = ("train", "eval", "text_tokenizer")
    named |= {f"data.{name}": config.data.get(name, "") for name in folders}
  for name, value in named.items():
    if isinstance(value, str) and value:
      several = corpora.parse(value) if name == "data.train" else []
      for folder in [corpus.folder for corpus in several] or [value]:
        yield f"{name}: {reach(folder)}"
  if config is not None and config.get("parameters_from", ""):
    yield f"parameters_from: {reach(config.parameters_from)}"
  if workdir:
    yield f"workdir: {reach_run(workdir)}"
  yield f"temporary: {reach(tempfile.gettempdir(), write=True)}"


def data(config: ml_collections.ConfigDict) -> Iterator[str]:
  """Records of each data folder, and the fill of its rows where it has codes."""
  for split in ("train", "eval"):
    given = config.data.get(split, "")
    for folder in [corpus.folder for corpus in corpora.parse(given)] if given else []:
      try:
        prepared = records.Records(folder)
        yield f"{split}: {len(prepared)} records, {int(prepared.image.sum())} pictures"
        if "row_length" in config.data and (epath.Path(folder) / "codes").exists():
          yield f"{split}: {pack_plan.summary(_plan(config, folder))}"
      except ValueError as error:
        yield f"{split}: {error}"


def _plan(config: ml_collections.ConfigDict, folder: str) -> pack_plan.PackPlan:
  sidecar = records.Sidecar(f"{folder}/codes")
  return pack_plan.plan_rows(
    sidecar.lengths,
    {name: share for name, share in config.data.mixture.items() if share},
    seed=config.seed,
    rows=config.data.plan_rows,
    row_length=config.data.row_length,
    images_per_row=config.data.images_per_row,
  )


def main(argv: list[str]) -> None:
  """Command line entry."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}")
  print("\n".join(versions()), flush=True)
  with command_line.in_sentences():
    hosts.start()
    config = flags.FLAGS.config
    if config is not None:
      command_line.home_in(config)
    found = [*machines(), *paths(config, flags.FLAGS.workdir)]
    if config is not None:
      found += data(config)
    print("\n".join(found))


if __name__ == "__main__":
  define_flags()
  app.run(main)
