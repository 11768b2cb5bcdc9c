"""Findings of a model that never was: truths with a share of them spoiled."""

import json

import numpy as np

from lavit_jax.data import images
from lavit_jax.toy import (
  findings,
  language_figures,
  length_figures,
  patch_reading,
  pixel_figures,
  prepared,
  scenes,
  tokenizer_figures,
  world,
)

SIDE = 64


def logits_of(color, shape):
  """Sure word logits of the labels u8[N, P] (background color 8, shape 255)."""
  colors = 8.0 * np.eye(9, dtype=np.float32)[color]
  shapes = 8.0 * np.eye(6, dtype=np.float32)[np.where(shape > 5, 0, shape)]
  return {"color": colors, "shape": shapes}


def labels_of(records):
  blank = {"color": bytes([8]) * 64, "shape": bytes([255]) * 64}
  found = [record.get("labels", blank) for record in records]
  return [np.stack([np.frombuffer(f[k], np.uint8) for f in found]) for k in blank]


def pictured(count):
  """Held-out toy records that have a picture."""
  return [r for r in prepared.toy_records("test", count) if r["image"]]


def make(count=64, right=0.9):
  """Findings whose texts and drawings are right for about a share `right`."""
  rng = np.random.default_rng(0)
  records = pictured(count)
  truth = tokenizer_figures.truth_of(records)
  pixels = np.stack([images.decode(record["image"], SIDE) for record in records])
  probability = np.where(truth.objects, 0.95, 0.12).astype(np.float32)
  probability[~truth.scene] = 0.7
  keep = rng.random(probability.shape) < probability
  codes = rng.integers(0, 200, keep.shape)
  figures = tokenizer_figures.selection(keep, np.log(probability), truth)
  figures |= tokenizer_figures.codes(codes, keep, 256)
  shares = {"own": 0.93, "constant_mean": 0.62, "object_mean": 0.7, "random_mask": 0.71}
  cosines = {name: np.full(keep.shape, value) for name, value in shares.items()}
  figures |= tokenizer_figures.reconstruction(cosines, truth)
  masks = {name: keep for name in ("selector", "random", "grid", "top_n")}
  figures |= length_figures.object_patches_kept(
    masks, {name: np.full(keep.shape, 0.9) for name in masks}, truth
  )
  reading = patch_reading.read(logits_of(*labels_of(records)))
  single = patch_reading.read(
    {k: v[truth.single] for k, v in logits_of(*labels_of(records)).items()}
  )
  figures |= tokenizer_figures.reconstructed(single, single, truth)
  texts, text_figures = _texts(records, pixels, truth, right, rng)
  figures |= text_figures
  drawings, drawn_figures = _drawings(right, rng)
  figures |= drawn_figures
  figures |= {f"novel_{name}": value for name, value in drawn_figures.items()}
  rebuilt = [
    findings.grid_example(reading, row, "rebuilt", pixels[row], "", "")
    for row in range(6)
  ]
  pictures = findings.Pictures(
    pixels, truth.count, truth.objects, keep, probability, codes, 256
  )
  pixels, pixel_figures = _pixels(drawings)
  grids = drawings, drawings[:3], rebuilt
  return findings.Findings(figures | pixel_figures, pictures, *texts, *grids, pixels)


def _pixels(drawings):
  """Perfect drawings of the requests, as if painted."""
  shown = [
    pixel_figures.PixelExample(d.title, d.image, d.image, f"read: {d.read}", i % 3 > 0)
    for i, d in enumerate(drawings)
  ]
  right = {name: np.arange(8) > 1 for name in ("color", "shape", "both", "cell")}
  figures = pixel_figures.scene_figures("drawn", right, "requests")
  figures |= pixel_figures.scene_figures(
    "reconstructed", right, "scenes", true_pictures=1
  )
  names = ("true pictures", "true features", "true codes", "drawn codes")
  links = {name: right for name in names}
  figures["drawn_all_three"] = pixel_figures.link_figure(
    links, {name: 0.8 for name in names}, "requests"
  )
  digits = np.arange(10)
  figures["drawn_digit_accuracy"] = pixel_figures.digit_figure(
    digits, digits, 0.97, 0.9
  )
  sweep = {1.0: (0.5, 0.6), 2.0: (0.8, 0.9)}
  return pixel_figures.PixelFindings(shown, shown[:2], shown, sweep), figures


def _texts(records, pixels, truth, right, rng):
  captions = [
    entry["turns"][0][1]
    for record in records
    for entry in record["texts"]
    if entry["task"] == "caption"
  ]
  spoil = lambda text, wrong: text if rng.random() < right else wrong
  said = [spoil(caption, "a <b>red</b> star") for caption in captions]
  said[0] = "a <b>red</b> star"
  questions = language_figures.questions_of(records, 60)
  answers = [spoil(question.answer, "red") for question in questions]
  others = [rng.choice(["yes", "no", "two", "red"]) for _ in questions]
  chosen, written = truth.single, np.flatnonzero(~truth.scene)
  truths = lambda rows: [truth.truths[i] for i in rows]
  one = language_figures.caption_figure(
    [said[i] for i in chosen], truths(chosen), False
  )
  figures = language_figures.answer_figures(questions, answers, others)
  figures["caption_color_shape"] = figures["novel_caption_color_shape"] = one
  figures["digit_caption_accuracy"] = language_figures.digit_figure(
    [said[i] for i in written], truths(written)
  )
  shown = [
    findings.TextExample(pixels[i], "", captions[i], said[i], said[i] == captions[i])
    for i in (0, 1, 2, 3, 7)
  ]
  asked = [
    findings.TextExample(pixels[q.picture], q.text, q.answer, a, a == q.answer)
    for q, a in zip(questions[:9], answers)
  ]
  return (shown, asked), figures


def _drawings(right, rng):
  asked = language_figures.requests(False, 42)
  wanted = [scenes.patch_labels(world.Scene((r.drawn,), "dark")) for r in asked]
  rows = [i if rng.random() < right else (i + 1) % 42 for i in range(42)]
  color, shape = (np.stack([wanted[i][k] for i in rows]) for k in ("color", "shape"))
  reading = patch_reading.read(logits_of(color, shape))
  figures = language_figures.drawn_figures(asked, reading, [5] * 42, False)
  words = lambda color, shape, cell: f"{color} {shape}, cell {cell}"
  examples = []
  for row, request in enumerate(asked[:8]):
    picture = scenes.draw(world.Scene((request.drawn,), "bright")).image
    facts = words(*request.expected), words(*reading.names(row))
    examples.append(
      findings.grid_example(reading, row, request.prompt, picture, *facts, range(5))
    )
  return examples, figures


def write_run(folder, stage, steps=200):
  """A run directory with the metrics and the config that the report reads."""
  folder.mkdir(parents=True)
  lines = []
  for step in range(10, steps + 1, 10):
    line = {"step": step, "kind": "train", "time": 1.0, "loss": 3 * 0.99**step}
    rest = {
      "accuracy": 1 - 0.99**step,
      "cosine": 0.9,
      "kept_share": 0.33,
      "retrieval_at_1": 0.5,
    }
    lines.append(line | rest | {"examples_per_second": 300.0 + step})
  lines.append({"step": steps, "kind": "eval", "time": 1.0, "loss_text": 0.2})
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (folder / "metrics.jsonl").write_text(text)
  config = {"stage": stage, "batch_size": 64, "num_steps": steps}
  config |= {"phase_a_steps": 100} if stage == "visual_tokenizer" else {}
  (folder / "config.json").write_text(json.dumps(config))
