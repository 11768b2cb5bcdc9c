"""Two runs on one page: what is shown of them, and what is no run."""

import json
import re

import fake_findings
import numpy as np
import pytest
from PIL import Image

from lavit_jax.training import comparison


@pytest.fixture
def runs(tmp_path):
  """Two quickstarts; the second has another rate, a stage less and no report."""
  for name, stages in (("a", ("contrastive", "pretrain")), ("b", ("pretrain",))):
    for stage in stages:
      fake_findings.write_run(tmp_path / name / stage, stage)
    config = tmp_path / name / "pretrain/config.json"
    given = json.loads(config.read_text())
    given["optimizer"] = {"rate": 1e-3 if name == "a" else 2e-3, "kind": "<b>"}
    config.write_text(json.dumps(given))
    pictures = tmp_path / name / "pretrain/pictures"
    pictures.mkdir()
    for step in (90, 200):
      noise = np.random.default_rng(step).integers(0, 256, (9, 99, 3), np.uint8)
      Image.fromarray(noise).save(pictures / f"samples-{step:06d}.png")
  report = {"drawn": {"value": 0.5, "chance": 0.1, "n": 3}, "split": "validation"}
  (tmp_path / "a/report.json").write_text(json.dumps(report))
  return tmp_path / "a", tmp_path / "b"


def test_what_differs_and_what_was_drawn_is_shown(runs):
  html = comparison.document(comparison.read(runs))
  table = html[html.index('id="configs"') :]
  assert "optimizer.rate" in table and "0.002" in table
  assert "optimizer.kind" not in table and "batch_size" not in table
  assert html.count("samples-000200.png</figcaption>") == 2
  assert "samples-000090.png" not in html
  assert "drawn" in html and "pretrain: loss text" in html
  assert len(html) < 3_000_000
  loaded = re.findall(r'(?:src|href)="([^"]{4})', html)
  assert {*loaded} <= {"data", "#pic", "#fig", "#cur", "#con"}


def test_runs_are_named_by_what_differs_in_their_paths(runs):
  names = lambda *found: [run.name for run in comparison.read(found)]
  a, b = runs
  assert names(a, b) == ["a", "b"]
  assert names(a / "pretrain", b / "pretrain") == ["a/pretrain", "b/pretrain"]


@pytest.mark.parametrize("count", [0, 1, 7])
def test_too_few_or_many_runs_are_refused(runs, count):
  with pytest.raises(ValueError, match=f"expected 2 to 6 runs, got {count}"):
    comparison.read([runs[0]] * count)


def test_what_is_no_run_is_named(runs):
  with pytest.raises(ValueError, match="expected different runs"):
    comparison.read([runs[0], runs[0]])
  empty = runs[0] / "pretrain/pictures"
  with pytest.raises(ValueError, match=f"expected a run in {empty}"):
    comparison.read([runs[0], empty])
