"""Pictures and texts as LaVIT takes them."""

import zlib

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import PreTrainedTokenizerFast
from transformers.processing_utils import ProcessorMixin

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
MASK = 0xFFFFFFFF


class LavitProcessor(ProcessorMixin):
  """Makes inputs of the model, and texts of its ids.

  Which patches of a picture are kept follows from `seed` and its pixels.
  """

  def __init__(self, tokenizer, image_size, num_patches, seed=0):
    self.tokenizer, self.seed = tokenizer, seed
    self.image_size, self.num_patches = image_size, num_patches

  @classmethod
  def from_pretrained(cls, path, **kwargs):
    """Reads processor_config.json and the tokenizer in language/."""
    kwargs.pop("trust_remote_code", None)
    own, _ = cls.get_processor_dict(path, **kwargs)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path, subfolder="language")
    tokenizer.padding_side = "left"
    return cls(tokenizer, own["image_size"], own["num_patches"])

  def __call__(self, text=None, images=None, drawing=False, question=False):
    """A left-padded batch: what the model's methods take, by name.

    Pictures (Pillow, or uint8[H, W, 3]) stand before their texts, one for each; drawing
    ends each text with [IMG]; question puts it into the words of training.
    """
    if images is not None and not isinstance(images, (list, tuple)):
      images = [images]
    if text is None or isinstance(text, str):
      text = [text or ""] * len(images or [0])
    if images is not None and len(text) != len(images):
      raise ValueError(
        f"expected one text for each picture, got {len(text)} texts and {len(images)}"
        " pictures"
      )
    if question:
      text = [f"Question: {one} Answer:" for one in text]
    start = self.tokenizer.convert_tokens_to_ids("[IMG]")
    shown = [start, start + 1] if images is not None else []
    rows = [shown + self._ids(one) + [start] * drawing for one in text]
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), 2)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
      ids[i, length - len(row) :] = torch.tensor(row, dtype=torch.long)
      mask[i, length - len(row) :] = 1
    found = {"input_ids": ids, "attention_mask": mask}
    return found if images is None else found | self.pictures(images)

  def _ids(self, text):
    plain = dict(add_special_tokens=False, split_special_tokens=True)
    return self.tokenizer(text, **plain).input_ids if text else []

  def pictures(self, images):
    """pixel_values float32[B, 3, S, S] and selection_noise float32[B, P, 2]."""
    squashed = [self._squash(image) for image in images]
    pixels = torch.from_numpy(np.stack(squashed)).float() / 255
    pixels = (pixels - torch.tensor(MEAN)) / torch.tensor(STD)
    noise = [selection_noise(one, self.seed, self.num_patches) for one in squashed]
    noise = torch.from_numpy(np.stack(noise))
    return {"pixel_values": pixels.permute(0, 3, 1, 2), "selection_noise": noise}

  def _squash(self, image):
    if not isinstance(image, Image.Image):
      image = Image.fromarray(np.asarray(image))
    image = ImageOps.exif_transpose(image).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")  # behind what is transparent
    image = Image.alpha_composite(white, image).convert("RGB")
    side = (self.image_size, self.image_size)
    return np.asarray(image.resize(side, Image.Resampling.BICUBIC))

  def texts(self, ids, task="caption"):
    """Texts of new ids, cut where a caption or an answer ends."""
    marks = "." if task == "caption" else ("\n", "question:", "Long answer:", ",", ".")
    found = []
    for row in ids.tolist():
      kept = [i for i in row if 2 < i < self.tokenizer.vocab_size]
      text = self.tokenizer.decode(kept, skip_special_tokens=True).strip()
      for mark in marks:
        text = text.split(mark)[0]
      found.append(text if task == "caption" else text.strip())
    return found


def selection_noise(picture, seed, count):
  """Gumbel noise float32[count, 2] of a uint8[S, S, 3] picture's own.

  A counter-based generator (Threefry-2x32, Salmon et al. 2011): the same bits on every
  machine, and those of the program that trained the model.
  """
  name = zlib.crc32(np.ascontiguousarray(picture).tobytes())
  key = threefry((0, seed), np.zeros(1, np.uint64), np.array([name], np.uint64))
  places = np.arange(2 * count, dtype=np.uint64)
  high, low = threefry((key[0][0], key[1][0]), places >> np.uint64(32), places)
  bits = ((high ^ low) >> np.uint64(9)) | np.uint64(0x3F800000)
  uniform = bits.astype(np.uint32).view(np.float32) - np.float32(1)
  tiny = np.finfo(np.float32).tiny
  uniform = np.maximum(tiny, uniform * (np.float32(1) - tiny) + tiny)
  return -np.log(-np.log(uniform)).reshape(count, 2)


def threefry(key, first, second):
  """Twenty rounds on two words of 32 bits, held in uint64."""
  keys = [np.uint64(k) for k in key]
  keys.append(keys[0] ^ keys[1] ^ np.uint64(0x1BD11BDA))
  mask = np.uint64(MASK)
  x, y = (first + keys[0]) & mask, ((second & mask) + keys[1]) & mask
  for group in range(5):
    for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
      x = (x + y) & mask
      y = ((y << np.uint64(turn)) | (y >> np.uint64(32 - turn))) & mask
      y ^= x
    x = (x + keys[(group + 1) % 3]) & mask
    y = (y + keys[(group + 2) % 3] + np.uint64(group + 1)) & mask
  return x, y
