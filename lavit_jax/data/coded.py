"""Pictures beside their stored codes, sorted by aspect ratio: what stage 1b reads.

record {"image"}, sidecar {"codes"} -> {"image": u8[H, W, 3], "codes": i32[P],
"length": i32[], "noise_id": u32[], "time_ids": f32[6]}

A picture is resized, whole, to the size whose aspect ratio is nearest to its own: its
codes describe all of it. Batches hold pictures of one size.
"""

import functools
import zlib
from collections.abc import Mapping

import numpy as np
from PIL import Image

from lavit_jax.data import bad, images, records, shards

SIZES = "upright_sizes.npz"
MAX_BAD = 20  # unreadable pictures in a row of one size before the source gives up


def read_sizes(prepared: records.Records) -> np.ndarray:
  """Height and width int32[N, 2] of a folder's pictures; 0 without one.

  The index of the records holds them. For folders of earlier versions they are read
  from the pictures' headers once and stored beside the records.
  """
  if prepared.size is not None:
    return prepared.size
  path = prepared.folder / SIZES
  fingerprint = np.frombuffer(prepared.manifest["fingerprint"].encode(), np.uint8)
  if path.exists():
    found = shards.read_arrays(path)
    if np.array_equal(found["fingerprint"], fingerprint):
      return found["sizes"]
  sizes = np.zeros((len(prepared.image), 2), np.int32)
  for i in np.flatnonzero(prepared.image):
    try:
      sizes[i] = images.upright_size(prepared[int(i)]["image"])[::-1]
    except bad.BadRecord:
      continue  # the feed names it when it decodes it
  shards.write_arrays(path, sizes=sizes, fingerprint=fingerprint)
  return sizes


def nearest(sizes: np.ndarray, targets: np.ndarray) -> np.ndarray:
  """Index int[N] of the target [M, 2] nearest in aspect ratio to each size [N, 2]."""
  aspect = lambda s: np.log(np.maximum(s[:, 0], 1) / np.maximum(s[:, 1], 1))
  return abs(aspect(sizes)[:, None] - aspect(targets)[None]).argmin(1)


class CodedPictures:
  """Random-access source over the records that have a picture and codes.

  Attributes:
    positions: int[n] records, those of one target size after another.
    bucket: int[n] target size of each.
  """

  def __init__(self, folder: str, ratios: Mapping[str, tuple[int, int]], checksum: str):
    """Opens a prepared and tokenized folder.

    Args:
      folder: prepared shards, with the sidecar below `codes`.
      ratios: height and width by aspect ratio.
      checksum: checksum of the visual tokenizer that the sidecar must have used.
    """
    self.prepared = records.Records(folder)
    self.sidecar = records.Sidecar(f"{folder}/codes")
    records.check_sidecar(self.sidecar.manifest, checksum)
    self.patches = self.sidecar.manifest["patches"]
    self.num_codes = self.sidecar.manifest["num_codes"]
    self.targets = np.array(list(ratios.values()))
    positions = np.flatnonzero(self.prepared.image & (self.sidecar.lengths.count > 0))
    if not len(positions):
      raise ValueError(
        f"expected pictures with codes, got none in {folder}; prepare pictures and run"
        " python -m lavit_jax.tokenize"
      )
    bucket = np.zeros(len(positions), int)
    if len(self.targets) > 1:
      bucket = nearest(read_sizes(self.prepared)[positions], self.targets)
    order = np.argsort(bucket, kind="stable")
    self.positions, self.bucket = positions[order], bucket[order]

  def __len__(self) -> int:
    return len(self.positions)

  def ids(self, index: int) -> list[str]:
    """Record id of a picture."""
    return [self.prepared[int(self.positions[index])]["id"]]

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    record = self.prepared[int(self.positions[index])]
    stored = self.sidecar[int(self.positions[index])]
    picture = images.decode_full(record["image"])
    height, width = self.targets[self.bucket[index]]
    codes, length = np.zeros(self.patches, np.int32), len(stored["codes"])
    if length > self.patches or stored["codes"].max() >= self.num_codes:
      raise ValueError(
        f"expected at most {self.patches} codes below {self.num_codes} for record"
        f" {record['id']!r}, got {length} up to {stored['codes'].max()}; tokenize again"
      )
    codes[:length] = stored["codes"]
    sizes = (*picture.shape[:2], 0, 0, height, width)
    return {
      "image": fit(picture, height, width),
      "codes": codes,
      "length": np.int32(length),
      "noise_id": np.uint32(zlib.crc32(record["id"].encode())),
      "time_ids": np.array(sizes, np.float32),
    }

  def read(self, index: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """An item, or the next good one of the same size, and why others were bad."""
    first, last = np.searchsorted(self.bucket, self.bucket[index] + np.arange(2))
    reasons = []
    for _ in range(MAX_BAD):
      try:
        return self[index], reasons
      except ValueError as error:
        reasons.append(str(error))
      index = first + (index - first + 1) % (last - first)
    raise ValueError(f"{MAX_BAD} bad pictures in a row, the last: {reasons[-1]}")


def fit(picture: np.ndarray, height: int, width: int) -> np.ndarray:
  """Resizes u8[H, W, 3], whole, to u8[height, width, 3]."""
  if picture.shape[:2] == (height, width):
    return picture
  resized = Image.fromarray(picture).resize(
    (int(width), int(height)), Image.Resampling.BICUBIC
  )
  return np.asarray(resized)


class BatchOrder:
  """Endless order in which every aligned group of `batch_size` has one picture size.

  Each epoch shuffles the pictures of a size, cuts them into batches, of which the last
  is filled from the start, and shuffles the batches of all sizes.

  Attributes:
    bucket: int[n], sorted.
    batch_size: B.
    seed: of all epochs.
  """

  def __init__(self, bucket: np.ndarray, batch_size: int, seed: int):
    self.bucket, self.batch_size, self.seed = bucket, batch_size, seed
    counts = np.bincount(bucket)
    self.per_epoch = int((-(-counts // batch_size)).sum())
    self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)

  def _make_epoch(self, epoch: int) -> np.ndarray:
    rng, batches = np.random.default_rng([self.seed, epoch]), []
    for bucket in np.unique(self.bucket):
      members = rng.permutation(np.flatnonzero(self.bucket == bucket))
      count = -(-len(members) // self.batch_size)
      batches.append(np.resize(members, (count, self.batch_size)))
    return rng.permutation(np.concatenate(batches))

  def __getitem__(self, position: int) -> int:
    number, row = divmod(position, self.batch_size)
    epoch, batch = divmod(number, self.per_epoch)
    return int(self._epoch(epoch)[batch, row])
