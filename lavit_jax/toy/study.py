"""Runs a finished toy model over held-out records and hands its outputs to evaluate/.

held-out, novel records -> codes, keep, reconstructions, captions, answers, drawings
-> figures with chance levels and baselines, and examples for the report
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from lavit_jax.data import images, items, records
from lavit_jax.inference import api, batching, frozen_parts, tokenizing
from lavit_jax.models import codebook, fixed_masks, whitening
from lavit_jax.toy import (
  digits,
  findings,
  language_figures,
  length_figures,
  patch_reading,
  patch_words,
  pixel_study,
  scene_texts,
  scenes,
  tokenizer_figures,
  world,
)

BATCH_SIZE = 64
SHOWN = 8  # examples of a kind in the report


@dataclasses.dataclass(frozen=True)
class Limits:
  """Cases per figure.

  Attributes:
    captions: captions of single-object scenes, of digits and of novel scenes each.
    questions: questions about test pictures.
    drawings: requests for seen pairs; held-out pairs get half as many.
    pixels: cases of the figures of pixels.
  """

  captions: int = 300
  questions: int = 1000
  drawings: int = 252
  pixels: pixel_study.Limits = pixel_study.Limits()


@dataclasses.dataclass(frozen=True)
class Split:
  """A held-out split in memory.

  Attributes:
    records: prepared records.
    image: uint8[N, H, W, 3] as the model sees them.
    truth: what is known of them.
  """

  records: Sequence[dict]
  image: np.ndarray
  truth: tokenizer_figures.Truth


def study(
  model_folder: str, data_folder: str, split: str, limits: Limits
) -> findings.Findings:
  """Evaluates a finished toy model.

  Args:
    model_folder: model directory that stage 2 wrote.
    data_folder: prepared toy data with that split and novel.
    split: "validation" or "test"; each has pictures and requests of its own.
    limits: cases per figure.

  Returns:
    Figures and examples.
  """
  model = api.LaVIT.load(model_folder, batch_size=BATCH_SIZE)
  heads = jax.device_get(
    patch_words.load(model_folder, model.coder.tower.embed_dim, model.mesh)
  )
  size = model.coder.tower.image_size
  test, novel = (load_split(f"{data_folder}/{name}", size) for name in (split, "novel"))
  figures, pictures, rebuilt = _study_tokenizer(model, heads, test)
  figures |= _study_captions(model, test, novel, limits.captions)
  caption_examples = _caption_examples(model, test)
  answers, answer_examples = _study_answers(model, test, limits.questions)
  stream = world.SPLITS.index(split) - 1
  asked = language_figures.requests(False, limits.drawings, stream)
  novel_asked = language_figures.requests(True, -(-limits.drawings // 2), stream)
  seen = _study_drawings(model, heads, False, asked, size)
  unseen = _study_drawings(model, heads, True, novel_asked, size)
  figures |= answers | seen[0]
  figures |= {f"novel_{name}": value for name, value in unseen[0].items()}
  painted = None
  if model.has_pixels:
    train = f"{data_folder}/train"
    found, painted = pixel_study.study(
      model, train, test, asked, seen[2], limits.pixels
    )
    figures |= found
  grids = seen[1], unseen[1], rebuilt
  return findings.Findings(
    figures, pictures, caption_examples, answer_examples, *grids, painted
  )


def load_split(folder: str, size: int) -> Split:
  """Reads the records of a prepared toy split that have a picture."""
  prepared = records.Records(folder)
  found = [prepared[int(i)] for i in np.flatnonzero(prepared.image)]
  pixels = np.stack([images.decode(record["image"], size) for record in found])
  return Split(found, pixels, tokenizer_figures.truth_of(found))


@functools.partial(jax.jit, static_argnames=("tower", "model"))
def _features_and_codes(tower, model, frozen, pixels, keep):
  """True patch features, and the codes that a given mask leads to."""
  features = frozen_parts.patch_features(tower, frozen, pixels)
  inputs = whitening.whiten(frozen.get("whitening"), features)
  variables = {"params": frozen["visual_tokenizer"]}
  z = model.apply(variables, inputs, keep, method="encode")
  return features, codebook.lookup(frozen["codebook"]["embedding"], z)


def _study_tokenizer(model, heads, split: Split):
  """Figures of the visual tokenizer, its view of the split, and reconstructions."""
  coder = model.coder
  names = np.array([items.noise_id(picture) for picture in split.image], np.uint32)
  encode = functools.partial(tokenizing.encode_pictures, coder)
  found = batching.in_batches(encode, BATCH_SIZE, split.image, names)
  rng = np.random.default_rng(0)
  shuffled = np.stack([rng.permutation(row) for row in found.keep])
  masks = {"shuffled": shuffled} | _fixed_masks(found, rng)
  run = functools.partial(_features_and_codes, coder.tower, coder.model, coder.frozen)
  decode = lambda codes, keep: model.decode_features(
    [own[kept] for own, kept in zip(codes, keep)]
  )
  rebuilt, others = decode(found.codes, found.keep), {}
  for name, mask in masks.items():
    features, codes = batching.in_batches(run, BATCH_SIZE, split.image, mask)
    others[name] = _cosine(features, decode(codes, mask))
  mean = features.mean((0, 1), keepdims=True)
  own = _cosine(features, rebuilt)
  cosines = {
    "own": own,
    "constant_mean": _cosine(features, mean),
    "object_mean": _cosine(features, features[split.truth.objects].mean(0)),
    "random_mask": others.pop("shuffled"),
  }
  masks = {length_figures.SELECTOR: found.keep} | {name: masks[name] for name in others}
  single = split.truth.single
  read = lambda x: patch_reading.read(patch_reading.word_logits(heads, x))
  figures = tokenizer_figures.selection(found.keep, found.log_probs, split.truth)
  figures |= length_figures.object_patches_kept(
    masks, {length_figures.SELECTOR: own} | others, split.truth
  )
  figures |= tokenizer_figures.codes(found.codes, found.keep, coder.model.num_codes)
  figures |= tokenizer_figures.reconstruction(cosines, split.truth)
  figures |= tokenizer_figures.reconstructed(
    read(rebuilt[single]), read(features[single]), split.truth
  )
  pictures = findings.Pictures(
    split.image,
    split.truth.count,
    split.truth.objects,
    found.keep,
    np.exp(found.log_probs),
    found.codes,
    coder.model.num_codes,
  )
  return figures, pictures, _rebuilt_examples(read(rebuilt), split)


def _fixed_masks(found, rng) -> dict[str, np.ndarray]:
  """Masks bool[N, P] that keep of each picture what the selector keeps on average."""
  size, patches = found.keep.shape
  count = fixed_masks.counts_of_mean(found.keep.sum(1).mean(), size)
  masks = {
    "random": fixed_masks.random(rng.random((size, patches)), count),
    "grid": fixed_masks.grid(patches, count),
    "top_n": fixed_masks.top_n(found.log_probs, count),
  }
  return {name: np.asarray(mask) > 0.5 for name, mask in masks.items()}


def _cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Cosine float[N, P] of features [N, P, D]."""
  norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
  return (x * y).sum(-1) / np.maximum(norms, 1e-12)


def _rebuilt_examples(reading, split: Split) -> list[findings.GridExample]:
  """Scenes of growing complexity, read back from their codes."""
  chosen = [
    i
    for count in range(1, world.MAX_OBJECTS + 1)
    for i in np.flatnonzero(split.truth.count == count)[: 2 if count < 3 else 1]
  ]
  title = lambda i: (
    "1 object" if split.truth.count[i] == 1 else (f"{split.truth.count[i]} objects")
  )
  return [
    findings.grid_example(reading, i, title(i), split.image[i], "", "")
    for i in chosen[:SHOWN]
  ]


def _caption_of(record: dict) -> str:
  return next(e["turns"][0][1] for e in record["texts"] if e["task"] == "caption")


def _study_captions(model, test: Split, novel: Split, most: int) -> dict[str, dict]:
  figures = {}
  for name, split in (("", test), ("novel_", novel)):
    chosen = split.truth.single[:most]
    figures[f"{name}caption_color_shape"] = language_figures.caption_figure(
      model.caption(split.image[chosen]),
      [split.truth.truths[i] for i in chosen],
      bool(name),
    )
  chosen = np.flatnonzero(~test.truth.scene)[:most]
  figures["digit_caption_accuracy"] = language_figures.digit_figure(
    model.caption(test.image[chosen]),
    [test.truth.truths[i] for i in chosen],
  )
  return figures


def _caption_examples(model, split: Split) -> list[findings.TextExample]:
  """The first scenes of each object count, and the first digits."""
  counts = (0, 1, 1, 2, 3, 4, -1, -1)
  chosen = [
    np.flatnonzero(split.truth.count == count)[counts[:place].count(count)]
    for place, count in enumerate(counts)
    if (split.truth.count == count).sum() > counts[:place].count(count)
  ]
  texts = model.caption(split.image[np.array(chosen, int)])
  examples = []
  for i, text in zip(chosen, texts):
    true = _caption_of(split.records[i])
    right = _names_the_same(text, true, split.truth.truths[i])
    examples.append(findings.TextExample(split.image[i], "", true, text, right))
  return examples


def _names_the_same(text: str, true: str, truth: dict) -> bool:
  """Whether a caption names the digit, the true objects in order, or emptiness."""
  if "digit" in truth:
    return digits.parse_digit(text) == truth["digit"]
  pairs = lambda caption: [o[:2] for o in scene_texts.parse_caption(caption)]
  says_empty = any(word in text.split() for word in ("empty", "nothing"))
  return pairs(text) == pairs(true) and says_empty == (not truth["objects"])


def _study_answers(model, split: Split, most: int):
  """Answers about the right picture and about the next scene's."""
  questions = language_figures.questions_of(split.records, most)
  shown = np.array([question.picture for question in questions], int)
  other = _next_of_its_sort(split.truth.scene)[shown]
  texts = [question.text for question in questions]
  answers = model.answer(split.image[shown], texts)
  others = model.answer(split.image[other], texts)
  figures = language_figures.answer_figures(questions, answers, others)
  examples = [
    findings.TextExample(
      split.image[q.picture],
      q.text,
      q.answer,
      a,
      language_figures.is_right(a, q.answer),
    )
    for q, a in zip(questions, answers)
  ]
  return figures, examples[: 2 * SHOWN]


def _next_of_its_sort(scene: np.ndarray) -> np.ndarray:
  """For each picture the next scene, or for a digit the next digit: int[N]."""
  following = np.arange(len(scene))
  for sort in (True, False):
    members = np.flatnonzero(scene == sort)
    following[members] = np.roll(members, -1)
  return following


def _study_drawings(model, heads, novel: bool, asked, size: int):
  """Draws requests, reads the drawn features: figures, first examples, all codes."""
  codes = model.draw_codes([request.prompt for request in asked])
  features = model.decode_features(codes)
  reading = patch_reading.read(patch_reading.word_logits(heads, features))
  tokens = [len(own) for own in codes]
  figures = language_figures.drawn_figures(asked, reading, tokens, novel)
  how = pixel_study.decoding_of(model)
  figures = {name: value | how for name, value in figures.items()}
  words = lambda color, shape, cell: (
    f"{color} {shape}, {scene_texts.POSITIONS[cell // world.CELLS][cell % world.CELLS]}"
  )
  examples = []
  for row, request in enumerate(asked[:SHOWN]):
    picture = scenes.draw(world.Scene((request.drawn,), "bright"), size).image
    facts = words(*request.expected), words(*reading.names(row))
    examples.append(
      findings.grid_example(reading, row, request.prompt, picture, *facts, codes[row])
    )
  return figures, examples, codes
