"""Figures of reading and drawing on the toy world: captions, answers, requests.

Captions are parsed and answers compared word by word. Where it can be asked, the same
model's texts about ANOTHER picture are scored too: what it gains by looking.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from lavit_jax.data.text import QUESTION
from lavit_jax.evaluate.figures import figure, mean
from lavit_jax.toy import digits, patch_reading, scene_texts, world
from lavit_jax.toy.patch_reading import Reading
from lavit_jax.toy.tokenizer_figures import CELL_CHANCE, SEEN_CHANCE, reading_hits

NOVEL_CHANCE = 1 / (len(world.COLORS) * len(world.SHAPES))


@dataclasses.dataclass(frozen=True)
class Question:
  """A question about a picture.

  Attributes:
    picture: position of the picture.
    kind: one of `scene_texts.KINDS`, or "digit".
    text: the bare question.
    answer: the true answer.
  """

  picture: int
  kind: str
  text: str
  answer: str


@dataclasses.dataclass(frozen=True)
class Request:
  """A drawing to ask for: one object in one cell.

  Attributes:
    prompt: the caption that asks for it.
    drawn: the object.
  """

  prompt: str
  drawn: world.SceneObject

  @property
  def expected(self) -> tuple[str, str, int]:
    """(color, shape, cell) to be read back."""
    o = self.drawn
    return o.color, o.shape, world.CELLS * o.row + o.col


def caption_hits(captions: Sequence[str], truths: Sequence[dict]) -> dict[str, list]:
  """Scores captions of single-object scenes.

  A caption is right when it names exactly one object with the true color and shape.

  Returns:
    bools "both", "color", "shape" by caption and, where a caption with the right pair
    names a place, "place".
  """
  hits = {name: [] for name in ("both", "color", "shape", "place")}
  for caption, truth in zip(captions, truths, strict=True):
    true, found = truth["objects"][0], scene_texts.parse_caption(caption)
    color, shape, row, col = found[0] if len(found) == 1 else (None,) * 4
    right = color == true["color"], shape == true["shape"]
    hits["color"].append(right[0])
    hits["shape"].append(right[1])
    hits["both"].append(all(right))
    if all(right) and row is not None:
      hits["place"].append((row, col) == (true["row"], true["col"]))
  return hits


def caption_figure(captions: Sequence[str], truths: Sequence[dict], novel: bool):
  """The figure caption_color_shape of single-object scenes.

  Args:
    captions: one per scene.
    truths: the scenes; `other_picture` scores each caption on the scene before.
    novel: True for pairs that training never showed.
  """
  hits = caption_hits(captions, truths)
  other = caption_hits(np.roll(captions, -1).tolist() if captions else [], truths)
  pairs = len(world.COLORS) * len(world.SHAPES) if novel else len(world.SEEN)
  return figure(
    mean(hits["both"]),
    NOVEL_CHANCE if novel else SEEN_CHANCE,
    len(captions),
    "scenes with one object",
    f"one of {pairs} pairs",
    color=mean(hits["color"]),
    shape=mean(hits["shape"]),
    place_where_named=mean(hits["place"]) if hits["place"] else None,
    other_picture=mean(other["both"]),
  )


def digit_figure(captions: Sequence[str], truths: Sequence[dict]) -> dict:
  """The figure digit_caption_accuracy."""
  true = np.array([truth["digit"] for truth in truths])
  found = np.array([digits.parse_digit(c) for c in captions], object)
  return figure(
    mean(found == true),
    0.1,
    len(true),
    "digits",
    "one of 10 digits",
    other_picture=mean(np.roll(found, -1) == true),
  )


def questions_of(records: Sequence[dict], most: int) -> list[Question]:
  """Takes the questions of each record's first answer entry, up to about `most`."""
  questions = []
  for position, record in enumerate(records):
    entry = next((e for e in record["texts"] if e["task"] == "answer"), None)
    if len(questions) >= most:
      break
    if entry:
      before, after = QUESTION.split("{}")
      for kind, (prompt, answer) in zip(entry["kinds"], entry["turns"], strict=True):
        bare = prompt.removeprefix(before).removesuffix(after)
        questions.append(Question(position, kind, bare, answer))
  return questions


def is_right(answer: str, truth: str) -> bool:
  """Exact match, blind to case and outer spaces."""
  return answer.lower().strip() == truth.lower().strip()


def answer_figures(
  questions: Sequence[Question], answers: Sequence[str], others: Sequence[str]
) -> dict[str, dict]:
  """The figure answer_accuracy over the five kinds of scenes, and digit_answers.

  Args:
    questions: what was asked.
    answers: the model's answers.
    others: its answers to the same questions about another picture.
  """
  kinds = {}
  for kind in (*scene_texts.KINDS, "digit"):
    own = [i for i, q in enumerate(questions) if q.kind == kind]
    if not own:
      continue
    counts = collections.Counter(questions[i].answer for i in own)
    kinds[kind] = {
      "value": mean([is_right(answers[i], questions[i].answer) for i in own]),
      "chance": counts.most_common(1)[0][1] / len(own),
      "n": len(own),
      "other_picture": mean([is_right(others[i], questions[i].answer) for i in own]),
    }
  digit = kinds.pop("digit", None)
  n = sum(kind["n"] for kind in kinds.values())
  total = lambda name: sum(k[name] * k["n"] for k in kinds.values()) / max(n, 1)
  of, majority = "questions", "the most frequent answer of each kind"
  result = {
    "answer_accuracy": figure(
      total("value"),
      total("chance"),
      n,
      of,
      majority,
      other_picture=total("other_picture"),
      kinds=kinds,
    )
  }
  if digit:
    result["digit_answers"] = figure(**digit, of=of, chance_is=majority)
  return result


def requests(novel: bool, count: int, seed: int = 0) -> list[Request]:
  """Asks for single objects with size and place.

  Args:
    novel: True asks for the held-out pairs, False for those seen in training.
    count: requests; the pairs come in turn, cells and sizes at random.
    seed: of cells and sizes.
  """
  rng = np.random.default_rng(seed)
  pairs = world.HELD_OUT if novel else world.SEEN
  order = rng.permutation(len(pairs))
  made = []
  for i in range(count):
    color, shape = pairs[order[i % len(pairs)]]
    size = world.pick(rng, world.SIZES)
    row, col = (int(x) for x in rng.integers(0, world.CELLS, 2))
    noun = scene_texts.with_article(f"{size} {color} {shape}")
    drawn = world.SceneObject(color, shape, size, row, col)
    made.append(Request(f"{noun} {scene_texts.place(row, col)}", drawn))
  return made


def drawn_figures(
  asked: Sequence[Request], reading: Reading, tokens: Sequence[int], novel: bool
) -> dict[str, dict]:
  """The figures drawn_feature_color_shape and drawn_feature_cell.

  Args:
    asked: the requests.
    reading: reading of the features drawn for them.
    tokens: codes of each drawing.
    novel: True for pairs that training never showed.
  """
  hits = reading_hits(reading, [request.expected for request in asked])
  pairs = len(world.COLORS) * len(world.SHAPES) if novel else len(world.SEEN)
  n, of = len(asked), "requests for one object in one cell"
  return {
    "drawn_feature_color_shape": figure(
      mean(hits["both"]),
      1 / pairs,
      n,
      of,
      f"one of {pairs} pairs",
      color=mean(hits["color"]),
      shape=mean(hits["shape"]),
      all_three=mean(hits["both"] & hits["cell"]),
      codes_per_drawing=mean(tokens),
      objects_per_drawing=mean(patch_reading.count_objects(reading)),
    ),
    "drawn_feature_cell": figure(
      mean(hits["cell"]), CELL_CHANCE, n, of, "one of 9 cells"
    ),
  }
