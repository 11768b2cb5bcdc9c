"""Items of the stages that read pictures: a prepared record becomes an example."""

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from lavit_jax.data import images, pipeline
from lavit_jax.data.text import TextTokenizer

UNLABELED = 255


def noise_id(picture: np.ndarray) -> np.uint32:
  """Names a picture by its pixels: the selector's noise follows from it alone."""
  return np.uint32(zlib.crc32(np.ascontiguousarray(picture).tobytes()))


def picture(record: dict, size: int) -> dict[str, np.ndarray]:
  """Decodes a record: {"image": u8[size, size, 3], "noise_id": u32[]}."""
  pixels = images.decode(record["image"], size)
  return {"image": pixels, "noise_id": noise_id(pixels)}


def captioned(
  tokenizer: TextTokenizer,
  size: int,
  max_length: int,
  num_patches: int,
  words: Sequence[str],
) -> Callable[[dict], dict[str, np.ndarray]]:
  """Makes the item function of stage 0.

  Args:
    tokenizer: encodes captions.
    size: side of the picture.
    max_length: T, longest caption.
    num_patches: P, labels per word kind.
    words: kinds of patch words.

  Returns:
    (record, generator) -> {"image", "tokens" i32[T], "length" i32[]} and, by word kind,
    labels u8[P], 255 where unlabeled.
  """

  def item(record: dict, generator: np.random.Generator) -> dict[str, np.ndarray]:
    caption = pipeline.choose_text(record, "caption", generator)
    ids = tokenizer.encode(caption["turns"][0][1])
    if len(ids) > max_length:
      raise ValueError(
        f"caption of record {record['id']} has {len(ids)} tokens, the text tower takes"
        f" {max_length}; raise config.model.text.max_length or shorten it"
      )
    tokens = np.zeros(max_length, np.int32)
    tokens[: len(ids)] = ids
    labels = record.get("labels", {})
    blank = bytes([UNLABELED]) * num_patches
    found = {kind: np.frombuffer(labels.get(kind, blank), np.uint8) for kind in words}
    return {
      "image": images.decode(record["image"], size),
      "tokens": tokens,
      "length": np.int32(len(ids)),
    } | found

  return item
