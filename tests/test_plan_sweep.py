"""Candidate layouts, the frontier, the page of a sweep, and two plans side by side."""

import json

import pytest

from configs import pixel_decoder, pretrain
from lavit_jax import plan, plan_sweep
from lavit_jax.planning import layouts, summary, topology


def candidates(chips=64, slices=1, capacity=16e9):
  sizes = plan_sweep.sizes_of(pretrain.get_config("7b"))
  return layouts.candidates(chips, slices, sizes, capacity)


def test_candidates_use_every_chip_and_divide():
  found = candidates()
  assert len(found) > 30
  for layout in found:
    mesh = layout.mesh
    assert mesh["data"] * mesh["fsdp"] * mesh["sequence"] * mesh["tensor"] == 64
    assert 2048 % (layout.accumulate * mesh["data"] * mesh["fsdp"]) == 0
  assert str(found[0]).startswith("fsdp=64 accumulate=")


def test_what_cannot_fit_is_not_compiled():
  sizes = plan_sweep.sizes_of(pretrain.get_config("7b"))
  whole = dict(data=64, fsdp=1, sequence=1, tensor=1)
  assert layouts.memory(layouts.Layout(whole, 32, "full"), sizes) > 100e9
  assert all(
    layout.mesh["fsdp"] * layout.mesh["tensor"] >= 8 for layout in candidates()
  )
  assert candidates(chips=4) == []


def test_what_a_policy_keeps_takes_memory():
  sizes = plan_sweep.sizes_of(pretrain.get_config("7b"))
  mesh = dict(data=1, fsdp=64, sequence=1, tensor=1)
  found = [
    layouts.memory(layouts.Layout(mesh, 8, policy), sizes) for policy in layouts.KEPT
  ]
  assert list(layouts.KEPT) == ["full", "attention", "dots"] and found == sorted(found)
  input_of_layers = 4 * 2048 * 32 * 4096 * 2  # four rows of a chip, in bfloat16
  assert found[1] - found[0] == input_of_layers
  split = dict(mesh, fsdp=32, tensor=2)
  more = [layouts.memory(layouts.Layout(split, 16, p), sizes) for p in layouts.KEPT]
  assert more[1] - more[0] == input_of_layers / 2


def test_data_spans_the_slices():
  assert {layout.mesh["data"] % 2 for layout in candidates(128, 2)} == {0}


def test_the_frontier_keeps_what_nothing_beats():
  points = [(1.0, 9.0), (2.0, 5.0), (3.0, 6.0), (4.0, 1.0), (2.0, 7.0)]
  assert layouts.frontier(points) == {0, 1, 3}
  assert layouts.frontier([]) == set()


def made(seconds: float, total: float, layout: str) -> dict:
  return {
    "topology": "v5e:8x8", "chips": 64, "layout": layout, "fits": True,
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
  page = plan_sweep.page(sweep)
  assert page.count("<tr class=best>") == 1 and page.count("<circle") == 3
  assert page.count("fill=none stroke=#aab") == 1 and "<td>&ge; 1.500" in page
  assert "<td>data=64<td>does not fit" in page.replace("</td>", "")
  assert "<td>failed: out of &lt;paper&gt;</td>" in page


def test_the_best_drafts_are_planned_in_full(monkeypatch):
  asked_for = []

  def planned(layout, asked, cache):
    asked_for.append(asked)
    plan = made(9.0 - layout.accumulate / 100, 5e9, str(layout))
    if asked:
      del plan["predicted"]
      plan["seconds_at_least"] = float(layout.accumulate)
    return plan | {"fits": "remat=dots" not in str(layout)}

  monkeypatch.setattr(plan_sweep, "_plan", planned)
  pod = topology.parse("v5e-64")
  swept = plan_sweep.run(pretrain.get_config("7b"), pod, 12, "")["layouts"]
  assert asked_for.count(["--draft"]) == 12 and asked_for.count([]) == 5
  whole = [plan for plan in swept if "predicted" in plan]
  rest = [plan for plan in swept if "predicted" not in plan and plan["fits"]]
  slowest = max(
    int(plan["layout"].split("accumulate=")[1].split()[0]) for plan in whole
  )
  assert all(plan["seconds_at_least"] >= slowest for plan in rest)
  assert sum(plan["on_frontier"] for plan in whole) >= 1


def test_one_broken_compilation_does_not_end_a_sweep(monkeypatch):
  def planned(layout, asked, cache):
    plan = made(2.0, 5e9, str(layout)) | {"seconds_at_least": 1.0}
    broken = {"fits": False, "failed": "the compiler broke"}
    return broken if everything or "remat=dots" in str(layout) else plan

  monkeypatch.setattr(plan_sweep, "_plan", planned)
  pod, config, everything = topology.parse("v5e-64"), pretrain.get_config("7b"), False
  swept = plan_sweep.run(config, pod, 60, "")["layouts"]
  broken = [plan for plan in swept if "failed" in plan]
  assert broken and all("remat=dots" in plan["layout"] for plan in broken)
  everything = True
  with pytest.raises(ValueError, match="no layout could be compiled; the compiler bro"):
    plan_sweep.run(config, pod, 3, "")


def test_two_plans_stand_side_by_side():
  text = summary.comparison(made(2.0, 5e9, "a"), made(1.0, 6e9, "b"))
  assert (
    "predicted (s)                                2.000           1.000    0.500"
    in text
  )


def test_compare_needs_two_files(tmp_path):
  path = tmp_path / "a.json"
  path.write_text(json.dumps(made(2.0, 5e9, "a")))
  with pytest.raises(ValueError, match="expects two files .* give a.json,b.json"):
    plan._pair([str(path)])
  with pytest.raises(ValueError, match=r"of which \['missing'\] do not exist"):
    plan._pair([str(path), "missing"])
  assert plan._pair([str(path)] * 2)[0]["chips"] == 64


def test_a_pod_too_small_for_any_layout_is_refused():
  config = pretrain.get_config("7b")
  with pytest.raises(ValueError, match="no layout of v5e:2x2 holds the state"):
    plan_sweep.run(config, topology.parse("v5e-4"), 30, "")


def test_a_stage_without_a_filter_is_refused():
  with pytest.raises(
    ValueError, match="to sweep, got 'pixel_decoder'; plan its layouts"
  ):
    plan_sweep.sizes_of(pixel_decoder.get_config("sd15"))
