"""Draws with a finished toy model and has its pixels read by independent networks.

requests, held-out pictures -> codes -> pixels -> read color, shape, cell, digit
-> figures, a sweep over guidance, and examples for the report

Each link between a request and its pixels is measured alone: the pixels of true
features lose by the pixel decoder, those of true codes by the visual tokenizer, too,
and those of drawn codes by the language model as well.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from lavit_jax.data import images, records
from lavit_jax.evaluate.figures import mean
from lavit_jax.generate import tasks
from lavit_jax.inference import api, batching, frozen_parts, pixel_parts
from lavit_jax.toy import (
  digits,
  language_figures,
  pixel_figures,
  pixel_reading,
  scene_texts,
  scenes,
  tokenizer_figures,
  world,
)

READER_RECORDS = 4000  # training records behind the classifiers
SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Limits:
  """Cases per figure.

  Attributes:
    drawings: requests for one object.
    digits: requests for a digit, each in five wordings, and reconstructed digits.
    reconstructions: scenes with one object.
    guidance: weights of the sweep, the first is none.
    sweep: reconstructions per weight.
    reader_steps: optimizer steps of each classifier.
  """

  drawings: int = 126
  digits: int = 50
  reconstructions: int = 128
  guidance: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 5.0)
  sweep: int = 64
  reader_steps: int = 500


def study(
  model: api.LaVIT,
  train_folder: str,
  test: Any,
  asked: Sequence[language_figures.Request],
  codes: Sequence[np.ndarray],
  limits: Limits,
) -> tuple[dict[str, dict], pixel_figures.PixelFindings]:
  """Evaluates the pixels of a model.

  Args:
    model: with a pixel decoder.
    train_folder: prepared training records, on which the classifiers learn.
    test: the held-out split, a `study.Split`.
    asked: requests for one object.
    codes: what the language model drew for each.
    limits: cases per figure.

  Returns:
    Figures and examples.
  """
  readers = _readers(train_folder, model.image_size, limits.reader_steps)
  single = test.truth.single
  expected = tokenizer_figures.single_objects(test.truth)
  true = pixel_figures.hits(pixel_reading.read(readers, test.image[single]), expected)
  shown = single[: limits.reconstructions]
  from_features = _paint_features(model, test.image[shown])
  rebuilt, facts = _paint_again(model, test.image[shown]), expected[: len(shown)]
  reading = pixel_reading.read(readers, rebuilt)
  again_right = pixel_figures.hits(reading, facts)
  figures = pixel_figures.scene_figures(
    "reconstructed",
    again_right,
    "scenes with one object",
    true_pictures=mean(true["both"] & true["cell"]),
  )
  links = {
    "true pictures": true,
    "true features": pixel_figures.hits(
      pixel_reading.read(readers, from_features), facts
    ),
    "true codes": again_right,
  }
  again = _examples(
    ["one object"] * len(facts), test.image[shown], rebuilt, reading, facts
  )
  sweep = _sweep(model, readers, test.image[shown[: limits.sweep]], facts, limits)
  asked, codes = asked[: limits.drawings], codes[: limits.drawings]
  drawn = _paint(model, codes)
  reading, facts = pixel_reading.read(readers, drawn), [r.expected for r in asked]
  right = pixel_figures.hits(reading, facts)
  of = "requests for one object in one cell"
  figures |= pixel_figures.scene_figures("drawn", right, of)
  links["drawn codes"] = right
  size = model.image_size
  wanted = [
    scenes.draw(world.Scene((r.drawn,), "bright"), size).image for r in asked[:SHOWN]
  ]
  titles = [request.prompt for request in asked]
  drawings = _examples(titles, wanted, drawn, reading, facts)
  figure, digit_examples, by_link = _digits(model, readers, test, limits.digits)
  figures["drawn_digit_accuracy"] = figure | decoding_of(model)
  figures["drawn_all_three"] = pixel_figures.link_figure(links, by_link, of)
  findings = pixel_figures.PixelFindings(drawings, digit_examples, again, sweep)
  return figures, findings


def decoding_of(model: api.LaVIT) -> dict[str, float]:
  """What the model's own decoding of drawings says, to stand beside their figures."""
  return {name: model.defaults["draw"][name] for name in ("guidance", "temperature")}


def _readers(folder: str, size: int, steps: int) -> pixel_reading.Readers:
  """Classifiers trained on true pictures of the training split."""
  prepared = records.Records(folder)
  chosen = np.flatnonzero(prepared.image)[:READER_RECORDS]
  found = [prepared[int(i)] for i in chosen]
  pixels = np.stack([images.decode(record["image"], size) for record in found])
  return pixel_reading.train(pixels, [record["truth"] for record in found], steps)


def _paint(model: api.LaVIT, codes, sampling=None) -> np.ndarray:
  """Pictures uint8[N, H, W, 3] of codes, at the encoder's size."""
  size = (model.image_size, model.image_size)
  return np.stack([np.asarray(p) for p in model.paint(codes, size, sampling)])


def _paint_again(model: api.LaVIT, pictures: np.ndarray, sampling=None) -> np.ndarray:
  return _paint(model, [found["codes"] for found in model.tokenize(pictures)], sampling)


def _paint_features(model: api.LaVIT, pictures: np.ndarray) -> np.ndarray:
  """Pictures uint8[N, H, W, 3] drawn from the true features of uint8[N, H, W, 3]."""
  coder, decoder = model.coder, model.pixel_decoder
  size = (model.image_size, model.image_size)

  def run(pixels, names):
    features = frozen_parts.features(coder.tower, coder.frozen, pixels)
    keys = tasks.fold_keys(jax.random.key(0), names, np.zeros_like(names))
    return pixel_parts.draw(decoder, features, keys, size, decoder.settings)

  names = np.arange(len(pictures), dtype=np.uint32)
  return batching.in_batches(run, model.batch_size, pictures, names)


def _sweep(model, readers, pictures, facts, limits) -> dict[float, tuple[float, float]]:
  """Shares read right by guidance, over reconstructions of the same pictures."""
  own, found = model.pixel_decoder.settings, {}
  for guidance in limits.guidance:
    sampling = dataclasses.replace(own, guidance=guidance)
    reading = pixel_reading.read(readers, _paint_again(model, pictures, sampling))
    right = pixel_figures.hits(reading, facts[: len(pictures)])
    found[guidance] = mean(right["both"]), mean(right["cell"])
  return found


def _digits(model, readers, test, count: int):
  """Drawn and reconstructed digits, read by the classifier of real ones.

  Returns:
    The figure, examples, and the share read right by link.
  """
  names = np.arange(count) % 10
  wording = [digits.CAPTIONS[i // 10 % len(digits.CAPTIONS)] for i in range(count)]
  prompts = [w.format(digits.NAMES[name]) for w, name in zip(wording, names)]
  drawn = _paint(model, model.draw_codes(prompts))
  read = pixel_reading.read_digits(readers, drawn)
  real = np.flatnonzero(~test.truth.scene)
  true = np.array([test.truth.truths[i]["digit"] for i in real])
  share = lambda pictures, labels: mean(
    pixel_reading.read_digits(readers, pictures) == labels
  )
  some, labels = test.image[real[:count]], true[:count]
  links = {
    "true pictures": share(test.image[real], true),
    "true features": share(_paint_features(model, some), labels),
    "true codes": share(_paint_again(model, some), labels),
    "drawn codes": mean(read == names),
  }
  figure = pixel_figures.digit_figure(
    read, names, links["true pictures"], links["true codes"]
  )
  example = lambda i: pixel_figures.PixelExample(
    prompts[i],
    test.image[real[np.flatnonzero(true == names[i])[0]]],
    drawn[i],
    f"read: {digits.NAMES[read[i]]}",
    bool(read[i] == names[i]),
  )
  present = [i for i in range(min(count, SHOWN)) if (true == names[i]).any()]
  return figure, [example(i) for i in present], links


def _examples(
  titles, wanted, drawn, reading, facts
) -> list[pixel_figures.PixelExample]:
  words = lambda color, shape, cell: (
    f"{color} {shape}, {scene_texts.POSITIONS[cell // world.CELLS][cell % world.CELLS]}"
  )
  return [
    pixel_figures.PixelExample(
      titles[i],
      wanted[i],
      drawn[i],
      f"read: {words(*reading.names(i))}",
      reading.names(i) == facts[i],
    )
    for i in range(min(len(facts), SHOWN))
  ]
