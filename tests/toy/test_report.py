import html.parser
import json
import re

import fake_findings
import pytest

from lavit_jax.toy.report import headline, writer
from lavit_jax.training import page

FIGURES = (
  "kept_share",
  "kept_vs_objects_spearman",
  "keep_vs_mask_auroc",
  "codes_used",
  "code_perplexity",
  "reconstruction_cosine",
  "caption_color_shape",
  "answer_accuracy",
  "drawn_feature_color_shape",
  "drawn_feature_cell",
  "reconstructed_cell",
  "digit_caption_accuracy",
  "drawn_color_shape",
  "drawn_cell",
  "drawn_digit_accuracy",
  "reconstructed_color_shape",
  "reconstructed_pixel_cell",
)
STAGES = ("contrastive", "visual_tokenizer", "pixel_decoder", "pretrain")


class Outline(html.parser.HTMLParser):
  """Collects attributes that load something, and checks that tags close."""

  VOID = ("meta", "img", "br", "path", "rect", "circle")

  def __init__(self):
    super().__init__()
    self.sources, self.open, self.titles = [], [], []

  def handle_starttag(self, tag, attrs):
    self.sources += [v for k, v in attrs if k in ("src", "href", "srcset", "action")]
    assert tag not in ("script", "link", "iframe", "object")
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert tag in self.VOID or self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] in ("h2", "h3"):
      self.titles.append(data)


def check_report(folder):
  """Asserts that a folder holds a complete report; returns its facts."""
  facts = json.loads((folder / "report.json").read_text())
  for name in FIGURES:
    assert {"value", "chance", "n"} <= set(facts[name]), name
    assert facts[name]["n"] > 0 and facts[name]["chance"] is not None, name
  assert set(STAGES) <= set(facts["seconds"]) and set(STAGES) == set(facts["stages"])
  assert facts["machine"]["processor"] and facts["versions"]["jax"]
  text = (folder / "report.html").read_text(encoding="utf-8")
  outline = Outline()
  outline.feed(text)
  assert outline.open == []
  assert outline.sources
  inside = [s for s in outline.sources if s.startswith("#")]
  loaded = {*outline.sources} - {*inside}
  assert all(s.startswith("data:image/png;base64,") for s in loaded)
  assert all(f'id="{anchor[1:]}"' in text for anchor in inside)
  assert len(text) < 3_000_000
  assert not re.search(r"url\(|@import", page.STYLE)
  assert "has seen patch labels" in text and "latents of a fixed transform" in text
  return facts


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp("report")
  for stage in STAGES:
    fake_findings.write_run(folder / stage, stage)
  stages = {stage: str(folder / stage) for stage in STAGES}
  seconds = {"prepare": 3.0} | {stage: 60.0 for stage in STAGES}
  writer.write(folder, fake_findings.make(), stages, seconds, "validation")
  return folder


def test_report_is_complete_and_self_contained(written):
  facts = check_report(written)
  assert facts["seconds"]["total"] == 243.0
  assert facts["stages"]["pretrain"]["steps"] == 200
  assert facts["stages"]["pretrain"]["held_out"] == {"loss_text": 0.2}


def test_pictures_come_first_and_patches_lead_to_their_codes(written):
  text = (written / "report.html").read_text(encoding="utf-8")
  assert text.index("<img") < text.index("<table")
  assert text.index('class="hero"') < text.index('id="length"') < text.index('id="fig')
  code = re.search(r'href="#(code-\d+)"', text)[1]
  assert text.count(f'id="{code}"') == 1
  assert "prefers-color-scheme: dark" in text and "max-width: 640px" in text


def test_texts_of_the_model_are_escaped(written):
  text = (written / "report.html").read_text(encoding="utf-8")
  assert "a &lt;b&gt;red&lt;/b&gt; star" in text and "<b>red</b>" not in text


def test_numbers_are_shown_for_people():
  assert [headline.show(x) for x in (None, 0.98765, 12.34, 1234.5)] == [
    "–", "0.988", "12.3", "1,234",
  ]  # fmt: skip
