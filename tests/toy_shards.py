"""A handful of prepared records with hand-made codes, for the data tests."""

import numpy as np

from lavit_jax.core import vocabulary
from lavit_jax.data import images, numerics, records

SIZE, PATCHES = 8, 4
VOCABULARY = vocabulary.Vocabulary(text_size=40, num_codes=24)
FACTS = {
  "visual_tokenizer": "abc",
  "text_tokenizer": "def",
  "resize": images.RESIZE_VERSION,
  "image_size": SIZE,
  "patches": PATCHES,
  "num_codes": 24,
  "dtype": "float32",
  "numerics": numerics.VERSION,
}


def record(i, bad=()):
  """Records 0, 1, 2 of every 4 have a picture; the fourth is a text."""
  if i % 4 == 3:
    return {
      "id": f"r{i}",
      "image": b"",
      "texts": [{"task": "text", "turns": [["", "words"]]}],
    }
  image = images.encode(np.full((SIZE, SIZE, 3), i, np.uint8))
  texts = [
    {"task": "caption", "turns": [["", "a b c"]]},
    {"task": "answer", "turns": [["q", "x"], ["q q", "y"]]},
  ]
  return {"id": f"r{i}", "image": image[:45] if i in bad else image, "texts": texts}


def sidecar(i):
  if i % 4 == 3:
    ids = np.arange(3, 3 + 5 + i % 7)
    return records.pack_sidecar(
      f"r{i}", [], None, [{"task": "text", "turns": [([], ids)]}]
    )
  keep = np.arange(PATCHES) <= i % PATCHES
  texts = [
    {"task": "caption", "turns": [([], [10, 11, 12])]},
    {"task": "answer", "turns": [([20], [21]), ([22, 23], [24])]},
  ]
  return records.pack_sidecar(f"r{i}", np.arange(keep.sum()), keep, texts)


def write(folder, count=16, per_shard=6, bad=()):
  """Writes records and sidecar; returns both opened."""
  records.write_shards(
    (record(i, bad) for i in range(count)), folder / "records", "toy", per_shard
  )
  prepared = records.Records(folder / "records")
  writer = records.SidecarWriter(prepared, folder / "sidecar", FACTS)
  for shard in writer.missing():
    names = [item["id"] for item in prepared.shard(shard)]
    writer.write(shard, [sidecar(int(name[1:])) for name in names])
  writer.finish()
  return prepared, records.Sidecar(folder / "sidecar")
