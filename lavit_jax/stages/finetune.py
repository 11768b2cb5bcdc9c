"""Finetuning: a finished model learns from the user's own data, most of it frozen.

    model directory -> base (frozen, in the compute dtype) + what trains
    packed rows of new data, and a share of old ones -> loss and step of stage 2
    -> model directory with the adapters merged: loaded and exported like any other

What trains is chosen by two patterns over parameter paths: kernels that get low-rank
adapters (`stages.adapters`), and parameters that train themselves.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from lavit_jax.core import sharding
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.data import joined
from lavit_jax.generate import decoding
from lavit_jax.inference import frozen_parts, tokenizing
from lavit_jax.layers import linear
from lavit_jax.models import lavit, vit
from lavit_jax.stages import adapters, pretrain, warm_start
from lavit_jax.training import base, feed, optimizer, train_state
from lavit_jax.weights import model_directory, part

# Which part of a model directory holds a module of the language side.
PARTS = {
  "llama": lambda tree: tree.get("llama", {}),
  "understanding": lambda tree: {
    k: tree[k] for k in ("merger", "vit_proj") if k in tree
  },
}


@dataclasses.dataclass(frozen=True)
class Assembled(base.Assembled):
  """What sizes, patterns and a mesh decide; no file is read.

  Attributes:
    scale: factor of the adapters.
    shapes: all parameters of the model, flat, as shapes that carry their shardings:
      what trains in float32, of the rest kernels and tables in the compute dtype.
    base: those of `shapes` that stay frozen.
  """

  scale: float
  shapes: dict[str, jax.ShapeDtypeStruct]
  base: dict[str, jax.ShapeDtypeStruct]


def assemble(
  config: ml_collections.ConfigDict,
  mesh: Mesh,
  tower: vit.VisionTransformer,
  sizes: dict[str, Any],
  words: Vocabulary,
) -> Assembled:
  """Makes model, state and step; arguments as `pretrain.assemble`."""
  pretrain.check_mesh(config, mesh, tower, sizes)
  model = pretrain.make_model(config, words, sizes)
  everything = lavit.init_function(model, sizes["num_patches"])
  abstract, axes = linear.abstract_params(everything)
  spread = adapters.flat(sharding.parameter_shardings(abstract, axes, mesh))
  abstract, lora = adapters.flat(abstract), config.lora
  choice = adapters.choose(
    abstract, lora.pattern, config.trained, lora.rank, lora.alpha
  )
  init = adapters.init_function(everything, choice)
  tx = optimizer.make(config.optimizer, config.num_steps)
  state, shardings, initial = base.born_sharded(init, tx, mesh)
  whole = functools.partial(adapters.whole, scale=choice.scale)
  step = pretrain.step_of(config, model, tower, tx, words, whole=whole)
  step = base.jitted(step, shardings)
  figures = pretrain.evaluation(config, model, tower, words, whole)
  shapes = {}
  for name, leaf in abstract.items():
    stored = name.endswith(("/kernel", "/embedding")) and name not in choice.trained
    dtype = jnp.dtype(config.dtype) if stored else leaf.dtype
    shapes[name] = jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=spread[name])
  return Assembled(
    model,
    state,
    shardings,
    initial,
    lambda number: step,
    lambda number: figures,
    choice.scale,
    shapes,
    {name: shape for name, shape in shapes.items() if name not in choice.trained},
  )


def build(config: ml_collections.ConfigDict, mesh: Mesh) -> base.Stage:
  """Assembles the stage on a finished model directory and a pack plan."""
  folder = config.init_from
  tokenizer = frozen_parts.text_tokenizer(folder)
  sizes = model_directory.part_config(folder, "visual_tokenizer")
  rows = model_directory.part_config(folder, "llama")["text_size"]
  words = tokenizer.vocabulary(sizes["num_codes"], rows)
  numbers = config.decoding.to_dict()
  decoding.check(numbers, words, sizes["num_patches"])
  warm_start.check_sizes(folder, "llama", config.model)
  tower, frozen, names = frozen_parts.encoder(folder, mesh, config.dtype, config.unroll)
  made = assemble(config, mesh, tower, sizes, words)
  loaded = _load(folder, made.shapes)
  frozen["base"] = adapters.nested({name: loaded[name] for name in made.base})
  del loaded  # what trains is read again where it begins
  parts = model_directory.read_manifest(folder)["parts"]
  names |= {name: parts[name]["checksum"][:16] for name in PARTS}
  checksum = tokenizing.checksum(folder)
  rows, held_out = _rows(config, words, tokenizer, tower.image_size, checksum)

  def initial(seed: int) -> train_state.TrainState:
    state = made.initial(seed)
    trained = made.shapes.keys() - made.base.keys()
    if not trained:
      return state
    loaded = _load(folder, made.shapes)
    own = {name: loaded[name] for name in trained}
    params = adapters.nested(adapters.flat(state.params) | own)
    return state.replace(params=params)

  return base.Stage(
    mesh=mesh,
    abstract=made.abstract,
    shardings=made.shardings,
    initial=initial,
    frozen=frozen,
    frozen_checksums=names | {"codes": checksum},
    step=made.step,
    batches=lambda position: feed.device_batches(rows, config, mesh, position),
    before_step=lambda state, number: state,
    evaluate=pretrain.evaluator(config, mesh, made, frozen, held_out),
    finish=lambda state, target: save(
      state.params, made.scale, folder, target, numbers
    ),
    contents={
      "tokens": config.data.row_length,
      "images": held_out.plan.images_per_row,
    },
    records=lambda position: feed.record_ids(rows, config, position),
  )


def _load(folder: str, shapes: dict[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
  """Reads the language side of a model directory, flat."""
  tree, loaded = adapters.nested(shapes), {}
  for name, chosen in PARTS.items():
    wanted = chosen(tree)
    spread = jax.tree.map(lambda shape: shape.sharding, wanted)
    found = model_directory.load(folder, name, wanted, spread)
    loaded |= {"llama": found} if name == "llama" else found
  return adapters.flat(loaded)


def _rows(config, words, tokenizer, image_size, checksum):
  """Rows to train on, old ones among them where asked for, and held-out ones."""
  data = config.data
  mixed = data.old.share > 0
  if mixed != bool(data.old.train) or data.old.share >= 1:
    raise ValueError(
      f"expected a folder of old data with a share of rows between 0 and 1, got"
      f" data.old.train {data.old.train!r}, data.old.share {data.old.share}; set both"
    )
  old_rows = round(data.plan_rows * data.old.share)

  def plan(settings, folder, count, drop):
    own = (words, tokenizer, image_size, checksum, count, drop)
    return feed.packed_rows(folder, settings, *own)

  rows = plan(config, data.train, data.plan_rows - old_rows, data.prompt_drop)
  same = config.copy_and_resolve_references()
  same.data.images_per_row = rows.plan.images_per_row
  held_out = plan(same, data.eval, data.eval_rows, 0.0)
  feed.check_held_out(held_out, config)
  if not mixed:
    return rows, held_out
  same.data.mixture = data.old.mixture
  old = plan(same, data.old.train, old_rows, data.prompt_drop)
  return joined.Joined([rows, old]), held_out


def save(
  params: Any,
  scale: float,
  source: str,
  target: str,
  numbers: Mapping[str, decoding.Numbers] | None = None,
) -> None:
  """Writes the model directory again, with what was trained in its place.

  Tensors that did not train are the same bit for bit.

  Args:
    params: what trained.
    scale: factor of the adapters.
    source: model directory that the run started from.
    target: the new one.
    numbers: decoding defaults of the new one; those of `source` when None.
  """
  pairs = jax.tree.map(sharding.to_host, params.get(adapters.ROOT, {}))
  parts = {}
  for name in model_directory.read_manifest(source)["parts"]:
    stored = model_directory.read_part(source, name)
    changed = model_directory.is_published(source)
    tree = stored.params
    if name in PARTS:
      own = PARTS[name](params) | {adapters.ROOT: PARTS[name](pairs)}
      tree, touched = adapters.merged(stored.params, own, scale)
      changed |= touched
    if changed:
      parts[name] = part.Part(tree, stored.config)
  model_directory.save(target, parts, base=source, decoding=numbers)
