"""Captions and question-answer pairs of a scene, and the reading of captions.

Every text follows from the scene graph alone, so every answer is unambiguous and a
generated caption can be scored exactly.
"""

import re

import numpy as np

from lavit_jax.data.text import QUESTION
from lavit_jax.toy import world

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
POSITIONS = (
  ("top left", "top", "top right"),
  ("left", "center", "right"),
  ("bottom left", "bottom", "bottom right"),
)
KINDS = ("color", "shape", "count", "position", "yes-no")
TURNS_PER_ENTRY = 3
POSITION_SHARE = 0.85  # of the captions; without positions a drawing is not determined
SIZE_SHARE = 0.5
YES_SHARE = 0.57  # half of all answers, since empty scenes always answer "no"
HARD_SHARE = 0.4  # of the "no" questions, when the scene allows one

_FIELDS = (("color", world.COLORS), ("shape", world.SHAPES))
_PREPOSITIONS = {"top": "at", "bottom": "at", "left": "on", "right": "on"}
_CELLS = {name: (r, c) for r, row in enumerate(POSITIONS) for c, name in enumerate(row)}
_PLACE = (
  r"(?:in|at|on) the ((?:top|bottom) (?:left|right)|top|bottom|left|right|center)"
)
_THING = rf"\b({'|'.join(world.COLORS)}) ({'|'.join(world.SHAPES)})\b"
_THING_PLACE = re.compile(rf"{_THING}(?: {_PLACE}\b)?")
_PLACE_FIRST = re.compile(rf"^{_PLACE}\b")


def with_article(noun: str) -> str:
  """Puts "a" or "an" before a noun phrase."""
  return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def place(row: int, col: int) -> str:
  """Names a cell with its preposition: "in the top left", "at the top"."""
  name = POSITIONS[row][col]
  return f"{_PREPOSITIONS.get(name, 'in')} the {name}"


def _join(phrases: list[str]) -> str:
  head, last = phrases[:-1], phrases[-1]
  return f"{', '.join(head)} and {last}" if head else last


def caption(scene: world.Scene, rng: np.random.Generator) -> str:
  """Writes one of the paraphrases of a scene.

  All objects are named in raster order; positions and sizes are named for all objects
  or for none.

  Args:
    scene: the scene graph.
    rng: chooses the paraphrase.

  Returns:
    The caption, lower case without a final stop.
  """
  if not scene.objects:
    return world.pick(rng, ("an empty scene", "an empty picture", "there is nothing"))
  named_places = rng.random() < POSITION_SHARE
  named_sizes = rng.random() < SIZE_SHARE
  things = []
  for o in scene.objects:
    noun = f"{o.color} {o.shape}"
    things.append(with_article(f"{o.size} {noun}" if named_sizes else noun))
  places = [place(o.row, o.col) for o in scene.objects]
  style = rng.random()
  if named_places and len(things) == 1 and style < 0.2:
    return f"{places[0]} there is {things[0]}"
  if named_places:
    things = [f"{thing} {where}" for thing, where in zip(things, places)]
  prefix = "there is " if style > 0.85 else "a picture of " if style > 0.7 else ""
  return prefix + _join(things)


def parse_caption(text: str) -> list[tuple[str, str, int | None, int | None]]:
  """Reads the objects back from a caption.

  Args:
    text: a caption, ours or a model's.

  Returns:
    (color, shape, row, col) of each named object in the order of the text; row and
    col are None where no position is named.
  """
  text = " ".join(text.lower().split())
  first = _PLACE_FIRST.match(text)
  objects = []
  for color, shape, name in _THING_PLACE.findall(text):
    if not name and first and not objects:
      name = first.group(1)
    objects.append((color, shape, *_CELLS.get(name, (None, None))))
  return objects


def _unique(scene: world.Scene, *fields: str) -> list[world.SceneObject]:
  """The objects that no other object equals in all the named fields."""
  keys = [tuple(getattr(o, f) for f in fields) for o in scene.objects]
  return [o for o, key in zip(scene.objects, keys) if keys.count(key) == 1]


def _ask_color(scene: world.Scene, rng: np.random.Generator):
  alone = _unique(scene, "shape")
  if alone and rng.random() < 0.6:
    o = world.pick(rng, alone)
    return f"what color is the {o.shape}?", o.color, o
  o = world.pick(rng, scene.objects)
  return f"what color is the object {place(o.row, o.col)}?", o.color, o


def _ask_shape(scene: world.Scene, rng: np.random.Generator):
  alone = _unique(scene, "color")
  if alone and rng.random() < 0.6:
    o = world.pick(rng, alone)
    return f"what shape is the {o.color} object?", o.shape, o
  o = world.pick(rng, scene.objects)
  return f"what shape is the object {place(o.row, o.col)}?", o.shape, o


def _plural(shape: str) -> str:
  return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _ask_count(scene: world.Scene, rng: np.random.Generator):
  if len(scene.objects) == 1 or rng.random() < 0.6:
    return "how many objects are there?", NUMBERS[len(scene.objects)], None
  field, words = world.pick(rng, _FIELDS)
  present = [getattr(o, field) for o in scene.objects]
  word = world.pick(rng, present if present and rng.random() < 0.75 else words)
  noun = f"{word} objects" if field == "color" else _plural(word)
  return f"how many {noun} are there?", NUMBERS[present.count(word)], None


def _ask_position(scene: world.Scene, rng: np.random.Generator):
  alone = _unique(scene, "color", "shape")
  if not alone:
    return None
  o = world.pick(rng, alone)
  return f"where is the {o.color} {o.shape}?", POSITIONS[o.row][o.col], o


def _ask_yes_no(scene: world.Scene, rng: np.random.Generator):
  o = world.pick(rng, scene.objects) if scene.objects else None
  if o and rng.random() < YES_SHARE:
    return f"is there {with_article(f'{o.color} {o.shape}')}?", "yes", o
  present = {(other.color, other.shape) for other in scene.objects}
  absent = [pair for pair in world.SEEN if pair not in present]
  hard = [pair for pair in absent if o and pair[0] == o.color]
  pair = world.pick(rng, hard if hard and rng.random() < HARD_SHARE else absent)
  return f"is there {with_article(' '.join(pair))}?", "no", o


def _ask_all(scene: world.Scene, rng: np.random.Generator) -> list[tuple]:
  """Asks every kind that the scene allows: (kind, question, answer, object or None)."""
  asks = (_ask_color, _ask_shape, _ask_count, _ask_position, _ask_yes_no)
  asked = []
  for k in rng.permutation(len(KINDS)).tolist():
    needs_object = KINDS[k] in ("color", "shape", "position")
    turn = None if needs_object and not scene.objects else asks[k](scene, rng)
    if turn is not None:
      asked.append((KINDS[k], *turn))
  return asked


def questions(
  scene: world.Scene, rng: np.random.Generator
) -> list[tuple[str, str, str]]:
  """Asks one question of every kind that the scene answers without ambiguity.

  Absent held-out pairs are never asked for, so that the training split does not name
  them.

  Args:
    scene: the scene graph.
    rng: chooses the order and the questions.

  Returns:
    (kind, question, answer) in random order; an empty scene has two, others four or
    five.
  """
  return [turn[:3] for turn in _ask_all(scene, rng)]


def _choose_turns(pool: list[tuple]) -> list[tuple]:
  """Takes turns of different kinds about different objects, in order."""
  chosen = []
  for kind, question, answer, subject in pool:
    kinds, subjects = [turn[0] for turn in chosen], [turn[3] for turn in chosen]
    if kind not in kinds and (subject is None or subject not in subjects):
      chosen.append((kind, question, answer, subject))
  return chosen[:TURNS_PER_ENTRY]


def answer_entries(scene: world.Scene, rng: np.random.Generator) -> list[dict]:
  """Makes the answer entries of a record.

  Two turns of an entry never ask about the same object: "where is the red circle?"
  would give away the answer of a later "what color is the circle?". The second entry
  prefers the kinds that the first lacks.

  Args:
    scene: the scene graph.
    rng: chooses the questions.

  Returns:
    Up to two entries, {"task", "turns", "kinds"}, of one to three turns; the kinds of
    an entry differ and no question of a record comes twice.
  """
  first = _choose_turns(_ask_all(scene, rng))
  kinds, asked = {turn[0] for turn in first}, {turn[1] for turn in first}
  rest = [turn for turn in _ask_all(scene, rng) if turn[1] not in asked]
  second = _choose_turns(sorted(rest, key=lambda turn: turn[0] in kinds))
  entries = []
  for chosen in filter(None, (first, second)):
    turns = [[QUESTION.format(question), text] for _, question, text, _ in chosen]
    kinds = [turn[0] for turn in chosen]
    entries.append({"task": "answer", "turns": turns, "kinds": kinds})
  return entries
