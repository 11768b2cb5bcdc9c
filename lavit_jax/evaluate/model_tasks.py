"""What `evaluate_model` asks of a model: a prediction per record, figures over all.

Every function returns (predict, summarize): entries of an annotation file to JSON
values, and entries with their values to figures. A value depends on its record alone,
so the work can be split in any way.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from lavit_jax.data import shards
from lavit_jax.evaluate import (
  annotations,
  captions,
  frechet,
  inception_features,
  lemmas,
  vqa,
  vqa_protocol,
)
from lavit_jax.generate.beam import Beams
from lavit_jax.generate.logits import Settings
from lavit_jax.inference import batching, frozen_parts, pictures, ranking
from lavit_jax.inference.api import LaVIT

CHUNK = 256  # pictures in memory at a time

Made = tuple[Callable[[list[dict]], list[Any]], Callable[[list[dict], list[Any]], dict]]


def _paths(folder: str, entries: Sequence[dict]) -> list[pathlib.Path]:
  return [annotations.picture_path(folder, entry) for entry in entries]


def captioning(model: LaVIT, folder: str, prompt: str, target: str, truth: str) -> Made:
  """Captions of pictures; figures by pycocoevalcap when `truth` is given."""

  def predict(entries):
    return model.caption(_paths(folder, entries), prompt)

  def summarize(entries, said):
    found = {entry["id"]: text for entry, text in zip(entries, said)}
    path = pathlib.Path(target) / "caption-coco.json"
    shards.write_json(path, captions.results(found))
    lengths = [len(text.split()) for text in said]
    figures = {"captions": len(said), "words_per_caption": float(np.mean(lengths))}
    return figures | (captions.score(path, truth) if truth else {})

  return predict, summarize


def answering(
  model: LaVIT, folder: str, protocol: str, with_lemmas: bool, how: Settings | Beams
) -> Made:
  """Answers to questions, decoded by `how`; the figure is the accuracy in percent."""
  lemmatize = lemmas.load_lemmatizer() if with_lemmas else lambda text: text
  ask = functools.partial(model.answer, how=how)

  def predict(entries):
    questions = [entry["question"] for entry in entries]
    shown = _paths(folder, entries)
    found = vqa_protocol.predict(ask, protocol, shown, questions)
    return [lemmatize(text) for text in found]

  def summarize(entries, said):
    credit = [vqa_protocol.score(protocol, *pair) for pair in zip(said, entries)]
    return {"accuracy": vqa.overall(credit), "questions": len(credit)}

  return predict, summarize


def drawing(
  model: LaVIT,
  folder: str,
  target: str,
  ranker: str,
  inception: str,
  n: int,
  **how: Any,
) -> Made:
  """Drawings of texts, the best of n kept in TARGET/drawings.

  `ranker` is the folder of `ranking.scorer_of`, `inception` the file of
  `inception_features.extractor` or empty, `how` the arguments of `LaVIT.draw`.
  Figures: the mean score of the kept drawings beside that of shuffled texts, and the
  Frechet distance between mean encoder features of drawn and true pictures.
  """
  drawn = pathlib.Path(target) / "drawings"
  scorer, extract = ranking.scorer_of(model, ranker), None
  if inception:  # before hours of drawing: a wrong file ends it here
    extract = inception_features.extractor(inception, model.batch_size)

  def predict(entries):
    drawn.mkdir(parents=True, exist_ok=True)
    for path in _paths(folder, entries):  # a bad one is named before hours of drawing
      pictures.stack(path, model.image_size)
    texts = [entry["text"] for entry in entries]
    best = ranking.keep_best(model.draw(texts, n=n, **how), texts, scorer)
    for entry, (picture, _) in zip(entries, best):
      picture.save(drawn / f"{entry['id']:08d}.png")
    return [score for _, score in best]

  def summarize(entries, said):
    files = [drawn / f"{entry['id']:08d}.png" for entry in entries]
    other = [entry["text"] for entry in entries[1:] + entries[:1]]
    shuffled = scorer(files, other)
    true = _paths(folder, entries)
    sides = (mean_features(model, paths) for paths in (files, true))
    figures = {
      "clip_score": float(np.mean(said)),
      "clip_score_of_other_texts": float(np.mean(shuffled)),
      "frechet_of_encoder_features": frechet.distance(*sides),
      "drawings": len(said),
    }
    if extract is not None:
      with Image.open(files[0]) as first:
        side = first.width  # true pictures are squashed to the size of drawn ones
      sides = (extract(paths, side) for paths in (files, true))
      figures["fid"] = frechet.distance(*sides)
    return figures

  return predict, summarize


def patch_features(model: LaVIT, images: pictures.Picture | Sequence) -> np.ndarray:
  """Raw patch features float32[N, P, D] of pictures."""
  pixels = pictures.stack(images, model.image_size)
  coder = model.coder
  run = functools.partial(frozen_parts.features, coder.tower, coder.frozen)
  with jax.set_mesh(model.mesh):
    found = batching.in_batches(run, model.batch_size, pixels)
  return found.astype(np.float32)


def mean_features(model: LaVIT, paths: Sequence[pathlib.Path]) -> np.ndarray:
  """Mean patch feature float32[N, D] of each picture."""
  parts = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
  return np.concatenate([patch_features(model, part).mean(axis=1) for part in parts])


def tokenizing(model: LaVIT, folder: str) -> Made:
  """Figures of the visual tokenizer over pictures."""
  size, rows = model.coder.model.num_patches, model.coder.model.num_codes

  def predict(entries):
    pixels = pictures.stack(_paths(folder, entries), model.image_size)
    found = model.tokenize(pixels)
    rebuilt = model.decode_features([own["codes"] for own in found])
    features = patch_features(model, pixels)
    cosine = _cosine(features, rebuilt).mean(axis=1)
    constant = _cosine(features, features.mean(axis=1, keepdims=True)).mean(axis=1)
    return [
      {"codes": own["codes"].tolist(), "cosine": float(c), "of_mean": float(m)}
      for own, c, m in zip(found, cosine, constant)
    ]

  def summarize(entries, said):
    used = np.concatenate([np.asarray(one["codes"], int) for one in said])
    share = np.bincount(used, minlength=rows) / max(len(used), 1)
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    mean = lambda name: float(np.mean([one[name] for one in said]))
    return {
      "pictures": len(said),
      "kept_share": len(used) / (size * len(said)),
      "codes_used": float((share > 0).mean()),
      "code_perplexity": float(np.exp(entropy)),
      "reconstruction_cosine": mean("cosine"),
      "cosine_of_own_mean": mean("of_mean"),
    }

  return predict, summarize


def _cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
  return (x * y).sum(-1) / np.maximum(norms, 1e-12)
