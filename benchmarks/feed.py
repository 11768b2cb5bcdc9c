"""Pictures per second: this feed, a PyTorch feed, and decoding alone, interleaved.

    python benchmarks/feed.py [--pictures=600] [--rounds=5]

All read the same JPEGs, cut from scikit-image's photographs at sizes as on the web
(shorter edge 256 to 640, quality 75 to 95), in webdataset tars as img2dataset writes
them. Ours reads the records made from these tars, in shuffled order, and ends with
batches on the device; the peer is webdataset in a torch DataLoader with Pillow and ends
with batches in the training process. Both squash to 224 with the bicubic filter.
"Normalized" is the peer as LaVIT's reference feeds it, float32 from the host; "uint8"
hands over bytes, as ours does. Decoding alone is the same decoding on as many threads
as there are cores, from memory, with nothing around it. Processor time tells what a
picture costs even where other programs share the machine.

Needs the extra `judges`.
"""

import argparse
import concurrent.futures
import contextlib
import io
import json
import multiprocessing
import os
import pathlib
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np

SIZE, BATCH, TARS = 224, 32, 4
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
MEAN = np.float32([0.48145466, 0.4578275, 0.40821073])
STD = np.float32([0.26862954, 0.26130258, 0.27577711])


def jpegs(number: int) -> Iterator[bytes]:
  """Yields crops of the photographs at web-like sizes."""
  import skimage.data
  from PIL import Image

  rng = np.random.default_rng(0)
  photographs = [Image.fromarray(getattr(skimage.data, n)()) for n in PHOTOGRAPHS]
  for i in range(number):
    whole = photographs[i % len(photographs)]
    short, ratio = int(rng.integers(256, 641)), rng.uniform(1.0, 1.8)
    size = (
      (int(short * ratio), short) if rng.random() < 0.7 else (short, int(short * ratio))
    )
    left, top = (rng.uniform(0, 0.3, 2) * whole.size).astype(int).tolist()
    picture = whole.crop((left, top, *whole.size)).resize(
      size, Image.Resampling.LANCZOS
    )
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=int(rng.integers(75, 96)))
    yield buffer.getvalue()


def write_tars(folder: pathlib.Path, pictures: list[bytes]) -> list[str]:
  """Writes KEY.jpg, KEY.txt and KEY.json members, as img2dataset does."""
  paths = [str(folder / f"{i:05d}.tar") for i in range(TARS)]
  for number, path in enumerate(paths):
    with tarfile.open(path, "w") as tar:
      for i, data in list(enumerate(pictures))[number::TARS]:
        key, facts = f"{i:09d}", json.dumps({"key": i}).encode()
        for ending, content in (("jpg", data), ("txt", b"a photo"), ("json", facts)):
          member = tarfile.TarInfo(f"{key}.{ending}")
          member.size = len(content)
          tar.addfile(member, io.BytesIO(content))
  return paths


def write_records(folder: pathlib.Path, tars: list[str]) -> pathlib.Path:
  """Writes the pictures of the tars as prepared records."""
  from lavit_jax.data import records

  def read():
    for path in tars:
      with tarfile.open(path) as tar:
        for member in tar:
          if member.name.endswith(".jpg"):
            data = tar.extractfile(member).read()
            texts = [{"task": "caption", "turns": [["", "a photo"]]}]
            yield {"id": member.name, "image": data, "texts": texts}

  records.write_shards(read(), folder / "records", "photos", 1000)
  return folder / "records"


def processor_seconds() -> float:
  """Processor time of this process, its threads and its worker processes."""
  ticks = 0
  for child in multiprocessing.active_children():
    fields = pathlib.Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2]
    ticks += sum(map(int, fields.split()[11:13]))
  return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def measured(batches, pictures: int) -> tuple[float, float]:
  """Pictures per second, and processor milliseconds per picture, after a batch."""
  next(batches)
  started, spent, seen = time.monotonic(), processor_seconds(), 0
  while seen < pictures:
    seen += len(next(batches))
  spent = processor_seconds() - spent
  return seen / (time.monotonic() - started), 1000 * spent / seen


@contextlib.contextmanager
def ours(folder: pathlib.Path, threads: int):
  """Batches of the feed of stage 1."""
  import jax

  from lavit_jax.core import sharding
  from lavit_jax.data import items, pipeline, records
  from lavit_jax.training import feed

  mesh = sharding.make_mesh({"fsdp": 1}, jax.devices()[:1])

  def item(record, generator):
    return items.picture(record, SIZE)

  source = pipeline.Map(pipeline.Pictures(records.Records(folder)), item)
  host = pipeline.RowFeed(source, BATCH, seed=0, threads=threads)
  with contextlib.closing(feed.DeviceFeed(host, mesh)) as batches:
    yield (jax.block_until_ready(batch["image"]) for batch, _ in batches)


def as_bytes(image):
  """The peer's picture as a uint8 tensor [H, W, 3]."""
  import torch
  from PIL import Image

  return torch.from_numpy(
    np.array(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
  )


def as_floats(image):
  """The peer's picture as LaVIT's reference wants it, float32 [3, H, W]."""
  import torch

  scaled = (as_bytes(image).numpy().astype(np.float32) / 255 - MEAN) / STD
  return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))


@contextlib.contextmanager
def peer(tars: list[str], workers: int, finish: Callable):
  """Batches of webdataset in a torch DataLoader."""
  import torch
  import webdataset

  data = webdataset.WebDataset(tars, shardshuffle=False).repeat().shuffle(100)
  data = data.decode("pilrgb").to_tuple("jpg").map_tuple(finish).batched(BATCH)
  loader = torch.utils.data.DataLoader(
    data, batch_size=None, num_workers=workers, multiprocessing_context="spawn"
  )
  batches = iter(loader)
  found = (batch for (batch,) in batches)
  yield found
  found.close()
  with contextlib.suppress(RuntimeError):  # workers abort while they prefetch
    batches._shutdown_workers()


@contextlib.contextmanager
def decoding(pictures: list[bytes], threads: int):
  """Decoded pictures, each a batch of its own."""
  from lavit_jax.data import images

  with concurrent.futures.ThreadPoolExecutor(threads) as pool:

    def endless():
      while True:
        yield from pool.map(lambda data: images.decode(data, SIZE)[None], pictures)

    yield endless()
    pool.shutdown(cancel_futures=True)


def main() -> None:
  """Prints the medians and their ratios."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--pictures", type=int, default=600)
  parser.add_argument("--rounds", type=int, default=5)
  arguments = parser.parse_args()
  cores = len(os.sched_getaffinity(0))
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    pictures = list(jpegs(arguments.pictures))
    tars = write_tars(folder, pictures)
    prepared = write_records(folder, tars)
    size = sum(map(len, pictures)) / len(pictures) / 1000
    print(f"{len(pictures)} JPEGs of {size:.0f} kB on average, {cores} cores")
    sides = {
      "ours": lambda: ours(prepared, cores),
      "peer, uint8": lambda: peer(tars, cores, as_bytes),
      "peer, normalized": lambda: peer(tars, cores, as_floats),
      "decoding alone": lambda: decoding(pictures, cores),
    }
    found = {side: [] for side in sides}
    for _ in range(arguments.rounds):
      for side, start in sides.items():
        with start() as batches:
          found[side].append(measured(batches, len(pictures)))
  rate, cost = (
    {side: statistics.median(one[i] for one in some) for side, some in found.items()}
    for i in range(2)
  )
  for side, some in found.items():
    spread = f"{min(some)[0]:.0f} to {max(some)[0]:.0f}"
    print(
      f"{side:18} {rate[side]:6.1f} pictures/s ({spread}), "
      f"{cost[side]:.2f} ms of processor time per picture"
    )
  for side in list(sides)[1:]:
    print(
      f"ours / {side}: {rate['ours'] / rate[side]:.2f} by the clock, "
      f"{cost[side] / cost['ours']:.2f} by processor time"
    )


if __name__ == "__main__":
  main()
