"""The command line of `plan`: mistakes in one sentence, and the figures of --json."""

import importlib.util
import json
import pathlib
import subprocess
import sys
import types

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

from benchmarks import plan_runs
from configs import pretrain
from lavit_jax import plan, train
from lavit_jax.planning import compiling, kept, pod_plan, topology

TINY = ("--config=configs/pretrain.py:tiny", "--config.batch_size=16")


@pytest.fixture
def command(monkeypatch):
  """Runs `plan` on the eight devices of the CPU; nothing compiles but by `compiler`."""

  def compiler(lowered, mesh, draft=False):
    raise AssertionError("compiled before the mistake was found")

  monkeypatch.setattr(compiling, "compile_lowered", compiler)
  monkeypatch.setattr(topology, "devices", lambda pod: jax.devices()[: pod.chips])
  monkeypatch.setattr(
    pod_plan, "_place", lambda device: (0, device.id % 2, device.id // 2)
  )
  monkeypatch.setattr(kept.importlib.metadata, "version", lambda name: "0.0")

  def run(*arguments):
    monkeypatch.setattr(sys, "argv", ["plan", *arguments])  # config flags look there
    saved = flagsaver.save_flag_values()
    try:
      plan.main(train.parse_flags(sys.argv))
    finally:
      flagsaver.restore_flag_values(saved)
      flags.FLAGS.unparse_flags()

  return run


def refusal(command, *arguments: str) -> str:
  """The sentence that a command ends in; its exit status is then 1."""
  with pytest.raises(SystemExit) as ended:
    command(*arguments)
  assert isinstance(ended.value.code, str) and "\n" not in ended.value.code
  return ended.value.code


MISTAKES = {
  "error: expected --config=configs/STAGE.py:7b and --topology such as v5p:4x4x4": (
    "--topology=v5e-8",
  ),
  "error: unknown topology 'v9-8'; expected a chip of": (*TINY, "--topology=v9-8"),
  "error: mesh {'data': 1, 'fsdp': 3,": (
    *TINY,
    "--topology=v5e-8",
    "--config.mesh.data=1",
    "--config.mesh.fsdp=3",
  ),
  "error: a micro-batch of 4 rows over 8 chips (data x fsdp) leaves 0.5 rows": (
    *TINY,
    "--topology=v5e-8",
    "--config.accumulate=4",
  ),
  "error: --sweep compares train steps, got --program=decode; leave one out": (
    *TINY,
    "--topology=v5e-8",
    "--sweep=2",
    "--program=decode",
  ),
  "error: --program=train_a belongs to stage visual_tokenizer, got a config of": (
    *TINY,
    "--topology=v5e-8",
    "--program=train_a",
  ),
  "error: unexpected arguments ['v5e-8']; use --config.FIELD=VALUE": (*TINY, "v5e-8"),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_ends_in_one_sentence_before_any_compilation(command, message):
  assert refusal(command, *MISTAKES[message]).startswith(message)


def test_a_missing_compiler_is_named(command, monkeypatch):
  monkeypatch.undo()
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  found = refusal(command, *TINY, "--topology=v5e-8")
  assert found.startswith("error: planning needs libtpu, the TPU compiler, and it is")


def fake(monkeypatch, total: int = 10**9):
  """Stands in for the compiler; returns the list of what was compiled."""
  text = jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((8, 8), "float32"))
  text, seen = text.compile().as_text(), []

  def compiler(lowered, mesh, draft=False):
    seen.append(draft)
    memory = compiling.Memory(
      arguments=10**8,
      outputs=0,
      donated=0,
      temporaries=total - 10**8 - 10**6,
      code=10**6,
    )
    return compiling.Compiled(text, memory, 12.0, 11.0)

  monkeypatch.setattr(compiling, "compile_lowered", compiler)
  return seen


NAMED = {
  "memory_per_chip": {"arguments", "outputs", "temporaries", "code", "total"},
  "flops_per_step": {"counted", "analytic"},
  "predicted": {"seconds", "tokens_per_second", "mfu"},
}


def test_json_holds_what_is_printed(command, monkeypatch, tmp_path, capsys):
  fake(monkeypatch)
  out = tmp_path / "plan.json"
  command(*TINY, "--topology=v5e-8", f"--json={out}", "--price=1.5")
  made = json.loads(out.read_text())
  assert made["chips"] == 8 and made["compile_seconds"] == 12.0 and made["fits"]
  assert isinstance(made["collective_bytes"], dict)
  for name, keys in NAMED.items():
    assert keys <= made[name].keys()
    assert all(isinstance(made[name][key], (int, float)) for key in keys)
  memory = made["memory_per_chip"]
  parts = ("arguments", "outputs", "temporaries", "code")
  assert memory["total"] == sum(memory[part] for part in parts) == 10**9
  assert made["flops_per_step"]["counted"] == 2 * 8**3
  steps = pretrain.get_config("tiny").num_steps
  text = capsys.readouterr().out
  assert (
    f"receipt   {steps:,} steps take" in text and "rows or pictures at once" in text
  )


def test_phases_of_stage_1_share_the_schedule(command, monkeypatch, tmp_path, capsys):
  fake(monkeypatch)
  config = ("--config=configs/visual_tokenizer.py:tiny", "--topology=v5e-8")
  command(*config)
  assert "receipt   400 of 1,000 steps take" in capsys.readouterr().out
  command(*config, "--program=train_a")
  text = capsys.readouterr().out
  assert "visual_tokenizer phase a" in text and "600 of 1,000 steps take" in text
  found = refusal(command, *config, "--program=train_a", "--config.phase_a_steps=0")
  assert found.startswith("error: config.phase_a_steps is 0: stage 1 has no phase a")


def test_kept_figures_are_of_the_same_program_and_counter(
  command, monkeypatch, tmp_path
):
  seen, out, versions = fake(monkeypatch), tmp_path / "plan.json", ["one"]
  monkeypatch.setattr(kept, "versions", lambda: versions[-1])
  # Without an attention kernel both policies make the same program.
  asked = (*TINY, "--topology=v5e-8", f"--cache={tmp_path}", f"--json={out}")
  for policy in ("full", "attention", "dots"):
    command(*asked, f"--config.remat={policy}")
    assert json.loads(out.read_text())["remat"] == policy
  assert len(seen) == 2
  versions.append("two")
  command(*asked, "--config.remat=full")
  assert len(seen) == 3


def test_versions_are_those_of_compiler_and_counting_code(monkeypatch):
  monkeypatch.setattr(kept.importlib.metadata, "version", lambda name: f"{name} 1.2")
  found = kept.versions()
  assert found.startswith(f"jax {jax.__version__} libtpu libtpu 1.2 counted by ")
  assert found == kept.versions() and len(found.split()[-1]) == 64


def test_a_program_that_does_not_fit_keeps_what_is_known(
  command, monkeypatch, tmp_path
):
  def compiler(lowered, mesh, draft=False):
    raise compiling.DoesNotFitError(20e9, 16e9)

  monkeypatch.setattr(compiling, "compile_lowered", compiler)
  out = tmp_path / "plan.json"
  command(*TINY, "--topology=v5e-8", f"--json={out}")
  made = json.loads(out.read_text())
  assert not made["fits"] and made["misfit"]["over"] == 4e9
  assert made["misfit"]["remedies"]
  assert made["flops_per_step"]["analytic"] > 1e9 and made["compile_seconds"] >= 0


def test_benchmarks_keep_figures_by_program_alone(monkeypatch, tmp_path):
  commands = []

  def child(command, **options):
    commands.append(command)
    out = command[-1].removeprefix("--json=")
    pathlib.Path(out).write_text(json.dumps({"made": len(commands)}))
    return subprocess.CompletedProcess(command, 0, "", "")

  monkeypatch.setattr(plan_runs, "WORK", types.SimpleNamespace(value=str(tmp_path)))
  monkeypatch.setattr(plan_runs.subprocess, "run", child)
  for made in (1, 2):  # a figure is asked for anew, and `plan` knows whether it is kept
    found = plan_runs.planned("pretrain:7b", "v5e-64", mesh__fsdp=64)
    assert found == {"made": made}
  assert commands[0][3:-1] == [
    "--topology=v5e-64", "--config=configs/pretrain.py:7b", "--slices=1",
    f"--cache={tmp_path}/programs", "--config.mesh.fsdp=64",
  ]  # fmt: skip
