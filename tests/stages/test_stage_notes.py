"""What a stage says and refuses, without a model: phases, figures, sheets, cards."""

import json

import pytest
from PIL import Image, ImageDraw

from lavit_jax.stages import pretrain, samples, visual_tokenizer
from lavit_jax.weights import model_card
from lavit_jax.weights.part import Part


def test_a_run_too_short_for_its_codebook_is_refused():
  visual_tokenizer.check_phases(2, 1)
  for steps in (20, 600):
    with pytest.raises(ValueError, match="never be trained; give --config.phase_a_st"):
      visual_tokenizer.check_phases(steps, 600)


def test_kinds_without_data_have_no_figures():
  sums = {f"{name}_{what}": 0.0 for name in pretrain.KINDS for what in ("sum", "count")}
  first = pretrain.KINDS[0]
  sums |= {f"{name}_correct": 0.0 for name in pretrain.KINDS}
  sums |= {f"{first}_sum": 6.0, f"{first}_count": 4.0, f"{first}_correct": 1.0}
  expected = {f"loss_{first}": 1.5, f"accuracy_{first}": 0.25}
  assert pretrain.held_out_means(sums) == expected


def test_long_captions_end_before_the_drawing():
  pen = ImageDraw.Draw(Image.new("RGB", (8, 8)))
  for said in ("word " * 200, "w" * 500, "W" * 500):
    box = pen.multiline_textbbox((0, 0), samples.fitting(f"model {said}"))
    assert box[2] <= samples.TEXT_WIDTH - 8 and box[3] <= 46
  assert samples.fitting("true  a red circle") == "true  a red circle"


def test_a_card_tells_no_figures_of_another_stage(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"stage": "pretrain"}))
  line = {"kind": "eval", "step": 6, "loss_text": 2.5}
  (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
  card = model_card.text("diffusion", tmp_path / "model", {"unet": Part({}, {})})
  assert "loss_text" not in card and "did not train these parts" in card
  card = model_card.text("llama", tmp_path / "model", {"llama": Part({}, {})})
  assert "held-out loss_text: 2.5" in card
