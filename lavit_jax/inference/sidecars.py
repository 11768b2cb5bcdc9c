"""Writes the sidecar of a prepared folder: codes, keep masks and text ids.

For every prepared shard there is a sidecar shard in the same order. Shards are dealt by
their pictures to machines that know nothing of each other, and what is missing of a
machine's part to the hosts of a run, each on a mesh of its own devices."""

import collections
import contextlib
import itertools
import os
import time
from collections.abc import Iterator

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from lavit_jax.core import sharding
from lavit_jax.data import (
  dealing,
  images,
  loading,
  numerics,
  progress,
  records,
  remembered,
  shards,
  shares,
  standing_for,
  text,
  token_figures,
)
from lavit_jax.inference import tokenizing
from lavit_jax.weights import model_directory

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
  target: str = "",
  part: shares.Share = shares.ALL,
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
    target: folder that names `data` and gets the codes; "" for `data` itself.
    part: which shards this machine tokenizes.

  Returns:
    {"images_per_second": of this host, with compilation} and, on the first host of the
    machine that finds every shard there, the sidecar's manifest.
  """
  prepared = records.Records(data)
  mesh = sharding.make_mesh(mesh_sizes or {"data": -1}, jax.local_devices())
  sharding.check_divides(mesh, batch_size=(batch_size, ("data", "fsdp")))
  dtype = dtype or tokenizing.default_dtype(mesh)
  coder = tokenizing.load(model, mesh, dtype, unroll)
  text_tokenizer = text.load_text_tokenizer(f"{model}/text_tokenizer")
  facts = _facts(model, coder, text_tokenizer, dtype)
  if target and jax.process_index() == 0:
    fingerprint = prepared.manifest["fingerprint"]
    standing_for.make(target, prepared.folder, fingerprint)
  writer = records.SidecarWriter(prepared, f"{target or data}/codes", facts)
  mine = _share(writer, part)
  spell = remembered.Remembered(text_tokenizer.encode)  # prompts repeat
  size, threads = coder.tower.image_size, threads or os.cpu_count() or 1
  coming = loading.batches(prepared, mine, batch_size, size, spell, threads)
  counts = [shard["count"] for shard in prepared.manifest["shards"]]
  started, pictures = time.monotonic(), 0
  unknown = text_tokenizer.definition.marks.unknown
  told = progress.Progress("records", sum(counts[n] for n in mine))
  with contextlib.closing(told):
    encoded = _told(_encoded(coder, mesh, coming), told)
    for number, entries, figures in _shards(encoded, coder, mine, unknown):
      figures.save(writer.figures(number))
      writer.write(number, entries)
      pictures += int(figures.kept.sum())
  speed = {"images_per_second": pictures / (time.monotonic() - started)}
  _meet("tokenize end")
  if jax.process_index() or (part != shares.ALL and writer.missing()):
    return speed
  trained = model_directory.part_config(model, "codebook")
  return speed | _finish(writer, len(counts), max_bad, trained)


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


def _share(writer: records.SidecarWriter, part: shares.Share) -> list[int]:
  """Deals the missing shards of a part to the hosts; all see the same ones missing."""
  sizes = _work(writer.records)
  own = dealing.deal(sizes, part.of)[part.index]
  missing = sorted(set(writer.missing()) & set(own))
  _meet("tokenize begin")
  if jax.process_index() == 0 and part == shares.ALL:  # else others may be writing
    for old in writer.folder.glob("*.tmp"):
      old.unlink()
  _meet("tokenize cleared")
  dealt = dealing.deal([sizes[n] for n in missing], jax.process_count())
  return [missing[i] for i in dealt[jax.process_index()]]


def _work(prepared: records.Records) -> list[float]:
  """Work of each shard: its pictures, and a little for every record."""
  ends = np.cumsum([0, *(shard["count"] for shard in prepared.manifest["shards"])])
  pictures = np.concatenate([[0], np.cumsum(prepared.image)])
  return (np.diff(pictures[ends]) + np.diff(ends) / 20).tolist()


def _told(encoded, told: progress.Progress):
  """Counts the records of batches as they pass."""
  bad = 0
  for batch, found in encoded:
    for item in batch.loaded:
      bad += item.error is not None
      told.step(f"{bad} bad")
    yield batch, found


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


def _shards(encoded, coder, numbers, unknown: int | None):
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
        figures.add_texts(item.texts, unknown)
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


def _finish(writer, number: int, max_bad: float, trained: dict) -> dict:
  """Writes report and manifest, unless too many records were bad."""
  parts = (token_figures.load(writer.figures(n)) for n in range(number))
  total = token_figures.join(parts)
  report = total.report()
  shards.write_json(writer.folder / REPORT, report)
  for sentence in token_figures.outside(report, trained):
    logging.warning("%s", sentence)
  total.tally.check(
    max_bad,
    f"see {writer.folder}/{REPORT}, prepare the data again, or accept them: the same"
    " command with a higher --max_bad goes on",
  )
  return writer.finish()
