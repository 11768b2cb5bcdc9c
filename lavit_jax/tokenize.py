"""Tokenizes once: `python -m lavit_jax.tokenize --model=DIR --data=DIR`.

For every prepared shard it writes a sidecar shard below DATA/codes, in the same order:
text ids, visual codes, keep mask and count, no pixels. From then on every length is
known without reading a picture. An interrupted run continues with the missing shards;
several hosts share the shards between them.
"""

import functools
import itertools
import sys
from collections.abc import Iterator

import jax
import numpy as np
from absl import app, flags
from tqdm import tqdm

from lavit_jax import sharding
from lavit_jax.data import images, items, records, text
from lavit_jax.stages import tokenizing

MODEL = flags.DEFINE_string("model", None, "Model directory with a visual tokenizer.")
DATA = flags.DEFINE_string("data", None, "Prepared folder; codes go to DATA/codes.")
DTYPE = flags.DEFINE_string("dtype", "", "Compute dtype; that of inference if empty.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Pictures per device batch.")


def run(
  model: str, data: str, batch_size: int = 256, dtype: str = "", unroll: int = 1
) -> dict:
  """Writes the sidecar of a prepared folder.

  Args:
    model: model directory with vit, visual_tokenizer, codebook and text tokenizer.
    data: prepared folder.
    batch_size: pictures per compiled call.
    dtype: compute dtype, "" for the one that inference takes by default.
    unroll: layers per scan step.

  Returns:
    The sidecar's manifest.
  """
  prepared = records.Records(data)
  mesh = sharding.make_mesh({"data": -1}, jax.local_devices())
  sharding.check_divides(mesh, batch_size=(batch_size, ("data",)))
  dtype = dtype or tokenizing.default_dtype(mesh)
  coder = tokenizing.load(model, mesh, dtype, unroll)
  text_tokenizer = text.load_text_tokenizer(f"{model}/text_tokenizer")
  if coder.model.num_codes > 2**16:
    raise ValueError(
      f"codes are stored in 16 bits: expected at most 65536 codes, got"
      f" {coder.model.num_codes}; use a smaller codebook"
    )
  facts = {
    "visual_tokenizer": tokenizing.checksum(model),
    "text_tokenizer": text_tokenizer.checksum,
    "resize": images.RESIZE_VERSION,
    "image_size": coder.tower.image_size,
    "patches": coder.model.num_patches,
    "num_codes": coder.model.num_codes,
  }
  spell = functools.lru_cache(maxsize=2**16)(text_tokenizer.encode)  # prompts repeat
  writer = records.SidecarWriter(prepared, f"{data}/codes", facts)
  shards = range(len(prepared.manifest["shards"]))
  missing = set(writer.missing())
  mine = [n for n in shards[jax.process_index() :: jax.process_count()] if n in missing]
  total = sum(prepared.manifest["shards"][number]["count"] for number in mine)
  bar = tqdm(total=total, desc="tokenize", disable=not sys.stderr.isatty())
  for number in mine:
    entries = []
    for batch in _batches(prepared.shard(number), batch_size):
      entries += _encode(coder, spell, mesh, batch_size, batch)
    writer.write(number, entries)
    bar.update(len(entries))
  bar.close()
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("tokenize")
  return writer.finish() if jax.process_index() == 0 else {}


def _batches(shard: Iterator[dict], size: int) -> Iterator[list[dict]]:
  while batch := list(itertools.islice(shard, size)):
    yield batch


def _encode(coder, spell, mesh, batch_size, batch) -> Iterator[dict]:
  """Encodes up to `batch_size` records; text-only ones have no codes."""
  size = coder.tower.image_size
  pixels = np.zeros((batch_size, size, size, 3), np.uint8)  # one shape, one program
  for i, record in enumerate(batch):
    if record["image"]:
      try:
        pixels[i] = images.decode(record["image"], size)
      except ValueError as error:
        raise ValueError(f"record {record['id']!r}: {error}") from error
  noise_ids = np.array([items.noise_id(picture) for picture in pixels], np.uint32)
  spread = sharding.batch_sharding(mesh)
  found = tokenizing.encode_pictures(
    coder, jax.device_put(pixels, spread), jax.device_put(noise_ids, spread)
  )
  codes, keep = np.asarray(found.codes), np.asarray(found.keep)
  for i, record in enumerate(batch):
    texts = [
      {
        "task": entry["task"],
        "turns": [
          [spell(words) if words else [] for words in turn] for turn in entry["turns"]
        ],
      }
      for entry in record["texts"]
    ]
    has_picture = bool(record["image"])
    yield records.pack_sidecar(
      record["id"],
      codes[i][keep[i]] if has_picture else [],
      keep[i] if has_picture else None,
      texts,
    )


def main(argv: list[str]) -> None:
  """Command line entry."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments {argv[1:]}")
  try:
    manifest = run(MODEL.value, DATA.value, BATCH_SIZE.value, DTYPE.value)
  except ValueError as error:
    sys.exit(f"error: {error}")
  if manifest:
    print(f"{manifest['count']} records, {manifest['visual_tokens']} visual tokens")


if __name__ == "__main__":
  flags.mark_flags_as_required(["model", "data"])
  app.run(main)
