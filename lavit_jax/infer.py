"""Inference: `python -m lavit_jax.infer VERB --model=DIR ...`.

    caption      --images=a.png,b.png [--prompts="A photo of"]    prints a line each
    answer       --images=a.png --questions="What color is it?"   prints a line each
    draw         --prompts="a red circle" --target=DIR [--n=4 --guidance=4 --seed=0]
    reconstruct  --images=a.png,b.png --target=DIR

--prompts and --questions may be given several times; one image serves all questions.
draw and reconstruct write visual codes and reconstructed patch features, one .npz per
picture; pixels need the pixel decoder. When the model has the toy world's word heads,
a small PNG beside it shows the color that each patch is read as.
"""

import pathlib
import sys

import numpy as np
from absl import app, flags
from PIL import Image

from lavit_jax.api import Drawing, LaVIT
from lavit_jax.data import scenes

CELL = 16  # pixels per patch in the pictures of read patches
BACKGROUND_RGB = (128, 128, 128)
PIXELS_NOTE = "visual codes and features only: pixels need the pixel decoder"


def define_flags() -> None:
  """Defines the flags, in this program only: other verbs have flags of these names."""
  flags.DEFINE_string("model", None, "Model directory.", required=True)
  flags.DEFINE_list("images", [], "Pictures, joined by commas.")
  flags.DEFINE_multi_string("prompts", [], "Text to draw or to continue.")
  flags.DEFINE_multi_string("questions", [], "Questions about the images.")
  flags.DEFINE_string("target", None, "Folder for drawings.")
  flags.DEFINE_integer("n", 1, "Drawings per prompt.", lower_bound=1)
  flags.DEFINE_float("guidance", 4.0, "Weight of the prompt; 1 is none.")
  flags.DEFINE_integer("seed", 0, "Seed of drawing.")
  flags.DEFINE_integer("batch_size", 8, "Requests per program call.", lower_bound=1)


def caption(model: LaVIT, given: flags.FlagValues) -> None:
  """Prints a description of each image."""
  images, prompts = _needed(given, "images"), given.prompts or [""]
  if len(prompts) > 1:
    raise ValueError(f"caption takes one --prompts for all images, got {len(prompts)}")
  for image, text in zip(images, model.caption(images, prompts[0])):
    print(f"{image}: {text}")


def answer(model: LaVIT, given: flags.FlagValues) -> None:
  """Prints an answer to each question."""
  images, questions = _needed(given, "images"), _needed(given, "questions")
  for question, text in zip(questions, model.answer(images, questions)):
    print(f"{question} {text}")


def draw(model: LaVIT, given: flags.FlagValues) -> None:
  """Writes drawings of each prompt."""
  prompts, target = _needed(given, "prompts"), _needed(given, "target")
  drawings = model.draw(prompts, guidance=given.guidance, n=given.n)
  _write(model, drawings, [p for p in prompts for _ in range(given.n)], target)


def reconstruct(model: LaVIT, given: flags.FlagValues) -> None:
  """Writes each image's codes and what they say."""
  images, target = _needed(given, "images"), _needed(given, "target")
  _write(model, model.reconstruct(images), images, target)


VERBS = {"caption": caption, "answer": answer, "draw": draw, "reconstruct": reconstruct}


def _needed(given: flags.FlagValues, name: str):
  value = getattr(given, name)
  if not value:
    raise ValueError(f"expected --{name} for this verb, got none; see --help")
  return value


def _write(
  model: LaVIT, drawings: list[Drawing], labels: list[str], folder: str
) -> None:
  """Writes one .npz per drawing, and what its patches are read as."""
  target = pathlib.Path(folder)
  target.mkdir(parents=True, exist_ok=True)
  features = np.stack([drawing.features for drawing in drawings])
  colors = model.read_patches(features)["color"] if model.has_words else None
  print(PIXELS_NOTE)
  for i, (drawing, label) in enumerate(zip(drawings, labels)):
    path = target / f"{i:04d}.npz"
    np.savez(path, codes=drawing.codes, features=drawing.features, source=label)
    if colors is not None:
      Image.fromarray(patch_picture(colors[i])).save(path.with_suffix(".png"))
    print(f"{path}: {len(drawing.codes)} codes, {label}")


def patch_picture(colors: np.ndarray) -> np.ndarray:
  """Paints color words str[P] of a square grid: uint8[H, W, 3], background grey."""
  side = round(len(colors) ** 0.5)
  cells = [scenes.RGB.get(str(color), BACKGROUND_RGB) for color in colors]
  grid = np.array(cells, np.uint8).reshape(side, side, 3)
  return grid.repeat(CELL, axis=0).repeat(CELL, axis=1)


def main(argv: list[str]) -> None:
  """Command line entry."""
  if len(argv) != 2 or argv[1] not in VERBS:
    raise app.UsageError(
      f"expected one of {', '.join(VERBS)}, got {' '.join(argv[1:]) or 'nothing'};"
      f" for example: python -m lavit_jax.infer caption --model=DIR --images=a.png"
    )
  given = flags.FLAGS
  try:
    model = LaVIT.load(given.model, seed=given.seed, batch_size=given.batch_size)
    VERBS[argv[1]](model, given)
  except ValueError as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  define_flags()
  app.run(main)
