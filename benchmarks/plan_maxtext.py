"""Our LLaMA-7B trunk against MaxText's, text only, by one compiler and one estimator.

  python -m benchmarks.plan_maxtext --maxtext=maxtext/bin/python --work=/tmp/pairs

Both sides: 64 chips, fsdp 64, rows of 2048 tokens, vocabulary 48,512, float32 Adam,
full rematerialization. Compiled with the same libtpu, never executed. Programs that
--work already holds are not compiled again. `benchmarks/maxtext_program.py` says how to
make MaxText's environment.
"""

import json
import pathlib
import subprocess
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.sharding import Mesh

from configs import pretrain as pretrain_config
from lavit_jax.core import losses, sequence, sharding
from lavit_jax.models import llama
from lavit_jax.planning import compiling, cost, programs, roofline, topology
from lavit_jax.training import base, optimizer

MAXTEXT = flags.DEFINE_string("maxtext", None, "Python of MaxText's environment.")
WORK = flags.DEFINE_string("work", "/tmp/plan_maxtext", "Folder for the programs.")
PODS = flags.DEFINE_list("pods", ["v5e-64", "v5p-128", "v6e-64"], "Pods of 64 chips.")
ROWS = flags.DEFINE_list("rows", ["1", "4"], "Rows per chip.")
CHUNKS = flags.DEFINE_integer("chunks", 8, "Pieces of our loss; one keeps the logits.")

WORDS, PADDED, LENGTH = 48_386, 48_512, 2048


def trunk_step(mesh: Mesh, rows: int) -> programs.Program:
  """The step of stage 2 without pictures, `rows` per chip."""
  config = pretrain_config.get_config("7b")
  model = llama.Llama(
    vocab_size=WORDS, padded_size=PADDED, **llama.VARIANTS["7b"], remat="full"
  )
  ids = jnp.zeros((1, 8), jnp.int32)
  init = lambda key: model.init(key, ids, ids, ids, method="everything")
  config.optimizer.groups = {}
  tx = optimizer.make(config.optimizer, config.num_steps)
  abstract, shardings, _ = base.born_sharded(init, tx, mesh)

  def hidden_of(module, batch):
    inputs = module.embed(batch["tokens"])
    return module(inputs, batch["positions"], batch["segment_ids"])

  def step(state, batch):
    def loss_fn(params):
      hidden = model.apply({"params": params}, batch, method=hidden_of)
      head, targets = params["head"]["kernel"], sequence.next_tokens(batch["tokens"])
      mask = batch["loss_mask"]
      found = losses.next_token(hidden, head, targets, mask, WORDS, CHUNKS.value)
      return found.losses.sum() / found.count

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    state, norms = base.apply_gradients(state, grads, tx)
    return state, norms | {"loss": loss}

  spread = sharding.batch_sharding(mesh)
  shape = (rows * mesh.size, LENGTH)
  dtypes = dict.fromkeys(("tokens", "positions", "segment_ids"), jnp.int32)
  batch = {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=spread)
    for name, dtype in (dtypes | {"loss_mask": jnp.bool_}).items()
  }
  arguments = {"state": programs.placed(abstract, shardings), "batch": batch}
  tokens = rows * mesh.size * LENGTH
  return programs.Program(
    "trunk", base.jitted(step, shardings), arguments, mesh, shape[0], tokens, 0
  )


def compile_ours(mesh: Mesh, rows: int, out: pathlib.Path) -> None:
  """Writes our program and its figures."""
  program = trunk_step(mesh, rows)
  with jax.set_mesh(mesh):
    lowered = programs.trace(program).lower()
  compiled = compiling.compile_lowered(lowered, mesh)
  memory = compiled.memory
  names = ("arguments", "outputs", "temporaries", "code")
  figures = {name: getattr(memory, name) for name in names}
  figures["compile_seconds"] = compiled.seconds
  out.with_suffix(".txt").write_text(compiled.text)
  out.with_suffix(".json").write_text(json.dumps(figures, indent=2))


def measure(path: pathlib.Path, pod: topology.Topology, mesh: Mesh) -> dict[str, Any]:
  """The figures that are compared, of either side."""
  figures = json.loads(path.with_suffix(".json").read_text())
  counts = cost.count(path.with_suffix(".txt").read_text(), pod.chips)
  places = [(0, *device.coords) for device in mesh.devices.flat]
  times = roofline.estimate(counts, pod, places, figures["arguments"])
  kinds = counts.bytes_by(lambda one: one.kind)
  return {
    "FLOPs (T)": counts.flops / 1e12,
    "kernel FLOPs (T)": counts.kernel_flops / 1e12,
    "memory (GB)": (figures["arguments"] + figures["temporaries"]) / 1e9,
    "collectives (GB)": sum(kinds.values()) / 1e9,
    **{f"  {kind} (GB)": size / 1e9 for kind, size in sorted(kinds.items())},
    "  synchronous (s)": times.exposed,
    "  asynchronous (s)": times.hidden,
    "  compute (s)": times.compute,
    "predicted (s)": times.predicted,
    "compile (s)": figures["compile_seconds"],
  }


def compare(name: str, rows: int, work: pathlib.Path) -> None:
  """Compiles what is missing and prints one pair."""
  pod = topology.parse(name)
  mesh = sharding.make_mesh({"fsdp": -1}, topology.devices(pod))
  theirs = work / f"maxtext_{name}_{rows}"
  ours = work / f"ours_{name}_{rows}_{CHUNKS.value}"
  if not theirs.with_suffix(".json").exists():
    script = pathlib.Path(__file__).with_name("maxtext_program.py")
    command = [MAXTEXT.value, str(script), name, str(rows), str(theirs)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
  if not ours.with_suffix(".json").exists():
    compile_ours(mesh, rows, ours)
  left, right = measure(ours, pod, mesh), measure(theirs, pod, mesh)
  print(f"\n{name}, {rows} rows per chip{'ours':>16}{'MaxText':>12}{'ratio':>9}")
  for label in sorted(left.keys() | right.keys(), key=[*left, *right].index):
    a, b = left.get(label, 0.0), right.get(label, 0.0)
    ratio = f"{a / b:9.3f}" if b else "        -"
    print(f"{label:24}{a:16.3f}{b:12.3f}{ratio}", flush=True)


def main(argv: list[str]) -> None:
  """Command line entry."""
  del argv
  topology.without_chips()
  work = pathlib.Path(WORK.value)
  work.mkdir(parents=True, exist_ok=True)
  for name in PODS.value:
    for rows in ROWS.value:
      compare(name, int(rows), work)


if __name__ == "__main__":
  flags.mark_flag_as_required("maxtext")
  app.run(main)
