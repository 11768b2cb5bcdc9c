"""Requests of users: a line of JSON becomes something to run, or one clear sentence.

    {"task": "caption", "image": "a.png", "prompt": "A photo of", "beams": 2}
    {"task": "answer", "image": "a.png", "question": "What color is it?"}
    {"task": "draw", "prompt": "a red circle", "n": 2, "guidance": 4, "seed": 1}

Requests of all tasks run together. A bad one never stops the others.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from lavit_jax.generate import decoding, engine, tasks
from lavit_jax.generate import prompts as layouts
from lavit_jax.generate.beam import Beams
from lavit_jax.generate.logits import Settings
from lavit_jax.inference import pictures
from lavit_jax.inference.api import LaVIT
from lavit_jax.toy.scene_texts import QUESTION

MAX_DRAWINGS = 64
MAX_ASPECT = 50  # of a picture's sides; beyond, squashing leaves nothing to see
TEXT_OPTIONS = {
  "beams": int,
  "max_new": int,
  "min_new": int,
  "length_penalty": float,
  "repetition_penalty": float,
}
DRAW_OPTIONS = {
  "max_new": int,
  "min_new": int,
  "guidance": float,
  "temperature": float,
  "top_k": int,
  "top_p": float,
}
# What a task takes beside its options, and what it cannot do without.
FIELDS = {
  "caption": {"image": object, "prompt": str},
  "answer": {"image": object, "question": str},
  "draw": {"prompt": str, "n": int, "seed": int, "setting": str},
}
NEEDED = {"caption": ["image"], "answer": ["image", "question"], "draw": ["prompt"]}
OPTIONS = {"caption": TEXT_OPTIONS, "answer": TEXT_OPTIONS, "draw": DRAW_OPTIONS}
SETTINGS = ("codes", "reference")  # "reference" draws as the reference does
NAMES = {int: "a whole number", float: "a number", str: "a text"}


@dataclasses.dataclass(frozen=True)
class Asked:
  """A checked request.

  Attributes:
    task: "caption", "answer" or "draw".
    text: what the model continues or draws.
    how: decoding.
    pixels: uint8[H, W, 3] picture; None for a drawing.
    n: drawings.
    seed: of the drawings; that of the model when None.
  """

  task: str
  text: str
  how: Settings | Beams
  pixels: np.ndarray | None = None
  n: int = 1
  seed: int | None = None


def parse(line: str) -> dict[str, Any]:
  """Reads one line of JSON."""
  try:
    given = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f"expected one JSON object per line, got {_short(line)} ({error}); correct the"
      " line"
    ) from error
  if not isinstance(given, dict):
    raise ValueError(
      f"expected a JSON object, got {_short(given)}; write for example"
      ' {"task": "caption", "image": "a.png"}'
    )
  return given


def check(model: LaVIT, given: Mapping[str, Any]) -> Asked:
  """Checks a request against what its task takes.

  Raises:
    ValueError: one sentence that says what is wrong.
  """
  task = given.get("task")
  if not isinstance(task, str) or task not in FIELDS:
    raise ValueError(
      f"expected a task among {', '.join(FIELDS)}, got {_short(task)}; name one"
    )
  kinds = FIELDS[task] | OPTIONS[task]
  for name, value in given.items():
    if name not in kinds and name not in ("task", "id"):
      raise ValueError(
        f"expected keys among {', '.join(kinds)} for the task {task}, got"
        f" {_short(name)}; remove or correct it"
      )
    if name in kinds:
      _check_kind(name, value, kinds[name])
  for name in NEEDED[task]:
    value = given.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
      raise ValueError(f"the task {task} needs {name!r}, got none; add it")
  return _drawing(model, given) if task == "draw" else _reading(model, given)


def _check_kind(name: str, value: Any, kind: type) -> None:
  if kind is object:
    return
  numbers = {int: (int,), float: (int, float), str: (str,)}[kind]
  if isinstance(value, bool) or not isinstance(value, numbers):
    raise ValueError(
      f"{name} must be {NAMES[kind]}, got {_short(value)}; correct its value"
    )
  if kind is str and not value.isprintable() and any(map(_is_half, value)):
    raise ValueError(f"{name} must be whole characters, got {_short(value)}; mend it")
  if kind is not str and abs(value) > 2**31 - 1:
    raise ValueError(f"{name} must fit into 32 bits, got {_short(value)}")


def _is_half(character: str) -> bool:
  """True for half of a surrogate pair, which JSON lets pass."""
  return "\ud800" <= character <= "\udfff"


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
  return {name: given[name] for name in OPTIONS[given["task"]] if name in given}


def _reading(model: LaVIT, given: Mapping[str, Any]) -> Asked:
  pixels = _picture(model, given["image"])
  how = model.how(given["task"], **_options(given))
  if given["task"] == "answer":
    return Asked("answer", QUESTION.format(given["question"]), how, pixels)
  return Asked("caption", given.get("prompt", ""), how, pixels)


def _drawing(model: LaVIT, given: Mapping[str, Any]) -> Asked:
  n, seed = given.get("n", 1), given.get("seed")
  setting = given.get("setting", SETTINGS[0])
  if not 1 <= n <= MAX_DRAWINGS:
    raise ValueError(f"n must be in [1, {MAX_DRAWINGS}], got {n}; ask again for more")
  if setting not in SETTINGS:
    raise ValueError(
      f"setting must be one of {', '.join(SETTINGS)}, got {_short(setting)}"
    )
  if setting == "reference":
    words, patches = model.language.vocabulary, model.coder.model.num_patches
    numbers = decoding.complete({}, patches)["draw"]
    numbers = decoding.changed("draw", numbers, _options(given))
    how = decoding.drawing(numbers, words, patches, allowed="reference")
  else:
    how = model.how("draw", **_options(given))
  return Asked("draw", given["prompt"], how, n=n, seed=seed)


def _picture(model: LaVIT, image: Any) -> np.ndarray:
  """uint8[size, size, 3] of a path, a Pillow image or an array."""
  if isinstance(image, str):
    image = pathlib.Path(image)
  if isinstance(image, pathlib.Path):
    if not image.is_file():
      raise ValueError(f"expected a picture at {image}, found no file; check the path")
    sides = _sides_of_file(image)
  elif isinstance(image, Image.Image):
    sides = image.size
  elif isinstance(image, np.ndarray):
    if not np.isfinite(image).all() if image.dtype.kind == "f" else False:
      raise ValueError("expected finite pixels, got NaN or infinity; mend the picture")
    sides = image.shape[1::-1] if image.ndim == 3 else (1, 1)
  else:
    raise ValueError(
      f"expected a path, a Pillow image or an array uint8[H, W, 3], got {_short(image)}"
    )
  if min(sides) < 1 or max(sides) > MAX_ASPECT * min(sides):
    raise ValueError(
      f"expected a picture with sides of at most {MAX_ASPECT} to 1, got"
      f" {sides[0]}x{sides[1]} pixels; crop it"
    )
  return pictures.stack([image], model.image_size)[0]


def _sides_of_file(path: pathlib.Path) -> tuple[int, int]:
  try:
    with Image.open(path) as image:
      return image.size
  except Exception as error:  # Pillow raises many types, all mean no picture
    raise ValueError(
      f"expected a picture at {path}, got a file that does not decode; give a JPEG,"
      " PNG, WebP, GIF, BMP, TIFF or PPM file"
    ) from error


def _short(value: Any) -> str:
  """A value as it fits into a sentence."""
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:57]}..."


def serve(
  model: LaVIT, given: Sequence[Mapping[str, Any] | ValueError]
) -> list[dict[str, Any]]:
  """Runs checked and unchecked requests together.

  Args:
    model: the loaded model.
    given: requests as dicts, or the error that reading one gave.

  Returns:
    For each {"text": str}, {"codes": [[int, ...], ...]} or {"error": str}.
  """
  results: list[dict[str, Any] | None] = [None] * len(given)
  checked: list[tuple[int, Asked]] = []
  for i, request in enumerate(given):
    results[i] = _guarded(
      request, lambda own, i=i: checked.append((i, check(model, own)))
    )
  shown = _shown(model, [asked for _, asked in checked])
  runs: list[tuple[int, engine.Request]] = []
  for row, (i, asked) in enumerate(checked):
    add = lambda own, row=row: runs.extend(
      (row, r) for r in _engine(model, own, shown, row)
    )
    results[i] = _guarded(asked, add)
  rows = [row for row, _ in runs]
  pictures = tuple(array[rows] for array in shown) if rows else None
  found = model.replies([request for _, request in runs], pictures) if rows else []
  for row, replies in zip(rows, found):
    i, asked = checked[row]
    results[i] = _result(model, asked, replies[0], results[i])
  return results


def _guarded(own: Any, run: Callable) -> dict[str, Any] | None:
  """Runs a step of one request: None, or the error."""
  try:
    if isinstance(own, ValueError):
      raise own
    run(own)
  except (ValueError, OSError) as error:
    return {"error": " ".join(str(error).split())}
  return None


def _shown(model: LaVIT, asked: list[Asked]) -> tuple[np.ndarray, np.ndarray]:
  """Pictures and keep masks of all requests, zeros where one shows none."""
  size, patches = model.image_size, model.coder.model.num_patches
  pixels = np.zeros((len(asked), size, size, 3), np.uint8)
  keep = np.zeros((len(asked), patches), bool)
  members = [row for row, own in enumerate(asked) if own.pixels is not None]
  if members:
    pixels[members] = [asked[row].pixels for row in members]
    keep[members] = [found["keep"] for found in model.tokenize(list(pixels[members]))]
  return pixels, keep


def _engine(model: LaVIT, asked: Asked, shown, row: int) -> list[engine.Request]:
  """What the engine has to run: one sequence, or one per drawing."""
  words, tokenizer = model.language.vocabulary, model.language.tokenizer
  ids = tokenizer.encode(asked.text) if asked.text else []
  if asked.task != "draw":
    prompt = layouts.understanding(shown[1][row], ids, words)
    return [engine.Request(prompt, asked.how)]
  seed = model.seed if asked.seed is None else asked.seed
  keys = tasks.drawing_keys(seed, [ids], asked.n)[0]
  return [engine.Request(layouts.drawing(ids, words), asked.how, key) for key in keys]


def _result(model: LaVIT, asked: Asked, reply: engine.Reply, before) -> dict[str, Any]:
  if asked.task == "draw":
    codes = tasks.codes_of(reply.ids, model.language.vocabulary).tolist()
    return {"codes": [*(before or {"codes": []})["codes"], codes]}
  cut = tasks.cut_answer if asked.task == "answer" else tasks.cut_caption
  return {"text": cut(model.language.tokenizer.decode(reply.ids))}
