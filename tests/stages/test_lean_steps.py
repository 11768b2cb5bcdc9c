"""What the devices of a step send each other: features only where it is named here.

Rows and their pictures lie on the same devices, so no feature of a picture crosses
`data` or `fsdp`. Over `tensor` and `sequence`, the devices share rows and pictures:

- `tensor` sums the features behind every pair of maps that is split over heads or
  feed-forward width, and likewise their gradients (`SUMS`).
- `sequence` shares the pictures of a row. Each device encodes some of them and needs
  those of its places, so stage 2 gathers the merged features once and sums their
  gradient once.
"""

import re
from collections.abc import Iterator

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_meshes
import test_pixel_decoder_stage
import toy_run
from jax.sharding import PartitionSpec as P

from configs import contrastive as contrastive_config
from lavit_jax.core import sharding
from lavit_jax.inference import frozen_parts
from lavit_jax.layers import linear
from lavit_jax.planning import collectives, cost, programs
from lavit_jax.stages import contrastive, pixel_decoder, reconstruction
from lavit_jax.training import train_state

# Like the 25 patches of 32 numbers, sizes that divide nothing else.
SLOTS, LENGTH, CAPTION, TEXT_WIDTH, LLAMA_WIDTH = 3, 66, 14, 40, 72

# The maps, by name, whose result or whose gradient is summed over `tensor`. Of vit_proj
# XLA splits the gradient's product where `tensor` is as wide as `fsdp`.
SUMS = {"proj", "fc2"} | {"qkv", "query", "key", "value", "fc1"} | {"vit_proj"}
# Pos_embed of the encoder, ranks and queries of the decoder: parameters, no features.
LEARNED = {(toy_run.PATCHES, toy_run.WIDTH), (toy_run.PATCHES + 1, toy_run.WIDTH)}


# The programs of the stages


def spread_over(mesh, init, name: str, dtype=None):
  """A frozen part as shapes that lie on the mesh as the stages load it."""
  abstract, axes = linear.abstract_params(init)
  found = sharding.parameter_shardings(abstract, axes, mesh)
  return programs.placed(abstract[name], found[name], dtype)


def encoder(mesh):
  whole = jax.tree.map(lambda _: sharding.replicated(mesh), toy_run.whitening())
  return {
    "vit": programs.placed(*frozen_parts.vit_shapes(toy_run.tower(), mesh)),
    "whitening": programs.placed(toy_run.whitening(), whole),
  }


def text_of(mesh, step, init, params, frozen, batch, book=None) -> str:
  """The program of a step, compiled from shapes."""
  spread = test_meshes.shardings_of(init, params, book, mesh)
  fresh = lambda p, b: train_state.fresh(p, toy_run.recorder(), b)
  state = programs.placed(jax.eval_shape(fresh, params, book), spread)
  rows = sharding.batch_sharding(mesh)
  batch = programs.placed(batch, {name: rows for name in batch})
  with jax.set_mesh(mesh):
    jitted = jax.jit(step, out_shardings=(spread, None))
    lowered = jitted.lower(state, frozen, batch, jax.random.key(0))
    return lowered.compile(golden_data.COMPILE_FAST).as_text()


def contrastive_text(mesh) -> str:
  config = contrastive_config.get_config("tiny")
  sizes = dict(num_layers=2, num_heads=8, head_dim=4, mlp_dim=56, max_length=CAPTION)
  config.model.vit, config.unroll = toy_run.VIT, 1
  config.model.text = dict(embed_dim=TEXT_WIDTH, **sizes)
  weights = {kind: entry.background_weight for kind, entry in config.words.items()}
  model = contrastive.make_model(config, toy_run.WORDS.text_size)
  step = contrastive.make_step(model, toy_run.recorder(), weights, 1.0)
  size = pictures(mesh)
  batch = {
    "image": np.zeros((size, toy_run.SIZE, toy_run.SIZE, 3), np.uint8),
    "tokens": np.zeros((size, CAPTION), np.int32),
    "length": np.zeros(size, np.int32),
    **{kind: np.zeros((size, toy_run.PATCHES), np.uint8) for kind in weights},
  }
  shown = (batch["image"], batch["tokens"], batch["length"])
  init = lambda key: model.init(key, shown[0] / 255, *shown[1:])
  params, _ = linear.abstract_params(init)
  return text_of(mesh, step, init, params, None, batch)


def tokenizer_text(mesh) -> str:
  parts = (toy_run.visual_tokenizer(), toy_run.tower(), toy_run.recorder())
  step = reconstruction.make_step(*parts, test_meshes.tokenizer_config(1), True)
  size = pictures(mesh)
  batch = {"image": toy_run.pictures(size), "noise_id": np.zeros(size, np.uint32)}
  params, book = toy_run.visual_tokenizer_params(), test_meshes.random_codebook()
  init = test_meshes.init_tokenizer
  return text_of(mesh, step, init, params, encoder(mesh), batch, book)


def pixel_text(mesh) -> str:
  size = pictures(mesh)
  config = test_pixel_decoder_stage.config_of(batch_size=size)
  modules = pixel_decoder.Modules(config)
  parts = (modules, toy_run.visual_tokenizer(), toy_run.recorder())
  step = pixel_decoder.make_step(*parts, config)
  batch = test_pixel_decoder_stage.batch()
  batch = {name: np.resize(x, (size, *x.shape[1:])) for name, x in batch.items()}
  decoder = spread_over(mesh, test_meshes.init_tokenizer, "feature_decoder")
  frozen = test_pixel_decoder_stage.frozen() | {"feature_decoder": decoder}
  init = modules.init(toy_run.PATCHES, toy_run.WIDTH)
  return text_of(mesh, step, init, test_pixel_decoder_stage.params(), frozen, batch)


def language_text(mesh) -> str:
  rows = mesh.shape["data"] * mesh.shape["fsdp"]  # one to each: pictures do not divide
  batch = toy_run.packed_batch(rows, LENGTH, SLOTS)
  sizes = toy_run.LLAMA | dict(embed_dim=LLAMA_WIDTH)
  step, init = test_meshes.language_step(model=sizes)
  params, _ = linear.abstract_params(init)
  return text_of(mesh, step, init, params, encoder(mesh), batch)


def pictures(mesh) -> int:
  """Two for each group of devices that has pictures of its own."""
  return 2 * mesh.size // mesh.shape["tensor"]


# What they exchange


def is_feature(shape: tuple[int, ...]) -> bool:
  """Features by patch, by row or taken into a row, whole or a part of them.

  25 patches, 26 with the class token or padded, 13 over two devices, 75 to a row; 66
  places of a row, 33 over two devices.
  """
  rows = any(size % extent == 0 for size in shape[:-1] for extent in (25, 13, 33))
  return rows and shape[-1] in (toy_run.WIDTH, toy_run.WIDTH // 2)


def is_row(axes: tuple[str, ...], shape: tuple[int, ...]) -> bool:
  """A row's vectors gathered whole over `sequence`: its keys and values are enough."""
  return "sequence" in axes and shape[-2:] == (LENGTH, LLAMA_WIDTH)


def features(text: str, mesh) -> Iterator[tuple[tuple[str, ...], str, tuple, set]]:
  """Mesh axes, kind, shape and names of the maps, of what carries features."""
  found = cost.count(text, mesh.size).collectives
  assert found
  for one in found:
    axes = collectives.mesh_axes(one.group, dict(mesh.shape))
    names = set(re.findall(r"(\w+)/[a-z]+,[a-z]+->[a-z]+/", one.op_name))
    for dims in re.findall(r"\w+\[([\d,]*)\]", one.shape):
      shape = tuple(int(size) for size in dims.split(",") if size)
      if not shape or shape in LEARNED:
        continue
      if is_feature(shape) or is_row(axes, shape):
        yield axes, one.kind, shape, names


def check(text: str, mesh, shared: list) -> None:
  """Fails unless features cross `tensor` as named, and `sequence` as `shared` says."""
  crossing = []
  for axes, kind, shape, names in features(text, mesh):
    if axes == ("tensor",) and names and names <= SUMS:
      # XLA may gather what fc2 reads instead, which is half of the sum's bytes.
      assert kind == "all-reduce" or names == {"fc2"}, (kind, shape, names)
    else:
      crossing.append((axes, kind, shape))
  assert sorted(crossing) == sorted(shared)


def shared_features(stage: str, mesh) -> list:
  """What `sequence` exchanges: one row to each pair of devices, with a slot added."""
  if stage != "pretrain" or mesh.shape["sequence"] == 1:
    return []
  slots = SLOTS + 1
  over, width = ("sequence",), toy_run.WIDTH
  return [
    (over, "all-gather", (slots, toy_run.PATCHES, width)),
    (over, "all-reduce", (1, slots * toy_run.PATCHES, width)),
  ]


STAGES = {
  "contrastive": contrastive_text,
  "visual_tokenizer": tokenizer_text,
  "pixel_decoder": pixel_text,
  "pretrain": language_text,
}
FAST = [
  ("pretrain", (2, 4, 1, 1)),
  ("visual_tokenizer", (2, 4, 1, 1)),
  ("contrastive", (1, 2, 2, 2)),
  ("visual_tokenizer", (1, 2, 2, 2)),
  ("pretrain", (1, 2, 2, 2)),
]
MESHES = [(8, 1, 1, 1), (1, 4, 2, 1), (1, 4, 1, 2), (2, 2, 1, 2), (1, 2, 2, 2)]
SLOW = [
  pytest.param(*case, marks=pytest.mark.slow)
  for case in ((stage, mesh) for stage in STAGES for mesh in MESHES)
  if case not in FAST
]

# What XLA says when it finds no better way than to gather an array whole.
REPLICATED = "Involuntary full rematerialization"


@pytest.mark.parametrize(("stage", "shape"), FAST + SLOW, ids=str)
def test_features_stay_where_they_are_and_nothing_is_gathered_whole(
  stage, shape, capfd
):
  mesh = test_meshes.mesh_of(shape)
  text = STAGES[stage](mesh)
  assert REPLICATED not in capfd.readouterr().err
  check(text, mesh, shared_features(stage, mesh))


def test_the_compiler_does_warn_of_hidden_replication(capfd):
  def clash(x):
    x = jax.lax.with_sharding_constraint(jnp.sin(x), P("fsdp", None))
    x = jax.lax.with_sharding_constraint(x, P(None, ("tensor", "data")))
    return jnp.cos(x)

  with jax.set_mesh(test_meshes.mesh_of((2, 2, 1, 2))):
    jax.jit(clash).lower(jax.ShapeDtypeStruct((8, 8), jnp.float32)).compile()
  assert REPLICATED in capfd.readouterr().err
