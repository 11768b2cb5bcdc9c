"""Counting compiled programs: loops, padded windows, collectives, memory of a pod."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lavit_jax.core import sharding, traced_flops
from lavit_jax.planning import collectives, cost, products, program

# What the TPU compiler prints, shortened: a loop of five turns whose body starts an
# all-gather, multiplies beside it, and ends it; then a scattered all-reduce.
TPU_TEXT = """HloModule jit_step, is_scheduled=true

%body.1 (p.1: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %p.1 = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %x.1 = bf16[8,16]{1,0} get-tuple-element(%p.1), index=1
  %start.1 = (bf16[8,16]{1,0}, bf16[32,16]{1,0}) fusion(%x.1), kind=kCustom, frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, calls=%fused_start.1
  %mid.1 = (bf16[8,16]{1,0}, bf16[32,16]{1,0}) fusion(%x.1), kind=kOutput, calls=%async_collective_fusion.1, backend_config={"estimated_cycles":"1000"}
  %end.1 = bf16[32,16]{1,0} fusion(%x.1), kind=kCustom, calls=%fused_end.1
  %one.1 = s32[]{:T(128)} constant(1)
  %next.1 = s32[]{:T(128)} add(%i.1, %one.1)
  ROOT %t.1 = (s32[]{:T(128)}, bf16[8,16]{1,0}) tuple(%next.1, %x.1)
}

%fused_start.1 (q.1: bf16[8,16]) -> (bf16[8,16], bf16[32,16]) {
  %q.1 = bf16[8,16]{1,0} parameter(0)
  %all-gather.1 = bf16[32,16]{1,0} all-gather(%q.1), channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
  ROOT %cc.1 = (bf16[8,16]{1,0}, bf16[32,16]{1,0}, /*index=2*/s32[2]{0:S(4)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (q.2: bf16[8,16]) -> (bf16[8,8], bf16[32,16]) {
  %q.2 = bf16[8,16]{1,0} parameter(0)
  %all-gather.2 = bf16[32,16]{1,0} all-gather(%q.2), channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
  %conv.1 = bf16[8,8]{1,0} convolution(%q.2, %q.2), dim_labels=bf_oi->bf
  ROOT %t.2 = (bf16[8,8]{1,0}, bf16[32,16]{1,0}) tuple(%conv.1, %all-gather.2)
}

%fused_end.1 (q.3: bf16[8,16]) -> bf16[32,16] {
  %q.3 = bf16[8,16]{1,0} parameter(0)
  %all-gather.3 = bf16[32,16]{1,0} all-gather(%q.3), channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}
  ROOT %cc.2 = bf16[32,16]{1,0} custom-call(%all-gather.3), custom_call_target="AsyncCollectiveDone"
}

%condition.1 (p.2: (s32[], bf16[8,16])) -> pred[] {
  %p.2 = (s32[]{:T(128)}, bf16[8,16]{1,0}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  %five = s32[]{:T(128)} constant(5)
  ROOT %lt.1 = pred[]{:T(512)} compare(%i.2, %five), direction=LT
}

%all-reduce-scatter.1 (q.4: f32[32,16]) -> f32[8,16] {
  %q.4 = f32[32,16]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %all-reduce.1 = f32[32,16]{1,0} all-reduce(%q.4), channel_id=2, replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add.1
  ROOT %ds.1 = f32[8,16]{1,0} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={8,16}
}

ENTRY %main.1 (a.1: bf16[8,16], b.1: f32[32,16]) -> f32[8,16] {
  %a.1 = bf16[8,16]{1,0} parameter(0)
  %b.1 = f32[32,16]{1,0} parameter(1)
  %n.1 = s32[] constant(0)
  %in.1 = (s32[], bf16[8,16]{1,0}) tuple(%n.1, %a.1)
  %while.1 = (s32[]{:T(128)}, bf16[8,16]{1,0}) while(%in.1), condition=%condition.1, body=%body.1
  ROOT %fusion.9 = f32[8,16]{1,0} fusion(%b.1), kind=kCustom, calls=%all-reduce-scatter.1
}
"""  # noqa: E501


@functools.cache
def tpu_cost() -> cost.Cost:
  return cost.count(TPU_TEXT, 8)


def test_a_loop_counts_as_often_as_it_turns():
  found = tpu_cost()
  assert found.loops == {"while.1": 5}
  assert found.flops == 5 * 2 * 8 * 8 * 16
  assert found.cycles == 5 * 1000


def test_an_asynchronous_collective_counts_once_at_its_start():
  gather, scatter = tpu_cost().collectives
  assert (gather.kind, gather.is_async, gather.calls) == ("all-gather", True, 5)
  assert gather.total == 5 * 3 * (8 * 16 * 2)
  assert (scatter.kind, scatter.is_async) == ("reduce-scatter", False)
  assert scatter.total == 32 * 16 * 4 / 2


def test_groups_name_their_mesh_axes():
  gather, scatter = tpu_cost().collectives
  mesh = {"data": 2, "fsdp": 4, "sequence": 1, "tensor": 1}
  assert gather.group == (0, 1, 2, 3) and scatter.group == (0, 4)
  assert collectives.mesh_axes(gather.group, mesh) == ("fsdp",)
  assert collectives.mesh_axes(scatter.group, mesh) == ("data",)


@pytest.mark.parametrize(
  ("groups", "expected"),
  [
    ("replica_groups={{0,2},{1,3}}", (0, 2)),
    ("replica_groups={}", (0, 1, 2, 3, 4, 5, 6, 7)),
    ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
    ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", (0, 2)),
    ("replica_groups=mesh['a'=8] {'a':(1)2}", (0, 4)),
    ("replica_groups=mesh['a'=8] {'a':(2)2}", (0, 2)),
    ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", tuple(range(8))),
    ("source_target_pairs={{0,4},{4,0}}", (0, 4)),
    ("source_target_pairs={{0,0},{1,5},{5,1}}", (1, 5)),
    ("source_target_pairs={{0,0},{1,1}}", (0,)),
    ("source_target_pairs={}", (0,)),
  ],
)
def test_every_spelling_of_groups_is_read(groups, expected):
  line = program.Instruction("x", "f32[2]", "all-reduce", (), "", f", {groups}, a=b")
  assert collectives.first_group(line, 8) == expected


def test_what_devices_send_to_themselves_is_no_exchange():
  text = """ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4] parameter(0)
  %b = f32[4] collective-permute(%a), source_target_pairs={{0,0},{1,1}}
  ROOT %c = f32[4] collective-permute(%b), source_target_pairs={{0,0},{1,3}}
}"""
  (found,) = cost.count(text, 4).collectives
  assert (found.group, found.total) == ((1, 3), 4 * 4)


def splash_call(queries: int, keys: int) -> cost.Kernel:
  text = f"""ENTRY %main (q: bf16[8,{queries},128], k: bf16[8,{keys},128]) -> bf16[8] {{
  %q = bf16[8,{queries},128] parameter(0)
  %k = bf16[8,{keys},128] parameter(1)
  ROOT %c = bf16[8] custom-call(%q, %k), custom_call_target="tpu_custom_call", metadata={{op_name="splash_mha_fwd"}}
}}"""  # noqa: E501
  (found,) = cost.count(text, 4).kernels
  return found


def test_the_attention_kernel_waits_for_the_last_shard_of_a_sequence():
  whole = splash_call(2048, 2048)
  blocks = 1 + 2 + 3 + 4  # of 512 x 512, below and on the diagonal
  assert whole.flops == whole.slowest == 2 * 2 * 8 * blocks * 512 * 512 * 128
  # A quarter of the queries: blocks of 512 still, four of them in the last shard.
  quarter = splash_call(512, 2048)
  assert quarter.flops == whole.flops / 4
  assert quarter.slowest == 2 * 2 * 8 * 4 * 512 * 512 * 128
  # An eighth: blocks of 256 waste less, eight of them in the last shard.
  eighth = splash_call(256, 2048)
  assert eighth.flops * 8 == 2 * 2 * 8 * (8 * 9 / 2) * 256 * 256 * 128
  assert eighth.slowest == 2 * 2 * 8 * 8 * 256 * 256 * 128


def convolution(attributes: str, left: str, kernel: str, out: str) -> int:
  text = f"""ENTRY %main (a: {left}, b: {kernel}) -> {out} {{
  %a = {left} parameter(0)
  %b = {kernel} parameter(1)
  ROOT %c = {out} convolution(%a, %b), {attributes}
}}"""
  parsed = program.parse(text)
  return products.flops(parsed.computations["main"], parsed.computations["main"].root)


def test_windows_padded_beyond_the_data_count_what_falls_on_data():
  # A batched product as TPU writes it: each output place sees one place of the data.
  labels = "dim_labels=0bf_0io->0bf"
  window = "window={size=4 pad=3_3 rhs_reversal=1}"
  found = convolution(
    f"{window}, {labels}", "f32[1,8,16]", "f32[4,16,32]", "f32[4,8,32]"
  )
  assert found == 2 * 4 * 8 * 16 * 32
  # A 3 x 3 picture convolution with borders: 3 + 3 + ... taps, less at the edges.
  labels = "dim_labels=b01f_01io->b01f"
  window = "window={size=3x3 pad=1_1x1_1}"
  found = convolution(
    f"{window}, {labels}", "f32[2,5,5,4]", "f32[3,3,4,6]", "f32[2,5,5,6]"
  )
  assert found == 2 * 2 * (13 * 13) * 4 * 6


def test_products_in_the_kernels_of_the_compiler_are_counted():
  text = """ENTRY %main (a: f32[2,3,8,16], b: f32[2,3,16,5]) -> f32[2,3,8,5] {
  %a = f32[2,3,8,16] parameter(0)
  %b = f32[2,3,16,5] parameter(1)
  ROOT %c = f32[2,3,8,5] custom-call(%a, %b), custom_call_target="tpu_custom_call", \
metadata={op_name="online-softmax"}
}"""
  assert cost.count(text, 1).flops == 2 * (2 * 3) * 8 * 16 * 5
  text = """ENTRY %main (a: f32[6,8,5], b: f32[6,16,5], c: f32[6,16,5]) -> f32[6,8,5] {
  %a = bf16[6,8,5] parameter(0)
  %b = bf16[6,16,5] parameter(1)
  %c = bf16[6,16,5] parameter(2)
  ROOT %name = f32[6,8,5] custom-call(%a, %b, %c), custom_call_target="tpu_custom_call"
}"""
  assert cost.count(text, 1).flops == 2 * 2 * 6 * 8 * 16 * 5


@pytest.mark.parametrize(("stride", "taps"), [(1, 13), (2, 7)])
def test_convolutions_of_a_trace_count_what_falls_on_data(stride, taps):
  def product(x, kernel):
    window = ((stride, stride), ((1, 1), (1, 1)))
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, *window, dimension_numbers=names)

  x, kernel = jnp.ones((2, 5, 5, 4)), jnp.ones((3, 3, 4, 6))
  once = 2 * 2 * taps**2 * 4 * 6
  assert traced_flops.flops(jax.make_jaxpr(product)(x, kernel)) == once
  squares = lambda x, kernel: (product(x, kernel) ** 2).sum()
  both = jax.value_and_grad(squares, (0, 1))
  assert traced_flops.flops(jax.make_jaxpr(both)(x, kernel)) == 3 * once


def test_text_without_a_program_names_the_remedy():
  with pytest.raises(ValueError, match="cannot print it: install the pinned pair"):
    cost.count("nothing here", 1)


# A loop as XLA prints it, whose counter starts at %start, moves by %next, and ends
# where %less says; each test prints its own.
LOOP = """%bump (b: u32[]) -> u32[] {
  %b = u32[] parameter(0)
  %by = u32[] constant(1)
  ROOT %more = u32[] add(%b, %by)
}

%below (l: u32[], r: u32[]) -> pred[] {
  %l = u32[] parameter(0)
  %r = u32[] parameter(1)
  ROOT %is = pred[] compare(%l, %r), direction=LT
}

%body (p: (f32[4,4], u32[])) -> (f32[4,4], u32[]) {
  %p = (f32[4,4], u32[]) parameter(0)
  %i = u32[] get-tuple-element(%p), index=1
  %c = u32[] copy(%i)
  %x = f32[4,4] get-tuple-element(%p), index=0
  %one = u32[] constant(1)
  NEXT
  %d = f32[4,4] dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (f32[4,4], u32[]) tuple(%d, %next)
}

%condition (q: (f32[4,4], u32[])) -> pred[] {
  %q = (f32[4,4], u32[]) parameter(0)
  %j = u32[] get-tuple-element(%q), index=1
  %limit = u32[] constant(5)
  ROOT LESS
}

ENTRY %main (a: f32[4,4], n: u32[]) -> (f32[4,4], u32[]) {
  %a = f32[4,4] parameter(0)
  %n = u32[] parameter(1)
  START
  %in = (f32[4,4], u32[]) tuple(%a, %start)
  ROOT %w = (f32[4,4], u32[]) while(%in), condition=%condition, body=%body
}"""
ZERO = "%start = u32[] constant(0)"
ADD = "%next = u32[] add(%c, %one)"
TWICE = "%once = u32[] add(%c, %one)\n  %next = u32[] add(%once, %one)"
LESS = "%less = pred[] compare(%j, %limit), direction=LT"
PEELED = "%k = u32[] constant(1)\n  %start = u32[] copy(%k)"
FUSED = "%next = u32[] fusion(%c), kind=kLoop, calls=%bump"
FUSED_LESS = "%less = pred[] fusion(%j, %limit), kind=kLoop, calls=%below"


@pytest.mark.parametrize(
  ("start", "step", "end", "trips"),
  [
    (ZERO, ADD, LESS, 5),
    (ZERO, ADD, LESS.replace("LT", "LE"), 6),
    (ZERO, FUSED, FUSED_LESS, 5),
    (ZERO, TWICE, LESS, 3),  # unrolled; the last turn does half
    (PEELED, ADD, LESS, 4),  # the first turn was moved out of the loop
    ("%start = u32[] copy(%n)", ADD, LESS, None),
    (ZERO, "%next = u32[] multiply(%c, %one)", LESS, None),
    (ZERO, "%next = u32[] copy(%i)", LESS, None),
    (ZERO, "%next = u32[] copy(%one)", LESS, None),
    (ZERO, ADD, LESS.replace("LT", "NE"), None),
    (ZERO, ADD, LESS.replace("%limit", "%j"), None),
  ],
)
def test_turns_follow_from_where_the_counter_starts_and_steps(start, step, end, trips):
  text = LOOP.replace("START", start).replace("NEXT", step).replace("LESS", end)
  counted = cost.count(text, 1)
  assert counted.loops == {"w": trips}
  assert counted.flops == (trips or 1) * (2 * 4**3)


WIDTH, LAYERS, ROWS = 64, 6, 32


def looped(x, kernels):
  def layer(x, kernel):
    return jax.nn.relu(x @ kernel), None

  return jax.lax.scan(jax.checkpoint(layer), x, kernels)[0].sum()


def unrolled(x, kernels):
  for kernel in kernels:
    x = jax.nn.relu(x @ kernel)
  return x.sum()


def shapes(rows=ROWS, width=WIDTH):
  of = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
  return of(rows, width), of(LAYERS, width, width)


def test_trace_and_program_agree_with_the_formula():
  # Forward, two products backward, and the recomputed forward.
  per_layer = 2 * ROWS * WIDTH * WIDTH
  traced_step = jax.jit(jax.grad(looped, argnums=1)).trace(*shapes())
  # No gradient goes to x: the first layer's is still made inside the loop.
  assert traced_flops.flops(traced_step.jaxpr) == pytest.approx(4 * LAYERS * per_layer)
  found = cost.count(traced_step.lower().compile().as_text(), 1)
  assert found.flops == pytest.approx(4 * LAYERS * per_layer)
  assert set(found.loops.values()) == {LAYERS}


def test_the_counter_agrees_with_cost_analysis_without_loops():
  # Wide, since the compiler's figure holds the elementwise operations too.
  wide = shapes(1024, 512)
  compiled = jax.jit(jax.grad(unrolled, argnums=1)).lower(*wide).compile()
  counted = cost.count(compiled.as_text(), 1).flops
  assert counted == pytest.approx(compiled.cost_analysis()["flops"], rel=0.005)


def test_what_no_result_needs_counts_nothing():
  def wasteful(x, kernels):
    unrolled(x, kernels)
    return x @ kernels[0]

  found = traced_flops.flops(jax.jit(wasteful).trace(*shapes()).jaxpr)
  assert found == 2 * ROWS * WIDTH * WIDTH


def test_the_body_of_a_shard_map_counts_on_every_device():
  mesh = sharding.make_mesh({"fsdp": 8})
  body = lambda x: x @ x.T
  whole = lambda x: jax.shard_map(body, in_specs=P("fsdp"), out_specs=P("fsdp"))(x)
  with jax.set_mesh(mesh):
    found = jax.jit(whole).trace(jax.ShapeDtypeStruct((32, 64), jnp.float32))
  assert traced_flops.flops(found.jaxpr) == 8 * (2 * 4 * 4 * 64)


def test_a_sharded_product_counts_its_share_and_its_exchange():
  mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
  spread = lambda shape, *axes: jax.ShapeDtypeStruct(
    shape, jnp.float32, sharding=NamedSharding(mesh, P(*axes))
  )
  x, kernel = spread((32, 64), "fsdp", None), spread((64, 16), "fsdp", "tensor")
  with jax.set_mesh(mesh):
    whole = NamedSharding(mesh, P("fsdp", "tensor"))
    compiled = jax.jit(jnp.matmul, out_shardings=whole).lower(x, kernel).compile()
  found = cost.count(compiled.as_text(), 8)
  assert found.flops == 2 * 32 * 64 * 16 / 8
  by_axis = found.bytes_by(
    lambda one: (one.kind, *collectives.mesh_axes(one.group, dict(mesh.shape)))
  )
  # Each device gathers the three other parts of its half of the kernel.
  assert by_axis == {("all-gather", "fsdp"): 3 * 16 * 8 * 4}
  assert np.isfinite(found.cycles)
