"""Names of pods, their links, and what is asked of Google Cloud."""

import importlib.util
import types

import jax
import pytest
from jax.experimental import topologies

from lavit_jax.core import sharding
from lavit_jax.planning import compiling, roofline, topology
from lavit_jax.planning.collectives import Collective
from lavit_jax.planning.cost import Cost, Kernel


@pytest.mark.parametrize(
  ("name", "text", "chips"),
  [
    ("v5p:4x4x4", "v5p:4x4x4", 64),
    ("v5p-128", "v5p:4x4x4", 64),
    ("v4-128", "v4:4x4x4", 64),
    ("v5e-64", "v5e:8x8", 64),
    ("v5litepod-256", "v5e:16x16", 256),
    ("v6e-256", "v6e:16x16", 256),
    ("v5p-1024", "v5p:8x8x8", 512),
  ],
)
def test_both_spellings_name_the_same_pod(name, text, chips):
  pod = topology.parse(name)
  assert (str(pod), pod.chips) == (text, chips)


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("v9-3", r"unknown topology 'v9-3'; expected a chip of \['v4', 'v5e'"),
    ("v5e-63", r"v5e has no slice of size 63; sizes are \[1, 4, .* \(chips\)"),
    ("v5p-6", r"v5p has no slice of size 6; .* \(TensorCores, two per chip\)"),
    ("v5p:4x4", "has 2 dimensions but v5p is a 3-D torus; write it like v5p:4x4x4"),
  ],
)
def test_unknown_pods_are_refused_in_one_sentence(name, message):
  with pytest.raises(ValueError, match=message):
    topology.parse(name)


def test_slices_multiply_the_chips():
  assert topology.parse("v5e-256", 2).chips == 512
  with pytest.raises(ValueError, match="expected at least one slice, got 0"):
    topology.parse("v5e-256", 0)


def test_the_create_command_names_shape_or_size():
  assert "--accelerator-type=v5p-128 " in topology.create_command(
    topology.parse("v5p:4x4x4")
  )
  odd = topology.create_command(topology.parse("v5p:2x4x8"))
  assert "--type=v5p --topology=2x4x8" in odd
  two = topology.create_command(topology.parse("v5e-256", 2))
  assert "--node-count=2 --node-prefix=lavit" in two
  assert "--accelerator-type=v5litepod-256" in two


@pytest.mark.parametrize(
  ("name", "rings"),
  [
    ("v5p:4x4x8", (True, True, True)),
    ("v5p:2x4x4", (False, False, False)),  # less than a cube
    ("v5e:8x16", (False, True)),
    ("v6e-256", (True, True)),
  ],
)
def test_rings_close_where_whole_cubes_or_pods_are_joined(name, rings):
  assert topology.parse(name).rings == rings


def test_links_follow_the_torus():
  pod = topology.parse("v5p:4x4x8")
  line = lambda axis, n: [
    tuple([0] + [i if a == axis else 0 for a in range(3)]) for i in range(n)
  ]
  link = pod.chip.link
  assert topology.bandwidth(pod, line(0, 4)) == 2 * link  # a ring
  assert topology.bandwidth(pod, line(2, 4)) == link  # half of one
  small = topology.parse("v5e-64")
  square = [(0, x, y) for x in range(8) for y in range(8)]
  assert topology.bandwidth(small, square) == 2 * small.chip.link  # no rings below 16
  assert topology.bandwidth(small, [(0, 0, 0), (1, 0, 0)]) == topology.NETWORK


def test_synchronous_collectives_add_and_asynchronous_ones_hide():
  pod = topology.parse("v5e-64")
  places = [(0, i // 8, i % 8) for i in range(64)]
  group = tuple(range(64))
  seconds = lambda s: s * 2 * pod.chip.link
  found = Cost(
    flops=pod.chip.flops,
    cycles=2 * pod.chip.clock,
    collectives=[
      Collective("all-gather", "f32[2]", seconds(0.25), group, 4, True, ""),
      Collective("all-reduce", "f32[2]", seconds(0.5), group, 1, False, ""),
    ],
    kernels=[Kernel("splash", 0.05 * pod.chip.flops, 0.1 * pod.chip.flops, 2)],
  )
  times = roofline.estimate(found, pod, places, pod.chip.bandwidth)
  assert times.products == pytest.approx(1.2)
  assert times.compute == pytest.approx(2 + 0.2 / roofline.KERNEL_EFFICIENCY)
  assert (times.hidden, times.exposed) == pytest.approx((1.0, 0.5))
  assert times.predicted == pytest.approx(times.compute + 0.5)
  assert times.in_turn == pytest.approx(1.2 + 1.0 + 0.5)
  assert times.bound == "compute"


@pytest.mark.parametrize(
  ("exposed", "hidden", "memory", "predicted", "bound"),
  [
    (0.5, 1, 1, 2.5, "compute"),
    (3, 1, 1, 5, "synchronous collectives"),
    (1, 4, 1, 5, "inter-chip links"),
    (0.5, 1, 3, 3, "HBM"),
  ],
)
def test_a_step_is_bound_by_what_sets_its_time(
  exposed, hidden, memory, predicted, bound
):
  found = roofline.Roofline(1, 2, exposed, hidden, memory)
  assert (found.predicted, found.bound) == (predicted, bound)


def test_the_compilers_memory_error_is_read():
  message = (
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory"
    " space hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G."
  )
  error = compiling._memory_error(message)
  assert error.used - error.capacity == pytest.approx(4.75 * 2**30)
  message = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO"
    " temporaries (24.12G) exceeds available HBM (15.75G)."
  )
  error = compiling._memory_error(message)
  assert error.used - error.capacity == pytest.approx(8.37 * 2**30)
  assert compiling._memory_error("something else") is None


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="needs libtpu: enter_environment tpu",
)
@pytest.mark.parametrize("name", ["v4-8", "v5e-4", "v5p-8", "v6e-4"])
def test_a_chip_holds_what_the_compiler_says(name):
  topology.without_chips()
  pod = topology.parse(name)
  mesh = sharding.make_mesh({"fsdp": pod.chips}, topology.devices(pod))
  rows, whole = int(1.2 * pod.chip.memory) // 2**21, sharding.replicated(mesh)
  large = jax.ShapeDtypeStruct((rows, 1024, 1024), jax.numpy.bfloat16, sharding=whole)
  lowered = jax.jit(lambda x: x[0, 0, 0]).lower(large)
  with pytest.raises(compiling.DoesNotFitError) as raised:
    compiling.compile_lowered(lowered, mesh)
  # "HLO temporaries (18.90G) exceeds available HBM": arguments are among them.
  assert raised.value.used == pytest.approx(1.2 * pod.chip.memory, rel=1e-3)
  assert raised.value.capacity == pytest.approx(pod.chip.memory, rel=1e-4)


def test_a_missing_compiler_ends_in_one_sentence(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(
    ValueError, match=r"libtpu, .* pip install --editable '\.\[tpu\]'"
  ):
    topology.devices(topology.parse("v5e-64"))


def test_a_slice_unknown_to_the_compiler_ends_in_one_sentence(monkeypatch):
  def unknown(**asked):
    assert asked["topology_name"] == "v5p:3x3x3"
    raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: no such bounds\nStack trace")

  monkeypatch.setattr(importlib.util, "find_spec", lambda name: "libtpu")
  monkeypatch.setattr(topologies, "get_topology_desc", unknown)
  message = r"knows no slice v5p:3x3x3 \(no such bounds\); choose one of .*'4x4x4'"
  with pytest.raises(ValueError, match=message):
    topology.devices(topology.parse("v5p:3x3x3"))


class Step:
  """Stands for a lowered and for a compiled program."""

  def __init__(self, text: str | None):
    self.text = text

  def compile(self):
    return self

  def memory_analysis(self):
    return types.SimpleNamespace(
      argument_size_in_bytes=100,
      output_size_in_bytes=70,
      alias_size_in_bytes=60,
      temp_size_in_bytes=5,
      generated_code_size_in_bytes=1,
    )

  def as_text(self):
    if self.text is None:
      raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: cannot be printed")
    return self.text


def test_donated_results_take_no_memory_of_their_own():
  mesh = jax.make_mesh((1,), ("data",))
  found = compiling.compile_lowered(Step("a program"), mesh)
  assert found.text == "a program"
  assert (found.memory.outputs, found.memory.donated) == (10, 60)
  assert found.memory.total == 100 + 10 + 5 + 1


def test_only_a_draft_is_compiled_with_the_least_effort():
  efforts = lambda: {name: getattr(jax.config, name) for name in compiling.DRAFT}
  seen, usual, mesh = [], efforts(), jax.make_mesh((1,), ("data",))

  class Noted(Step):
    def compile(self):
      seen.append(efforts())
      return super().compile()

  for draft in (False, True, False):
    compiling.compile_lowered(Noted("a program"), mesh, draft)
  assert seen == [usual, compiling.DRAFT, usual] and usual != compiling.DRAFT
  with pytest.raises(ValueError, match="cannot print"):
    compiling.compile_lowered(Noted(None), mesh, draft=True)
  assert efforts() == usual


def test_a_program_that_cannot_be_printed_names_the_remedy():
  mesh = jax.make_mesh((1,), ("data",))
  with pytest.raises(ValueError, match=r"cannot print .* --editable '\.\[tpu\]'"):
    compiling.compile_lowered(Step(None), mesh)
