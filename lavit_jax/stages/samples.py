"""What a model in training says and draws: the same ten held-out pictures over time."""

import dataclasses
import textwrap
from collections.abc import Callable, Sequence

import ml_collections
import numpy as np
from jax.sharding import Mesh
from PIL import Image, ImageDraw

from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.data import images, records, text
from lavit_jax.generate import decoding
from lavit_jax.inference import api, language, tokenizing
from lavit_jax.models import lavit
from lavit_jax.stages import pretrain, warm_start
from lavit_jax.weights import model_directory

# (model, features float[n, P, D]) -> n pictures u8[H, W, 3].
PatchPainter = Callable[[api.LaVIT, np.ndarray], Sequence[np.ndarray]]
COUNT = 10
TILE = 96  # pixels of a picture in the grid
TEXT_WIDTH = 560
LETTERS, LINES = 55, 3  # of a text beside a picture, in Pillow's own font


@dataclasses.dataclass(frozen=True)
class Samples:
  """The fixed pictures and the frozen parts that read them.

  Attributes:
    pixels: u8[n, H, W, 3] held-out pictures.
    captions: their true captions, which are also the prompts of the drawings.
    model: the frozen parts; its language side comes from the state.
    module: the language side, without parameters.
    vocabulary: its vocabulary.
    tokenizer: its text tokenizer.
    paint: makes pictures of drawn features, or None.
  """

  pixels: np.ndarray
  captions: list[str]
  model: api.LaVIT
  module: lavit.LaVIT
  vocabulary: Vocabulary
  tokenizer: text.TextTokenizer
  paint: PatchPainter | None


def make(
  config: ml_collections.ConfigDict, mesh: Mesh, paint: PatchPainter | None = None
) -> Samples | None:
  """Reads the first held-out captioned pictures of a stage-2 config; None without.

  Args:
    config: stage config.
    mesh: the mesh.
    paint: makes pictures of drawn features, where it is known how to read them.
  """
  coder = tokenizing.load(config.init_from, mesh, config.dtype, config.unroll)
  across = mesh.shape["data"] * mesh.shape["fsdp"]
  rows = -(-COUNT // across) * across
  model = api.LaVIT(
    config.init_from, mesh, coder, config.seed, config.dtype, batch_size=rows
  )
  model.defaults = decoding.complete(config.decoding.to_dict(), coder.model.num_patches)
  tokenizer = text.load_text_tokenizer(config.data.text_tokenizer)
  sizes = model_directory.part_config(config.init_from, "visual_tokenizer")
  folder = warm_start.folder_of(config)
  words = warm_start.vocabulary(folder, tokenizer, sizes["num_codes"])
  module = pretrain.make_model(config, words, sizes)
  prepared = records.Records(config.data.eval)
  captioned = np.flatnonzero(prepared.image & (prepared.entries[:, 0] > 0))[:COUNT]
  if not len(captioned):
    return None
  chosen = [prepared[int(i)] for i in captioned]
  size = coder.tower.image_size
  return Samples(
    np.stack([images.decode(record["image"], size) for record in chosen]),
    [_caption(record) for record in chosen],
    model,
    module,
    words,
    tokenizer,
    paint,
  )


def _caption(record: dict) -> str:
  entry = next(e for e in record["texts"] if e["task"] == "caption")
  return entry["turns"][0][1]


def take(samples: Samples, params) -> np.ndarray:
  """Captions the pictures and draws their captions with the current parameters.

  Args:
    samples: the fixed pictures.
    params: parameters of `models.lavit.LaVIT`.

  Returns:
    u8[H, W, 3] grid: picture, true and generated caption, and the drawn patches by
    color where something can paint them.
  """
  model = samples.model
  model.language = language.make(
    samples.module, params, samples.vocabulary, samples.tokenizer, model.mesh
  )
  said = model.caption(samples.pixels)
  drawn = None
  if samples.paint is not None:
    codes = model.draw_codes(samples.captions)
    drawn = samples.paint(model, model.decode_features(codes))
  grid = Image.new("RGB", (2 * TILE + TEXT_WIDTH, TILE * len(said)), "white")
  pen = ImageDraw.Draw(grid)
  for row, (pixels, true, own) in enumerate(
    zip(samples.pixels, samples.captions, said)
  ):
    top = row * TILE
    grid.paste(_tile(pixels), (0, top))
    if drawn is not None:
      grid.paste(_tile(drawn[row]), (TILE + TEXT_WIDTH, top))
    pen.text((TILE + 8, top + 6), fitting(f"true  {true}"), fill="black")
    pen.text((TILE + 8, top + 50), fitting(f"model {own}"), fill="navy")
  return np.asarray(grid)


def fitting(said: str) -> str:
  """A text in lines that end before the drawing beside it; a long one is cut short."""
  found = textwrap.wrap(said, LETTERS, max_lines=LINES, placeholder=" ...")
  return "\n".join(found)


def _tile(pixels: np.ndarray) -> Image.Image:
  return Image.fromarray(pixels).resize((TILE - 4, TILE - 4), Image.Resampling.NEAREST)
