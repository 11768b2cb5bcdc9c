"""Images per second of stage 2: dynamic tokens against 256 tokens for every image.

    python benchmarks/dynamic_tokens.py [--steps=3]

Both sides train the same model on the same images and texts, each image once before and
once after its caption, in rows that the same planner packed. Dynamic images keep
clip(N(94, 30), 16, 256) of their 256 patches, as LaVIT's do; fixed ones keep all. The
step is the real one: encoder, merger, language model, loss, gradients, AdamW, float32.
Language model and encoder are in LaVIT's proportion, about seven to one; a row is long
enough for four fixed images, so that these fill it too.
"""

import argparse
import dataclasses
import io
import math
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image

from lavit_jax.core import sharding, vocabulary
from lavit_jax.data import (
  images,
  mixture,
  numerics,
  pack_plan,
  pipeline,
  records,
  rows,
)
from lavit_jax.models import lavit, vit
from lavit_jax.stages import pretrain
from lavit_jax.training import base, feed, optimizer, train_state

LENGTH, PATCHES, PICTURES, ROWS = 1200, 256, 400, 60
MIXTURE = {"caption": 0.5, "text_image": 0.5}
WORDS = vocabulary.Vocabulary(text_size=8000, num_codes=16384)
LANGUAGE = dict(
  embed_dim=768,
  num_layers=12,
  num_heads=12,
  num_kv_heads=12,
  head_dim=64,
  mlp_dim=2048,
  rope_base=10000.0,
  norm_eps=1e-5,
)
ENCODER = dict(
  image_size=224,
  patch_size=14,
  embed_dim=320,
  num_layers=10,
  num_heads=5,
  head_dim=64,
  mlp_dim=1280,
  clip_dim=128,
)
MERGER = dict(embed_dim=320, num_layers=3, num_heads=5, head_dim=64, mlp_dim=1280)


@dataclasses.dataclass(frozen=True)
class Side:
  """One way to spend tokens on images.

  Attributes:
    name: for the report.
    source: its packed rows.
    seconds: of each measured step.
  """

  name: str
  source: rows.Rows
  seconds: list[float] = dataclasses.field(default_factory=list)

  def per_row(self) -> float:
    """Images in a row on average."""
    return len(self.source.plan.documents) / len(self.source.plan)

  def rate(self) -> float:
    """Images per second."""
    return self.per_row() / statistics.median(self.seconds)


def keep_masks(dynamic: bool) -> list[np.ndarray]:
  """Keep masks bool[P] of all pictures."""
  rng = np.random.default_rng(1)
  found = []
  for _ in range(PICTURES):
    count = int(np.clip(rng.normal(94, 30), 16, 256)) if dynamic else PATCHES
    found.append(np.isin(np.arange(PATCHES), rng.permutation(PATCHES)[:count]))
  return found


def record(i: int) -> dict:
  """A picture with one caption."""
  buffer = io.BytesIO()
  tint = tuple(np.random.default_rng(i).integers(0, 256, 3).tolist())
  Image.new("RGB", (224, 224), tint).save(buffer, "JPEG")
  entry = {"task": "caption", "turns": [["", "a picture"]]}
  return {"id": f"p{i}", "image": buffer.getvalue(), "texts": [entry]}


def make_side(folder: pathlib.Path, name: str) -> Side:
  """Writes records and codes and packs them."""
  folder = folder / name
  records.write_shards(map(record, range(PICTURES)), folder / "r", "p", PICTURES)
  prepared = records.Records(folder / "r")
  facts = dict(visual_tokenizer="-", text_tokenizer="-", resize=images.RESIZE_VERSION)
  facts |= dict(image_size=224, patches=PATCHES, num_codes=WORDS.num_codes, dtype="-")
  facts["numerics"] = numerics.VERSION
  writer = records.SidecarWriter(prepared, folder / "codes", facts)
  rng, sidecars = np.random.default_rng(2), []
  for i, keep in enumerate(keep_masks(name == "dynamic")):
    codes = rng.integers(0, WORDS.num_codes, int(keep.sum()))
    text = rng.integers(3, WORDS.text_size, int(rng.integers(8, 60)))
    texts = [{"task": "caption", "turns": [([], text)]}]
    sidecars.append(records.pack_sidecar(f"p{i}", codes, keep, texts))
  writer.write(0, sidecars)
  writer.finish()
  sidecar = records.Sidecar(folder / "codes")
  found, _ = mixture.streams(sidecar.lengths, MIXTURE, LENGTH, 0, 0.1, "refuse", str)
  means = {source: stream.mean for source, stream in found.items()}
  slots = round(mixture.slots_wanted(MIXTURE, means, LENGTH))
  plan = pack_plan.plan_rows(sidecar.lengths, MIXTURE, 0, ROWS, LENGTH, slots)
  return Side(name, rows.Rows(plan, prepared, sidecar, LENGTH, slots, 224, WORDS))


def make_state(mesh):
  """The step, its state and the frozen encoder; prints their sizes."""
  fields = dict(model=LANGUAGE, dtype="float32", remat="none", unroll=1)
  model = pretrain.make_model(ml_collections.ConfigDict(fields), WORDS, MERGER)
  tower = vit.VisionTransformer(**ENCODER, dtype="float32")
  blank = jnp.zeros((1, 224, 224, 3))
  tree = train_state.unboxed_init(lambda key: tower.init(key, blank))(jax.random.key(1))
  tx = optimizer.make(optimizer.default_config(), 100)
  init = lavit.init_function(model, PATCHES)
  abstract, shardings, initial = base.born_sharded(init, tx, mesh)
  step = pretrain.make_step(model, tower, tx, WORDS, 1, 1)

  def millions(some):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(some)) / 1e6

  print(
    f"language model {millions(abstract.params['llama']):.0f} M parameters, merger "
    f"{millions(abstract.params['merger']):.0f} M, encoder {millions(tree):.0f} M"
  )
  return base.jitted(step, shardings), initial(0), {"vit": tree}


def main() -> None:
  """Alternates the two sides and prints images per second."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--steps", type=int, default=3)
  steps = parser.parse_args().steps
  mesh = sharding.make_mesh({"fsdp": 1}, jax.devices()[:1])
  with tempfile.TemporaryDirectory() as name, jax.set_mesh(mesh):
    sides = [make_side(pathlib.Path(name), side) for side in ("dynamic", "fixed")]
    step, state, frozen = make_state(mesh)
    for number in range(steps + 1):  # the first compiles
      for side in sides:
        batch = feed.place(pipeline.stack([side.source[number]]), [0], 1, mesh)
        started = time.monotonic()
        state, values = step(state, frozen, batch, jax.random.key(0))
        jax.block_until_ready(values)
        seconds = time.monotonic() - started
        print(f"step {number} {side.name}: {seconds:.1f} s", flush=True)
        if number:
          side.seconds.append(seconds)
  for side in sides:
    figures = side.source.plan.figures()
    print(
      f"{side.name}: rows of {LENGTH} with {side.source.plan.images_per_row} slots, "
      f"tokens {figures['tokens']:.1%} and slots {figures['image_slots']:.1%} full, "
      f"{side.per_row():.2f} images a row; step {statistics.median(side.seconds):.2f} s"
      f" ({min(side.seconds):.2f} to {max(side.seconds):.2f}), "
      f"{side.rate():.3f} images/s"
    )
  print(f"dynamic / fixed: {sides[0].rate() / sides[1].rate():.2f} images per second")


if __name__ == "__main__":
  main()
