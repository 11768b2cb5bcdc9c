"""The programming interface: one model directory, images or prompts in, results out.

    from lavit_jax import LaVIT
    model = LaVIT.load("runs/pretrain/model")
    model.caption(["a.png"]), model.answer("a.png", "What color is the circle?")
    model.draw("a red circle")[0].save("circle.png")

Requests run in batches of one size, the last one padded, and prompts are batched with
others of their padded length: a result does not depend on its neighbors.
"""

import functools
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from lavit_jax.data import items
from lavit_jax.data.text import QUESTION
from lavit_jax.generate import decoding, engine, pixels, tasks
from lavit_jax.generate import prompts as layouts
from lavit_jax.generate.beam import Beams
from lavit_jax.generate.logits import Settings
from lavit_jax.inference import (
  batching,
  language,
  meshes,
  pictures,
  pixel_parts,
  tokenizing,
)
from lavit_jax.inference.pictures import Picture
from lavit_jax.weights import model_directory

# A text, or texts and pictures in the order in which the model should see them.
Prompt = str | Sequence[Picture]


class LaVIT:
  """A model directory, loaded; the language side when first used."""

  def __init__(
    self,
    folder: str,
    mesh: Mesh,
    coder: tokenizing.PictureCoder,
    seed: int,
    dtype: str,
    batch_size: int,
  ):
    """Holds the parts; use `LaVIT.load`."""
    self.folder, self.mesh, self.coder = folder, mesh, coder
    self.seed, self.dtype, self.batch_size = seed, dtype, batch_size
    self.image_checker = None  # u8[n, H, W, 3] -> bool[n], which pictures to blank

  @classmethod
  def load(
    cls,
    path: str | pathlib.Path,
    mesh: Mesh | Mapping[str, int] | None = None,
    seed: int = 0,
    dtype: str | None = None,
    batch_size: int = 32,
  ) -> "LaVIT":
    """Loads a model directory.

    Args:
      path: the `model` folder that a finished `train` wrote.
      mesh: devices to spread over, or sizes of axes such as {"tensor": 4} for those of
        this host; all of them when None, see `inference.meshes`.
      seed: seed of drawing; patch selection follows from the picture alone.
      dtype: compute dtype; bfloat16 when None, float32 on a CPU. Pictures get the
        codes of `tokenize` when both compute in one dtype.
      batch_size: requests per program call.
    """
    path = str(path)
    if isinstance(mesh, Mesh):
      mesh = meshes.checked(mesh, path, batch_size)
    else:
      mesh = meshes.make(path, batch_size, mesh)
    dtype = dtype or tokenizing.default_dtype(mesh)
    coder = tokenizing.load(path, mesh, dtype)
    return cls(path, mesh, coder, seed, dtype, batch_size)

  @functools.cached_property
  def language(self) -> language.Language:
    """The language side; a stage-1 directory has none and says so."""
    return language.load(self.folder, self.mesh, self.dtype)

  @functools.cached_property
  def defaults(self) -> dict[str, dict[str, Any]]:
    """Decoding of captions, answers and drawings, by task and name of a number."""
    stored = model_directory.decoding_of(self.folder)
    return decoding.complete(stored, self.coder.model.num_patches)

  def how(self, task: str, **given: float | None) -> Settings | Beams:
    """Decoding of a task: that of the model directory, but for what is given.

    Args:
      task: "caption", "answer" or "draw".
      given: numbers by their name in `generate.decoding.REFERENCE`.
    """
    numbers = decoding.changed(task, self.defaults[task], given)
    words, patches = self.language.vocabulary, self.coder.model.num_patches
    return decoding.settings(task, numbers, words, patches)

  @property
  def image_size(self) -> int:
    """Side in pixels of the pictures that the encoder sees."""
    return self.coder.tower.image_size

  @property
  def has_words(self) -> bool:
    """True when stage 0 left heads that name what a patch shows."""
    return "clip" in model_directory.read_manifest(self.folder)["parts"]

  def tokenize(self, images: Picture | Sequence[Picture]) -> list[dict[str, Any]]:
    """Visual codes of pictures, as the `tokenize` command stores them.

    Args:
      images: Pillow images, paths or uint8[H, W, 3] arrays, one or many.

    Returns:
      {"codes": int32[T], "keep": bool[P]} of each picture.
    """
    return self._tokenize(pictures.stack(images, self.image_size))

  def caption(
    self,
    images: Picture | Sequence[Picture],
    prompt: str = "",
    how: Settings | Beams | None = None,
  ) -> list[str]:
    """Describes pictures.

    Args:
      images: as for `tokenize`.
      prompt: text that the description continues.
      how: made by `how("caption", ...)`; the model's own when None.
    """
    pixels = pictures.stack(images, self.image_size)
    texts = self._write(pixels, [prompt] * len(pixels), how or self.how("caption"))
    return [tasks.cut_caption(text) for text in texts]

  def answer(
    self,
    images: Picture | Sequence[Picture],
    questions: str | Sequence[str],
    how: Settings | Beams | None = None,
  ) -> list[str]:
    """Answers a question about each picture; a single picture serves all questions.

    Args:
      images: as for `tokenize`.
      questions: one per picture.
      how: made by `how("answer", ...)`; the model's own when None.
    """
    pixels, questions = pictures.stack(images, self.image_size), _texts(questions)
    if len(pixels) == 1:
      pixels = np.repeat(pixels, len(questions), axis=0)
    if len(pixels) != len(questions):
      raise ValueError(
        f"expected one picture per question, got {len(pixels)} pictures and"
        f" {len(questions)} questions; repeat the pictures"
      )
    asked = [QUESTION.format(question) for question in questions]
    texts = self._write(pixels, asked, how or self.how("answer"))
    return [tasks.cut_answer(text) for text in texts]

  def draw_codes(
    self,
    prompts: str | Sequence[Prompt],
    n: int = 1,
    guidance: float | None = None,
    top_k: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    how: Settings | None = None,
  ) -> list[np.ndarray]:
    """Draws the visual codes of prompts; what is None is the model's own.

    Args:
      prompts: texts; or lists of texts and pictures, whose codes are joined.
      n: drawings per prompt; at temperature 0 all have the same codes.
      guidance: weight of the prompt; 1 is none.
      top_k: codes to sample from, 0 for all.
      temperature: of sampling; 0 takes the most probable code.
      seed: of sampling; equal seeds give equal drawings.
      how: made by `how("draw", ...)`, instead of the three numbers.

    Returns:
      int32[T] codes, n for the first prompt, then n for the next.
    """
    given = dict(guidance=guidance, top_k=top_k, temperature=temperature)
    if how and any(number is not None for number in given.values()):
      raise ValueError(f"expected `how` or some of {', '.join(given)}, got both")
    words, settings = self.language.vocabulary, how or self.how("draw", **given)
    ids = [self._prompt_ids(prompt) for prompt in _texts(prompts)]
    requests = [layouts.drawing(own, words) for own in ids for _ in range(n)]
    keys = tasks.drawing_keys(self.seed if seed is None else seed, ids, n)
    found = self._continue(requests, settings, keys.reshape(-1, 2))
    return [tasks.codes_of(own, words) for own in found]

  def draw(
    self,
    prompts: str | Sequence[Prompt],
    ratio: str = "1:1",
    guidance: float | None = None,
    n: int = 1,
    top_k: int | None = None,
    temperature: float | None = None,
    seed: int | None = None,
    size: tuple[int, int] | None = None,
    sampling: pixels.Settings | None = None,
    how: Settings | None = None,
  ) -> list[Image.Image]:
    """Draws pictures of prompts; what is None is the model's own.

    Args:
      prompts: texts; or lists of texts and pictures, whose codes are joined.
      ratio: width to height, one that the pixel decoder was trained on.
      guidance: of the codes; this and the rest as for `draw_codes`.
      size: height and width in pixels, instead of `ratio`.
      sampling: solver, steps and guidance of the pixels.
    """
    size = pixels.check_size(size or pixels.size_of(ratio, self.pixel_decoder.ratios))
    codes = self.draw_codes(prompts, n, guidance, top_k, temperature, seed, how)
    numbers = np.arange(len(codes), dtype=np.uint32) % n  # for noise of their own
    return self._paint(codes, numbers, size, sampling, seed)

  def reconstruct(
    self,
    images: Picture | Sequence[Picture],
    ratio: str = "1:1",
    seed: int | None = None,
    size: tuple[int, int] | None = None,
    sampling: pixels.Settings | None = None,
  ) -> list[Image.Image]:
    """Draws pictures again from their own codes; arguments as for `draw`."""
    size = size or pixels.size_of(ratio, self.pixel_decoder.ratios)
    codes = [found["codes"] for found in self.tokenize(images)]
    return self.paint(codes, size, sampling, seed)

  def paint(
    self,
    codes: Sequence[np.ndarray],
    size: tuple[int, int],
    sampling: pixels.Settings | None = None,
    seed: int | None = None,
  ) -> list[Image.Image]:
    """Draws pictures of n lists of codes; noise follows from seed and codes alone.

    Args:
      codes: int[T] each, from 1 to P of them.
      size: height and width in pixels.
      sampling, seed: as for `draw`.
    """
    return self._paint(codes, np.zeros(len(codes), np.uint32), size, sampling, seed)

  def _paint(self, codes, numbers, size, sampling, seed) -> list[Image.Image]:
    """Draws codes; noise follows from seed, codes and number of a drawing."""
    decoder, size = self.pixel_decoder, pixels.check_size(size)
    names = [zlib.crc32(np.asarray(own, np.int32).tobytes()) for own in codes]
    key = jax.random.key(self.seed if seed is None else seed)

    def run(features, names, numbers):
      keys = tasks.fold_keys(key, names, numbers)
      return pixel_parts.draw(
        decoder, features, keys, size, sampling or decoder.settings
      )

    if not codes:
      return []
    features = self._decode(pixel_parts.coder_of(self.coder, decoder), codes)
    found = self.in_chunks(run, features, np.array(names, np.uint32), numbers)
    checked = pictures.blanked(found, self.image_checker)
    return [Image.fromarray(picture) for picture in checked]

  @functools.cached_property
  def pixel_decoder(self) -> pixel_parts.PixelDecoder:
    """The pixel decoder, that of high resolution first; without one it says so."""
    return pixel_parts.load_best(self.folder, self.mesh, self.dtype)

  @property
  def has_pixels(self) -> bool:
    """True when the model can draw pictures."""
    return bool(pixel_parts.present(self.folder))

  def decode_features(self, codes: Sequence[np.ndarray]) -> np.ndarray:
    """Patch features float32[n, P, D] of n lists of 1 to P codes."""
    return self._decode(self.coder, codes)

  def _decode(self, coder, codes: Sequence[np.ndarray]) -> np.ndarray:
    model = self.coder.model
    packed = tokenizing.pack_codes(codes, model.num_patches, model.num_codes)
    run = functools.partial(tokenizing.decode_codes, coder)
    if not len(codes):
      return np.zeros((0, model.num_patches, model.embed_dim), np.float32)
    return self.in_chunks(run, *packed)

  def _prompt_ids(self, prompt: Prompt) -> list[int]:
    """Ids of a prompt; a picture is its bare codes, without marks (reference, 8)."""
    words, ids = self.language.vocabulary, []
    for part in [prompt] if isinstance(prompt, str) else prompt:
      if isinstance(part, str):
        ids += self.language.tokenizer.encode(part) if part else []
      else:
        ids += (self.tokenize(part)[0]["codes"] + words.code_start).tolist()
    return ids

  def _tokenize(self, pixels: np.ndarray) -> list[dict[str, Any]]:
    if not len(pixels):
      return []
    names = np.array([items.noise_id(p) for p in pixels], np.uint32)
    run = functools.partial(tokenizing.encode_pictures, self.coder)
    found = self.in_chunks(run, pixels, names)
    return [
      {"codes": codes[keep], "keep": keep}
      for codes, keep in zip(found.codes, found.keep, strict=True)
    ]

  def _write(self, pixels: np.ndarray, texts: list[str], how) -> list[str]:
    """Continues [IMG] features [/IMG] text until the end mark."""
    words, tokenizer = self.language.vocabulary, self.language.tokenizer
    keep = [found["keep"] for found in self._tokenize(pixels)]
    requests = [
      layouts.understanding(kept, tokenizer.encode(own) if own else [], words)
      for kept, own in zip(keep, texts, strict=True)
    ]
    keys = np.zeros((len(requests), 2), np.uint32)
    found = self._continue(requests, how, keys, (pixels, np.array(keep)))
    return [tokenizer.decode(ids) for ids in found]

  def _continue(self, prompts, how, keys, shown=None) -> list[np.ndarray]:
    """New ids of each prompt, without the end; `shown` is (pixels, keep) by prompt."""
    requests = [engine.Request(p, how, k) for p, k in zip(prompts, keys, strict=True)]
    return [found[0].ids for found in self.replies(requests, shown)]

  def replies(
    self,
    requests: Sequence[engine.Request],
    shown: tuple[np.ndarray, np.ndarray] | None = None,
  ) -> list[list[engine.Reply]]:
    """Runs any mixture of requests; see `generate.engine.generate`.

    Args:
      requests: prompts may show a picture.
      shown: uint8[n, H, W, 3] pictures and bool[n, P] keep masks by request, anything
        where a request shows none; None when no request shows one.
    """
    with jax.set_mesh(self.mesh):
      side, vectors = self.language.serving, self._vectors(shown)
      return engine.generate(side, requests, vectors, self.batch_size)

  def stream(
    self, image: Picture, prompt: str = "", how: Settings | None = None
  ) -> Iterator[str]:
    """Describes one picture bit by bit: the text so far, longer each time.

    Args:
      image: as for `tokenize`.
      prompt: text that the description continues.
      how: as made by `how("caption", beams=1)`: a search has no text before its end.
    """
    pixels = pictures.stack([image], self.image_size)
    keep = self._tokenize(pixels)[0]["keep"]
    side = self.language
    ids = side.tokenizer.encode(prompt) if prompt else []
    how = how or self.how("caption", beams=1)
    request = engine.Request(layouts.understanding(keep, ids, side.vocabulary), how)
    vectors = self._vectors((pixels, keep[None]))
    with jax.set_mesh(self.mesh):
      for found in engine.stream(side.serving, request, vectors):
        text = tasks.cut_caption(side.tokenizer.decode(found))
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):  # half of a character
          yield text

  def _vectors(self, shown) -> engine.Vectors:
    return functools.partial(language.vectors, self.language, self.coder, shown)

  def in_chunks(self, function, *arrays: np.ndarray) -> Any:
    """Applies a batched function to padded chunks of at least one row."""
    with jax.set_mesh(self.mesh):
      return batching.in_batches(function, self.batch_size, *arrays)


def _texts(texts: str | Sequence[str]) -> list[str]:
  return [texts] if isinstance(texts, str) else list(texts)
