"""Inference: `python -m lavit_jax.infer VERB --model=DIR ...`.

    caption      --images=a.png,photos [--prompts="A photo of"]   prints a line each
    answer       --images=a.png --questions="What color is it?"   prints a line each
    draw         --prompts="a red circle" --target=DIR [--n=4 --guidance=2 --seed=0]
    reconstruct  --images=a.png,b.png --target=DIR
    batch        --requests=in.jsonl --target=out.jsonl           resumes after a stop;
                 --retry_failed does lines again that were errors

--images takes files, folders and patterns, joined by commas or one behind the other.
--prompts and --questions may be given several times; one image serves all questions.
A picture that cannot be read is named and left out, and the exit status is then 1.
draw takes --images too: their codes then stand before each prompt, or alone.

How ids are chosen stands in the model directory; --min_new and --max_new change it,
for caption and answer --beams, for draw --guidance, --temperature, --top_k and --top_p.

draw and reconstruct write one PNG per picture and grid.png, a labelled sheet of all.
--ratio or --size chooses their shape, --solver, --steps and --pixel_guidance how pixels
are sampled. A model without pixel decoder ends at visual codes and reconstructed
features: it writes one .npz per picture and, with the toy world's word heads, a small
PNG of the color that each patch is read as.
"""

import itertools
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import app, flags
from PIL import Image

from lavit_jax.core import command_line
from lavit_jax.generate import decoding, pixels
from lavit_jax.generate.beam import MAX_BEAMS
from lavit_jax.inference import jobs, pictures, ranking, sheet
from lavit_jax.inference.api import LaVIT

PIXELS_NOTE = "visual codes and features only: this model has no pixel decoder"
CHECKER_NOTE = "image checker: off, a model directory has no weights for one"


def define_flags() -> None:
  """Defines the flags, in this program only: other verbs have flags of these names."""
  command_line.define_path("model", None, "Model directory.", required=True)
  flags.DEFINE_multi_string("images", [], "Pictures, folders or patterns.")
  flags.DEFINE_multi_string("prompts", [], "Text to draw or to continue.")
  flags.DEFINE_multi_string("questions", [], "Questions about the images.")
  command_line.define_path("target", None, "Folder for drawings, or file of results.")
  command_line.define_path("requests", None, "JSONL file (docs/generation.md).")
  flags.DEFINE_bool("stream", False, "Print a caption while it is written, greedily.")
  flags.DEFINE_integer("n", 1, "Drawings per prompt.", lower_bound=1)
  flags.DEFINE_bool("keep_best", False, "Keep the best of n, as --ranker sees it.")
  command_line.define_path(
    "ranker", "", "Imported CLIP or model directory; own stage 0."
  )
  flags.DEFINE_integer(
    "beams", None, "Of captions and answers; 1 is greedy.", 1, MAX_BEAMS
  )
  flags.DEFINE_integer("min_new", None, "Least new ids.", lower_bound=0)
  flags.DEFINE_integer("max_new", None, "Most new ids, the end counts.", lower_bound=1)
  flags.DEFINE_float("guidance", None, "Of drawings: the prompt's weight; 1 is none.")
  flags.DEFINE_float("temperature", None, "Of drawings; 0: the most probable code.", 0)
  flags.DEFINE_integer("top_k", None, "Codes to sample from; 0 for all.", lower_bound=0)
  flags.DEFINE_float("top_p", None, "Probability of the codes to sample from.", 0, 1)
  flags.DEFINE_string("ratio", "1:1", "Width to height of what is drawn.")
  flags.DEFINE_string("size", "", "HEIGHTxWIDTH in pixels, instead of --ratio.")
  flags.DEFINE_string("solver", "", f"One of {sorted(pixels.SOLVERS)}.")
  flags.DEFINE_integer("steps", 0, "Steps of the solver; 0 takes the model's own.")
  flags.DEFINE_float("pixel_guidance", 0.0, "As --guidance, of pixels; 0 the model's.")
  flags.DEFINE_integer("seed", 0, "Seed of drawing.")
  flags.DEFINE_bool("retry_failed", False, "Try lines of --target that failed again.")
  flags.DEFINE_integer("batch_size", 8, "Requests per program call.", lower_bound=1)


def caption(model: LaVIT, given: flags.FlagValues) -> None:
  """Prints a description of each image."""
  images, prompts = _needed(given, "images"), given.prompts or [""]
  if len(prompts) > 1:
    raise ValueError(f"caption takes one --prompts for all images, got {len(prompts)}")
  if given.stream:
    if given.beams not in (None, 1):
      raise ValueError(
        f"--stream prints one beam, got --beams={given.beams}: a search has no text"
        " before its end; leave one of them out"
      )
    how = model.how("caption", **_numbers("caption", given) | {"beams": 1})
    readable = _Readable(model, images)
    for image, pixels in readable:
      _print_stream(image, model.stream(pixels, prompts[0], how))
    return readable.end()
  how = model.how("caption", **_numbers("caption", given))
  readable = _Readable(model, images)
  coming = iter(readable)
  while shown := list(itertools.islice(coming, CHUNK)):
    names, pixels = zip(*shown)
    for image, text in zip(names, model.caption(list(pixels), prompts[0], how)):
      print(f"{image}: {text}", flush=True)
  readable.end()


def _print_stream(image: str, texts: Iterator[str]) -> None:
  """Prints what each text has more than the one before."""
  print(f"{image}: ", end="", flush=True)
  shown = ""
  for text in texts:
    print(text.removeprefix(shown), end="", flush=True)
    shown = text
  print()


def answer(model: LaVIT, given: flags.FlagValues) -> None:
  """Prints an answer to each question."""
  images, questions = _needed(given, "images"), _needed(given, "questions")
  if len(images) not in (1, len(questions)):
    raise ValueError(
      f"expected one picture, or one for each of {len(questions)} questions, got"
      f" {len(images)}; name as many"
    )
  how = model.how("answer", **_numbers("answer", given))
  readable = _Readable(model, images)
  shown = dict(readable)
  asked = [
    (own, image)
    for own, image in zip(questions, images * (len(questions) // len(images)))
    if image in shown
  ]
  if asked:
    own, pixels = [q for q, _ in asked], [shown[image] for _, image in asked]
    for question, text in zip(own, model.answer(pixels, own, how)):
      print(f"{question} {text}")
  readable.end()


def draw(model: LaVIT, given: flags.FlagValues) -> None:
  """Writes drawings of each prompt."""
  target, shown = _needed(given, "target"), [pathlib.Path(i) for i in _images(given)]
  texts = given.prompts if shown else _needed(given, "prompts")
  prompts = [[*shown, text] for text in texts] or [shown]
  names = [" + ".join([*(i.name for i in shown), *p[len(shown) :]]) for p in prompts]
  labels = [name for name in names for _ in range(given.n)]
  how = model.how("draw", **_numbers("draw", given))
  if not model.has_pixels:
    codes = model.draw_codes(prompts, given.n, how=how)
    _write_features(model, codes, labels, target)
    return
  made = model.draw(prompts, given.ratio, n=given.n, how=how, **_sampling(model, given))
  if given.keep_best:
    texts = [" ".join(p[len(shown) :]) for p in prompts]
    best = ranking.keep_best(made, texts, ranking.scorer_of(model, given.ranker))
    made = [picture for picture, _ in best]
    labels = [f"{name} ({score:.3f})" for name, (_, score) in zip(names, best)]
  _write(made, labels, target, sheet.make(made, labels, max(given.n, 4)))


def reconstruct(model: LaVIT, given: flags.FlagValues) -> None:
  """Writes each image again, from its codes."""
  readable = _Readable(model, _needed(given, "images"))
  target, images = _needed(given, "target"), [path for path, _ in readable]
  if not images:
    return readable.end()
  codes = [found["codes"] for found in model.tokenize(images)]
  if not model.has_pixels:
    _write_features(model, codes, images, target)
    return readable.end()
  made = model.reconstruct(images, given.ratio, **_sampling(model, given))
  pairs, labels = [], []
  for path, picture, own in zip(images, made, codes):
    pairs += [Image.open(path), picture]
    labels += [pathlib.Path(path).name, f"from {len(own)} codes"]
  _write(made, images, target, sheet.make(pairs, labels, 4))
  readable.end()


def _numbers(task: str, given: flags.FlagValues) -> dict[str, float | None]:
  """The flags that change how ids of a task are chosen; None where not given."""
  return {n: getattr(given, n) for n in decoding.REFERENCE[task] if n in DECODING_FLAGS}


def _sampling(model: LaVIT, given: flags.FlagValues) -> dict[str, Any]:
  """The arguments `size` and `sampling` of `draw` and `reconstruct`."""
  own, size = model.pixel_decoder.settings, None
  if given.size:
    sides = given.size.lower().split("x")
    if len(sides) != 2 or not all(side.isdigit() for side in sides):
      raise ValueError(f"expected --size as HEIGHTxWIDTH, got {given.size!r}")
    size = pixels.check_size(tuple(map(int, sides)))
  settings = pixels.Settings(
    given.steps or own.steps,
    given.pixel_guidance or own.guidance,
    given.solver or own.solver,
  )
  return {"size": size, "sampling": settings}


def batch(model: LaVIT, given: flags.FlagValues) -> None:
  """Answers a file of requests, line by line."""
  files = _needed(given, "requests"), _needed(given, "target")
  found = jobs.run(model, *files, given.retry_failed)
  print(f"{found['done']} requests done, {found['failed']} of them failed")


CHUNK = 256  # pictures in memory at a time
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
SAMPLING = ("guidance", "temperature", "top_k", "top_p")
WRITING = ("beams", "min_new", "max_new")
DECODING_FLAGS = (*WRITING, *SAMPLING)
PAINTING = ("ratio", "size", "solver", "steps", "pixel_guidance", "seed", "target")
# The flags that have an effect, by verb; all verbs take --model and --batch_size.
FLAGS = {
  "caption": ("images", "prompts", "stream", *WRITING),
  "answer": ("images", "questions", *WRITING),
  "draw": (
    *("images", "prompts", "n", "keep_best", "ranker", *PAINTING),
    *("min_new", "max_new", *SAMPLING),
  ),
  "reconstruct": ("images", *PAINTING),
  "batch": ("requests", "target", "seed", "retry_failed"),
}
VERBS = {
  "caption": caption,
  "answer": answer,
  "draw": draw,
  "reconstruct": reconstruct,
  "batch": batch,
}


def check_flags(verb: str, given: flags.FlagValues) -> None:
  """Refuses a flag that has no effect on a verb."""
  every = {name for names in FLAGS.values() for name in names}
  idle = [name for name in sorted(every - {*FLAGS[verb]}) if given[name].present]
  if idle:
    raise ValueError(
      f"{verb} takes {', '.join(f'--{name}' for name in FLAGS[verb])}, got"
      f" {', '.join(f'--{name}' for name in idle)}, without effect here; leave it out"
      + (" and write it into the requests" if verb == "batch" else "")
    )


def _needed(given: flags.FlagValues, name: str):
  value = _images(given) if name == "images" else getattr(given, name)
  if not value:
    raise ValueError(f"expected --{name} for this verb, got none; see --help")
  return value


def _images(given: flags.FlagValues) -> list[str]:
  return command_line.expand(given.images, PICTURES)


class _Readable:
  """Pictures of paths that can be read; the others are named as they come."""

  def __init__(self, model: LaVIT, paths: list[str]):
    self.size, self.paths, self.failed = model.image_size, paths, 0

  def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each path with u8[size, size, 3]."""
    for path in self.paths:
      try:
        found = pictures.stack(path, self.size)[0]
      except (ValueError, OSError) as error:
        self.failed += 1
        print(f"failed: {error}", file=sys.stderr)
      else:
        yield path, found

  def end(self) -> None:
    """Ends with an error where pictures were left out."""
    if self.failed:
      raise ValueError(
        f"{self.failed} of {len(self.paths)} pictures could not be read and were left"
        " out; replace them or leave them out"
      )


def _write(made, labels: list[str], folder: str, overview: Image.Image) -> None:
  """Writes one PNG per picture and the sheet of all."""
  target = pathlib.Path(folder)
  target.mkdir(parents=True, exist_ok=True)
  print(CHECKER_NOTE)
  for i, (picture, label) in enumerate(zip(made, labels)):
    picture.save(target / f"{i:04d}.png")
    print(f"{target / f'{i:04d}.png'}: {label}")
  overview.save(target / "grid.png")
  print(f"{target / 'grid.png'}: all of them")


def _write_features(model: LaVIT, codes, labels: list[str], folder: str) -> None:
  """Writes one .npz per list of codes, and what its patches are read as."""
  target = pathlib.Path(folder)
  target.mkdir(parents=True, exist_ok=True)
  features = model.decode_features(codes)
  painted = _painted(model, features)
  print(PIXELS_NOTE)
  for i, (own, label) in enumerate(zip(codes, labels)):
    path = target / f"{i:04d}.npz"
    np.savez(path, codes=own, features=features[i], source=label)
    if painted:
      Image.fromarray(painted[i]).save(path.with_suffix(".png"))
    print(f"{path}: {len(own)} codes, {label}")


def _painted(model: LaVIT, features: np.ndarray) -> list[np.ndarray]:
  """What word heads read from patches, as pictures; none without such heads."""
  if not model.has_words:
    return []
  from lavit_jax.toy import patch_words  # the toy world's words, asked for by its model

  return patch_words.paint(model, features)


def main(argv: list[str]) -> None:
  """Command line entry."""
  if len(argv) < 2 or argv[1] not in VERBS:
    raise app.UsageError(
      f"expected one of {', '.join(VERBS)}, got {' '.join(argv[1:]) or 'nothing'};"
      f" for example: python -m lavit_jax.infer caption --model=DIR --images=a.png"
    )
  given = flags.FLAGS
  with command_line.in_sentences():
    if argv[2:]:  # a pattern that the shell has written out
      if "images" not in FLAGS[argv[1]] or not given.images:
        raise ValueError(f"expected flags behind {argv[1]}, got {' '.join(argv[2:])}")
      given.images = [*given.images, *argv[2:]]
    check_flags(argv[1], given)
    model = LaVIT.load(given.model, seed=given.seed, batch_size=given.batch_size)
    VERBS[argv[1]](model, given)


if __name__ == "__main__":
  define_flags()
  app.run(main)
