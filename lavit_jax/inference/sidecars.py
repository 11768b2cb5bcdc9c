"""Writes the sidecar of a prepared folder: codes, keep masks and text ids.

For every prepared shard there is a sidecar shard in the same order. Missing shards are
dealt to the hosts, each on a mesh of its own devices."""

import collections
import functools
import itertools
import os
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from lavit_jax.core import sharding
from lavit_jax.data import (
  images,
  loading,
  numerics,
  records,
  shards,
  text,
  token_figures,
)
from lavit_jax.inference import tokenizing

REPORT = "report.json"
IN_FLIGHT = 2  # batches on the device at a time


def run(
  model: str,
  data: str,
  batch_size: int = 256,
  dtype: str = "",
  unroll: int = 1,
  mesh_sizes: dict[str, int] | None = None,
  threads: int = 0,
  max_bad: float = 0.01,
) -> dict:
  """Writes the sidecar of a prepared folder.

  Args:
    model: model directory with vit, visual_tokenizer, codebook and text tokenizer.
    data: prepared folder.
    batch_size: pictures per compiled call.
    dtype: compute dtype, "" for the one that inference takes by default.
    unroll: layers per scan step.
    mesh_sizes: mesh of this host's devices, all on the data axis if None.
    threads: threads that decode, 0 for one per core.
    max_bad: largest share of records whose picture does not decode.

  Returns:
    {"images_per_second": of this host, with compilation} and, on the first host, the
    sidecar's manifest.
  """
  prepared = records.Records(data)
  mesh = sharding.make_mesh(mesh_sizes or {"data": -1}, jax.local_devices())
  sharding.check_divides(mesh, batch_size=(batch_size, ("data", "fsdp")))
  dtype = dtype or tokenizing.default_dtype(mesh)
  coder = tokenizing.load(model, mesh, dtype, unroll)
  text_tokenizer = text.load_text_tokenizer(f"{model}/text_tokenizer")
  facts = _facts(model, coder, text_tokenizer, dtype)
  writer = records.SidecarWriter(prepared, f"{data}/codes", facts)
  mine = _share(writer)
  spell = functools.lru_cache(maxsize=2**16)(text_tokenizer.encode)  # prompts repeat
  size, threads = coder.tower.image_size, threads or os.cpu_count() or 1
  coming = loading.batches(prepared, mine, batch_size, size, spell, threads)
  counts = [shard["count"] for shard in prepared.manifest["shards"]]
  started, pictures = time.monotonic(), 0
  with tqdm(total=sum(counts[n] for n in mine), disable=not sys.stderr.isatty()) as bar:
    bar.set_description("tokenize")
    for number, entries, figures in _shards(_encoded(coder, mesh, coming), coder, mine):
      figures.save(writer.figures(number))
      writer.write(number, entries)
      bar.update(len(entries))
      pictures += int(figures.kept.sum())
  speed = {"images_per_second": pictures / (time.monotonic() - started)}
  _meet("tokenize end")
  if jax.process_index():
    return speed
  return speed | _finish(writer, len(counts), max_bad)


def _facts(model, coder, text_tokenizer, dtype) -> dict:
  """What the sidecar depends on."""
  if coder.model.num_codes > 2**16:
    raise ValueError(
      f"codes are stored in 16 bits: expected at most 65536 codes, got"
      f" {coder.model.num_codes}; use a smaller codebook"
    )
  return {
    "visual_tokenizer": tokenizing.checksum(model),
    "text_tokenizer": text_tokenizer.checksum,
    "resize": images.RESIZE_VERSION,
    "image_size": coder.tower.image_size,
    "patches": coder.model.num_patches,
    "num_codes": coder.model.num_codes,
    "dtype": dtype,
    "numerics": numerics.VERSION,
  }


def _share(writer: records.SidecarWriter) -> list[int]:
  """Deals the missing shards to the hosts; all see the same ones missing."""
  missing = writer.missing()
  _meet("tokenize begin")
  if jax.process_index() == 0:
    for old in writer.folder.glob("*.tmp"):
      old.unlink()
  _meet("tokenize cleared")
  return missing[jax.process_index() :: jax.process_count()]


def _meet(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def _encoded(coder, mesh, batches) -> Iterator[tuple[loading.Batch, np.ndarray]]:
  """Yields each batch with its codes and keep masks, while the next is on its way."""
  spread, waiting = sharding.batch_sharding(mesh), collections.deque()
  for batch in batches:
    found = None
    if any(item.picture is not None for item in batch.loaded):
      pixels = jax.device_put(batch.pixels, spread)
      noise_ids = jax.device_put(batch.noise_ids, spread)
      found = tokenizing.encode_pictures(coder, pixels, noise_ids)
    waiting.append((batch, found))
    if len(waiting) == IN_FLIGHT:
      yield waiting.popleft()
  yield from waiting


def _shards(encoded, coder, numbers):
  """Yields (number, sidecar dicts, figures) of each shard when it is complete."""
  empty = set(numbers)
  sizes = coder.model.num_patches, coder.model.num_codes
  for number, group in itertools.groupby(encoded, lambda pair: pair[0].shard):
    entries, figures = [], token_figures.new(*sizes)
    for batch, found in group:
      codes = keep = None
      if found is not None:
        codes, keep = np.asarray(found.codes), np.asarray(found.keep)
      for i, item in enumerate(batch.loaded):
        entries.append(_sidecar(item, codes, keep, i, figures))
    empty.remove(number)
    yield number, entries, figures
  for number in sorted(empty):
    yield number, [], token_figures.new(*sizes)


def _sidecar(item: loading.Loaded, codes, keep, i: int, figures) -> dict:
  """Makes the sidecar of one record; a bad one keeps its place, without documents."""
  if item.error is not None:
    figures.tally.add(item.name, item.error)
  else:
    figures.tally.good += 1
  if item.picture is None:
    return records.pack_sidecar(item.name, [], None, item.texts)
  kept = codes[i][keep[i]]
  figures.add(kept)
  return records.pack_sidecar(item.name, kept, keep[i], item.texts)


def _finish(writer: records.SidecarWriter, number: int, max_bad: float) -> dict:
  """Writes report and manifest, unless too many records were bad."""
  parts = (token_figures.load(writer.figures(n)) for n in range(number))
  total = token_figures.join(parts)
  report = total.report()
  shards.write_json(writer.folder / REPORT, report)
  total.tally.check(
    max_bad,
    f"see {writer.folder}/{REPORT}, prepare the data again, or accept them: the same"
    " command with a higher --max_bad goes on",
  )
  return writer.finish()
