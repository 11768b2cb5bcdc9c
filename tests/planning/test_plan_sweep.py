"""Candidate layouts, the frontier, the page of a sweep, and two plans side by side."""

import dataclasses
import functools
import json
import subprocess
import sys

import pytest

from configs import pixel_decoder, pretrain, visual_tokenizer
from lavit_jax import plan
from lavit_jax.core import sharding
from lavit_jax.planning import layout_sweep, layouts, summary, topology


@functools.cache
def sizes():
  return layout_sweep.sizes_of(pretrain.get_config("7b"))


def candidates(name="v5e-64", slices=1):
  return layouts.candidates(topology.parse(name, slices), sizes())


def layout(text: str) -> layouts.Layout:
  """Reads "fsdp=64 accumulate=8 remat=full"."""
  fields = dict(part.split("=") for part in text.split())
  mesh = {axis: int(fields.get(axis, 1)) for axis in sharding.MESH_AXES}
  return layouts.Layout(mesh, int(fields["accumulate"]), fields["remat"])


# Bytes per chip as compiled for v5e-64, in GB.
COMPILED = {
  "fsdp=64 accumulate=8 remat=full": 9.25,
  "fsdp=64 accumulate=4 remat=full": 14.53,
  "fsdp=64 accumulate=8 remat=attention": 10.81,
  "fsdp=64 accumulate=4 remat=attention": 17.92,
  "data=2 fsdp=32 accumulate=8 remat=full": 12.51,
  "data=2 fsdp=32 accumulate=8 remat=attention": 14.03,
  "data=2 fsdp=32 accumulate=4 remat=full": 17.76,
  "fsdp=32 tensor=2 accumulate=8 remat=full": 11.65,
  "fsdp=32 tensor=2 accumulate=8 remat=attention": 14.06,
  "fsdp=32 tensor=2 accumulate=4 remat=full": 19.92,
  "fsdp=32 sequence=2 accumulate=8 remat=full": 13.09,
  "fsdp=32 sequence=2 accumulate=8 remat=attention": 14.91,
  "fsdp=32 sequence=2 accumulate=4 remat=full": 18.86,
  "data=2 fsdp=16 tensor=2 accumulate=8 remat=full": 15.27,
  "data=2 fsdp=16 tensor=2 accumulate=8 remat=attention": 17.26,
  "data=4 fsdp=16 accumulate=8 remat=full": 18.91,
  "data=4 fsdp=16 accumulate=8 remat=attention": 20.67,
  "data=2 fsdp=16 sequence=2 accumulate=8 remat=full": 19.44,
  "data=2 fsdp=16 sequence=2 accumulate=8 remat=attention": 21.16,
  "fsdp=16 sequence=4 accumulate=8 remat=full": 20.15,
  "data=4 fsdp=8 tensor=2 accumulate=8 remat=full": 21.33,
  "fsdp=64 accumulate=32 remat=dots": 10.61,
  "fsdp=16 tensor=4 accumulate=32 remat=dots": 15.06,
}


def test_memory_is_what_was_compiled():
  for text, compiled in COMPILED.items():
    found = layouts.memory(layout(text), sizes()) / 1e9
    assert found == pytest.approx(compiled, rel=0.065), text
  # v5e-256: without a sum of gradients.
  alone = layout("data=8 fsdp=64 accumulate=1 remat=full")
  assert layouts.memory(alone, sizes()) / 1e9 == pytest.approx(7.90, rel=0.07)


def test_values_and_flops_are_those_of_the_config():
  assert sizes().parameters == 7_277_720_576
  assert sizes().flops["full"] == sizes().flops["attention"]
  assert 0.75 < sizes().flops["dots"] / sizes().flops["full"] < 0.83
  assert (sizes().fsdp, sizes().heads, sizes().length) == (128, 32, 2048)
  config = pretrain.get_config("7b")
  config.model.num_layers = 16
  assert 0.5 < layout_sweep.sizes_of(config).parameters / sizes().parameters < 0.6


def test_a_stage_without_an_attention_kernel_has_two_policies():
  found = layout_sweep.sizes_of(visual_tokenizer.get_config("7b"))
  assert list(found.flops) == ["full", "dots"] and found.length == 256
  assert found.fsdp == 128  # small layers stay whole beyond 32
  drafted = layouts.candidates(topology.parse("v5e-64"), found)[:30]
  assert {one.remat for one in drafted} == {"full", "dots"}


def test_candidates_use_every_chip_and_divide():
  found = candidates()
  assert len(found) == len({str(one) for one in found}) > 30
  for one in found:
    mesh = one.mesh
    assert mesh["data"] * mesh["fsdp"] * mesh["sequence"] * mesh["tensor"] == 64
    assert 2048 % (one.accumulate * mesh["data"] * mesh["fsdp"]) == 0


def test_thirty_drafts_fit_and_hold_all_policies_and_several_meshes():
  drafted = candidates()[:30]
  assert all(COMPILED.get(str(one), 0.0) < 16 for one in drafted)
  assert {one.remat for one in drafted} == set(layouts.KEPT)
  assert len({tuple(one.mesh.items()) for one in drafted}) >= 6
  assert sum(one.mesh["sequence"] > 1 for one in drafted) >= 3
  assert sum(one.mesh["tensor"] > 1 for one in drafted) >= 3
  # The largest micro-batches that fit come first.
  assert str(drafted[0]) == "fsdp=64 accumulate=4 remat=full"
  assert "fsdp=64 accumulate=8 remat=attention" in map(str, drafted[:6])


def test_nothing_that_fits_by_far_is_thrown_away():
  kept = {(tuple(one.mesh.items()), one.remat): one for one in candidates()[::-1]}
  for text, compiled in COMPILED.items():
    one = layout(text)
    if compiled < 15:
      best = kept[tuple(one.mesh.items()), one.remat]
      assert best.accumulate <= one.accumulate


def test_estimated_seconds_rank_layouts_as_their_exchanges_do():
  pod = topology.parse("v5e-64")
  of = lambda text: layouts.seconds(layout(text), sizes(), pod)
  compute = sizes().flops["full"] / (64 * 197e12)
  # Weights of 7.28e9 values in bfloat16 cross two links thrice for each micro-batch.
  gathered = 8 * 3 * 2 * 7.277720576e9 * (63 / 64) / 100e9
  assert of("fsdp=64 accumulate=8 remat=full") == pytest.approx(compute + gathered)
  # Six sums of each layer's result for 64 rows of a chip cross one link.
  summed = 6 * 32 * 64 * 2048 * 4096 * 2 / 50e9
  gathered = 8 * 3 * 7.277720576e9 * (31 / 32) / 100e9
  found = of("fsdp=32 tensor=2 accumulate=8 remat=full")
  assert found == pytest.approx(compute + gathered + summed)
  assert of("data=2 fsdp=32 accumulate=8 remat=dots") < of(
    "data=2 fsdp=32 accumulate=8 remat=full"
  )


def test_what_cannot_fit_is_not_compiled():
  whole = layout("data=64 accumulate=32 remat=full")
  assert layouts.memory(whole, sizes()) > 100e9
  assert all(one.mesh["fsdp"] * one.mesh["tensor"] >= 16 for one in candidates())
  assert candidates("v5e-4") == []


def test_what_a_policy_keeps_takes_memory():
  of = lambda text: layouts.memory(layout(text), sizes())
  found = [of(f"fsdp=64 accumulate=8 remat={policy}") for policy in layouts.KEPT]
  assert list(layouts.KEPT) == ["full", "attention", "dots"] and found == sorted(found)
  input_of_layers = 4 * 2048 * 32 * 4096 * 2  # four rows of a chip, in bfloat16
  assert found[1] - found[0] == pytest.approx(input_of_layers)
  more = [of(f"fsdp=32 tensor=2 accumulate=16 remat={p}") for p in layouts.KEPT]
  assert more[1] - more[0] == pytest.approx(input_of_layers / 2)


def test_rows_of_any_length_have_layouts():
  short = dataclasses.replace(sizes(), length=192)
  found = layouts.candidates(topology.parse("v5e-64"), short)
  assert found and {one.mesh["sequence"] for one in found} == {1}


def test_data_spans_the_slices():
  found = candidates("v5e-64", 2)
  assert found and {one.mesh["data"] % 2 for one in found} == {0}


def test_the_frontier_keeps_what_nothing_beats():
  points = [(1.0, 9.0), (2.0, 5.0), (3.0, 6.0), (4.0, 1.0), (2.0, 7.0)]
  assert layouts.frontier(points) == {0, 1, 3}
  assert layouts.frontier([]) == set()


def made(seconds: float, total: float, layout: str) -> dict:
  return {
    "program": "pretrain", "topology": "v5e:8x8", "chips": 64, "mesh": {"fsdp": 64},
    "layout": layout, "fits": True, "examples": 2048, "accumulate": 8, "remat": "full",
    "memory_per_chip": {
      "arguments": 10**9, "temporaries": total - 10**9, "total": total,
      "capacity": 16 * 10**9,
    },
    "flops_per_step": {"counted": 4e14},
    "collective_bytes": {"all-gather": 2e10},
    "predicted": {"seconds": seconds, "tokens_per_second": 1e5, "mfu": 0.4},
    "on_frontier": layout == "fsdp=64",
  }  # fmt: skip


def test_the_page_shades_the_frontier_and_names_misfits():
  sweep = {
    "program": "pretrain",
    "topology": "v5e:8x8",
    "layouts": [
      made(2.0, 5e9, "fsdp=64"),
      made(3.0, 6e9, "fsdp=32 tensor=2"),
      {"layout": "data=64", "fits": False},
      {"layout": "fsdp=8", "fits": False, "failed": "out of <paper>"},
    ],
  }
  sweep["layouts"].append(draft := made(0, 4e9, "fsdp=16 data=4"))
  del draft["predicted"], draft["on_frontier"]
  draft["seconds_at_least"] = 1.5
  page = layout_sweep.page(sweep)
  assert page.count("<tr class=best>") == 1 and page.count("<circle") == 3
  assert page.count("fill=none stroke=#aab") == 1 and "<td>&ge; 1.500" in page
  assert "<td>data=64<td>does not fit" in page.replace("</td>", "")
  assert "<td>failed: out of &lt;paper&gt;</td>" in page


# Floors and full times of drafts by number; the others do not fit.
SECONDS = {1: 9.0, 2: 1.0, 3: 4.0, 5: 2.0, 6: 8.0, 7: 3.0, 9: 7.0, 10: 5.0}
POLICY = {1: "dots", 2: "dots", 5: "dots", 3: "full", 7: "full", 10: "full"}
WHOLE = {2: (6.0, 5e9), 5: (5.0, 9e9), 7: (5.5, 8e9), 3: (7.0, 4e9), 9: (6.5, 6e9)}


def sweep_of(monkeypatch, planned, limit: int) -> list[dict]:
  """A sweep of stage 2 on v5e-64 by a made-up `_plan(number, asked)`."""
  monkeypatch.setattr(layout_sweep, "sizes_of", lambda config: sizes())
  numbers = {str(one): number for number, one in enumerate(candidates())}
  fake = lambda one, asked: planned(numbers[str(one)], asked) | {"layout": str(one)}
  monkeypatch.setattr(layout_sweep, "_plan", fake)
  pod, config = topology.parse("v5e-64"), pretrain.get_config("7b")
  return layout_sweep.run(config, pod, limit, ["--cache=x"])["layouts"]


def draft(seconds: float, total: float) -> dict:
  plan = made(0.0, total, "") | {"seconds_at_least": 0.5, "seconds_in_turn": seconds}
  plan["remat"] = "attention"
  del plan["predicted"], plan["on_frontier"]
  return plan


def misfit(used: float) -> dict:
  over = {"used": used, "capacity": 16e9, "over": used - 16e9}
  return {"fits": False, "misfit": over | {"remedies": []}}


def test_the_best_drafts_of_each_policy_are_planned_in_full(monkeypatch):
  asked_for = []

  def planned(number, asked):
    asked_for.append((number, tuple(asked)))
    if "--draft" not in asked:
      seconds, total = WHOLE[number]
      return made(seconds, total, "") | {"on_frontier": None}
    if number not in SECONDS:
      return misfit(20e9)
    return draft(SECONDS[number], 5e9) | {"remat": POLICY.get(number, "attention")}

  swept = sweep_of(monkeypatch, planned, 12)
  drafts = [number for number, asked in asked_for if asked == ("--cache=x", "--draft")]
  whole = [number for number, asked in asked_for if asked == ("--cache=x",)]
  assert sorted(drafts) == list(range(12)) and sorted(whole) == [2, 3, 5, 7, 9]
  assert len(asked_for) == 17 and len(swept) == 12
  best = {n for n, plan in enumerate(swept) if plan.get("on_frontier")}
  assert best == {2, 3, 5, 7}  # 9 is slower and larger than 2
  assert all("predicted" in swept[n] for n in WHOLE)
  assert all("predicted" not in swept[n] for n in set(range(12)) - set(WHOLE))


def test_one_broken_compilation_does_not_end_a_sweep(monkeypatch):
  broken = {"fits": False, "failed": "the compiler broke"}

  def planned(number, asked):
    if number == 1:
      return broken
    return draft(1.0, 5e9) if "--draft" in asked else made(2.0, 5e9, "")

  swept = sweep_of(monkeypatch, planned, 4)
  assert [plan["fits"] for plan in swept] == [True, False, True, True]
  with pytest.raises(ValueError, match="no layout could be compiled; the compiler bro"):
    sweep_of(monkeypatch, lambda number, asked: broken, 3)


def test_a_sweep_in_which_nothing_fits_says_what_to_do(monkeypatch):
  planned = lambda number, asked: misfit((20 - number) * 1e9)
  text = r"none of 3 layouts fits v5e:8x8; .* needs the least, 18.00 GB of 16.00 GB;"
  with pytest.raises(ValueError, match=text + " choose a larger pod"):
    sweep_of(monkeypatch, planned, 3)


def test_the_command_of_a_layout_is_made_of_values():
  one = layout("fsdp=32 tensor=2 accumulate=8 remat=dots")
  asked = ["--config=configs/pretrain.py:7b", "--config.accumulate=4", "--slices=1"]
  found = layout_sweep.command(one, asked, "out.json")
  assert found[1:3] == ["-m", "lavit_jax.plan"] and found[3:6] == asked
  assert found[6:] == [
    "--config.mesh.data=1", "--config.mesh.fsdp=32", "--config.mesh.sequence=1",
    "--config.mesh.tensor=2", "--config.accumulate=8", "--config.remat=dots",
    "--json=out.json",
  ]  # fmt: skip


SPELLINGS = (
  ["--sweep", "2", "--json", "x.json", "--config", "configs/pretrain.py:7b"],
  ["-sweep=2", "--json=x.json", "-config=configs/pretrain.py:7b"],
)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_sweep_asks_by_values_however_its_flags_are_spelt(spelling):
  script = (
    "import sys; from absl import app; from lavit_jax import plan, train\n"
    "from lavit_jax.planning import layout_sweep\n"
    "said = lambda config, pod, limit, asked: sys.exit(f'{limit} {asked}')\n"
    "layout_sweep.run = said\n"
    "app.run(plan.main, flags_parser=train.parse_flags)"
  )
  own = ["--topology", "v5litepod-64", "--config.batch_size", "1024", "--cache", "kept"]
  done = subprocess.run(
    [sys.executable, "-c", script, *spelling, *own, "--config.data.train=a b"],
    capture_output=True,
    text=True,
  )
  assert done.stderr.strip() == (
    "2 ['--config=configs/pretrain.py:7b', '--config.batch_size=1024',"
    " '--config.data.train=a b', '--topology=v5e:8x8', '--slices=1', '--cache=kept']"
  )


def test_available_memory_is_what_linux_says():
  text = "MemTotal: 24000000 kB\nMemFree: 1 kB\nMemAvailable:   10000000 kB\n"
  assert layout_sweep._available_memory(text) == 10_240_000_000


def test_two_plans_stand_side_by_side():
  other = made(1.0, 6e9, "b") | {
    "mesh": {"data": 1, "fsdp": 32, "tensor": 2}, "accumulate": 1, "remat": "dots",
    "collective_bytes": {"all-gather": 1e10, "all-reduce": 3e10},
  }  # fmt: skip
  text = summary.comparison(made(2.0, 5e9, "a"), other)
  lines = {line[:34].strip(): line[34:].split() for line in text.splitlines()[3:]}
  assert lines["predicted (s)"] == ["2.000", "1.000", "0.500"]
  assert lines["all-gather (GB)"] == ["20.000", "10.000", "0.500"]
  assert lines["all-reduce (GB)"] == ["0.000", "30.000", "-"]
  assert text.splitlines()[:2] == [
    "a  pretrain on v5e:8x8: fsdp=64, 2048 rows or pictures in 8 micro-batches, remat"
    " full",
    "b  pretrain on v5e:8x8: fsdp=32 tensor=2, 2048 rows or pictures at once, remat"
    " dots",
  ]


def test_a_plan_that_does_not_fit_compares_what_it_has():
  whole = made(2.0, 5e9, "a")
  broken = {name: whole[name] for name in whole if not name.startswith(("mem", "coll"))}
  broken |= misfit(20e9) | {"flops_per_step": {"analytic": 5e14}}
  del broken["predicted"]
  whole["flops_per_step"]["analytic"] = 4e14
  lines = summary.comparison(whole, broken).splitlines()
  assert lines[1].endswith(", does not fit")
  assert [line[:34].strip() for line in lines[3:]] == [
    "chips", "memory total (GB)", "FLOPs analytic (T)"
  ]  # fmt: skip
  assert lines[4].split()[-3:] == ["5.000", "20.000", "4.000"]


def test_compare_needs_two_plans(tmp_path):
  path, swept, text = (tmp_path / name for name in ("a.json", "b.json", "c.txt"))
  path.write_text(json.dumps(made(2.0, 5e9, "a")))
  swept.write_text(json.dumps({"program": "pretrain", "layouts": []}))
  text.write_text("<html>")
  with pytest.raises(ValueError, match="expects two files .* give a.json,b.json"):
    plan._pair([str(path)])
  with pytest.raises(ValueError, match=r"of which \['missing'\] do not exist"):
    plan._pair([str(path), "missing"])
  for other in (swept, text):
    with pytest.raises(ValueError, match=f"{other} holds none; write it with --json"):
      plan._pair([str(path), str(other)])
  assert plan._pair([str(path)] * 2)[0]["chips"] == 64


def test_a_pod_too_small_for_any_layout_is_refused():
  config = pretrain.get_config("7b")
  with pytest.raises(ValueError, match="no layout of v5e:2x2 holds the state"):
    layout_sweep.run(config, topology.parse("v5e-4"), 30, [])


def test_a_stage_without_a_filter_is_refused():
  with pytest.raises(
    ValueError, match="to sweep, got 'pixel_decoder'; plan its layouts"
  ):
    layout_sweep.sizes_of(pixel_decoder.get_config("sd15"))
