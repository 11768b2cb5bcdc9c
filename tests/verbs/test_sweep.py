"""Measured mesh layouts, on eight devices of the CPU."""

import json

import ml_collections
import pytest
import toy_run

from configs import visual_tokenizer
from lavit_jax.models import visual_tokenizer as model
from lavit_jax.models import vit
from lavit_jax.planning import measured_sweep

pytestmark = pytest.mark.usefixtures("compile_fast")


def test_all_layouts_of_eight_devices():
  found = [measured_sweep.name_of(layout) for layout in measured_sweep.layouts(8)]
  assert len(found) == len(set(found)) == 20
  assert found[0] == "1x1x1x8" and "2x2x1x2" in found


def test_a_layout_is_read_and_named():
  assert measured_sweep.name_of(measured_sweep.parse("1x8x1x2")) == "1x8x1x2"
  with pytest.raises(ValueError, match="expected a layout data x fsdp x sequence x"):
    measured_sweep.parse("8x1")


def test_the_table_has_the_fastest_first():
  ran = dict(peak_bytes=None, compiled_bytes=2e9, estimated_bytes=1e9)
  rows = [
    dict(layout="8x1x1x1", seconds=0.2, **ran),
    dict(layout="1x1x1x8", reason="does not divide"),
    dict(layout="1x8x1x1", seconds=0.1, **ran | dict(predicted_seconds=0.09)),
  ]
  lines = measured_sweep.table(rows).splitlines()
  assert lines[2] == "| 1x8x1x1 | 0.1000 | 0.0900 | 2.000 | 1.000 |"
  assert lines[3].startswith("| 8x1x1x1 | 0.2000 |  |")
  assert lines[4] == "| 1x1x1x8 | does not divide | | | |"


@pytest.fixture
def config(monkeypatch):
  """Stage 1 at the tiniest sizes, which stand for the tiny variant."""
  monkeypatch.setitem(vit.VARIANTS, "tiny", toy_run.VIT)
  monkeypatch.setitem(model.VARIANTS, "tiny", toy_run.TOKENIZER)
  made = visual_tokenizer.get_config("tiny")
  made.update(dict(batch_size=8, unroll=1))
  made.model = ml_collections.ConfigDict(toy_run.TOKENIZER)
  return made


def test_real_steps_are_measured_on_each_layout(config, tmp_path):
  chosen = [measured_sweep.parse(text) for text in ("1x8x1x1", "2x2x1x2", "4x4x1x1")]
  rows = measured_sweep.run(config, chosen, 2, "", str(tmp_path))
  for row in rows[:2]:
    assert row["seconds"] > 0 and row["compiled_bytes"] > 1e5
    assert row["tokens_per_second"] > 0 and row["estimated_bytes"] > 1e5
  assert "16" in rows[2]["reason"]
  assert json.loads((tmp_path / "sweep.json").read_text()) == rows
  assert "2x2x1x2" in (tmp_path / "sweep.md").read_text()
  assert (tmp_path / "sweep.png").read_bytes()[:4] == b"\x89PNG"
