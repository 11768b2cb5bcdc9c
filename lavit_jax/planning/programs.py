"""The programs of a pod as shapes: what `plan` compiles without chips or files.

Each is the jitted function that training runs, with abstract arguments that carry
their shardings. Sizes of parts that a config does not hold are the published ones.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from lavit_jax.core import sharding
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.data import mixture
from lavit_jax.inference import frozen_parts
from lavit_jax.models import llama, visual_tokenizer, vit
from lavit_jax.planning import pixel_program
from lavit_jax.stages import adapters, contrastive, finetune, pretrain, widths
from lavit_jax.stages import visual_tokenizer as stage_1
from lavit_jax.training import base

# Mean tokens of one image-text document for the choice of image slots: kept patches of
# LAION pictures as the paper reports them, a caption, [IMG], [/IMG] and the end.
KEPT, CAPTION, MARKS = 94, 22, 3
TEXT_IDS = 32_000  # LLaMA's text tokenizer


@dataclasses.dataclass(frozen=True)
class Program:
  """One jitted function and the shapes it runs on.

  Attributes:
    name: e.g. "pretrain".
    function: the jitted function.
    arguments: abstract arguments by group; each leaf carries its sharding.
    mesh: the mesh to set while tracing.
    examples: rows or pictures of one call.
    tokens: sequence positions of one call; patches where there is no language model.
    images: pictures of one call.
    accumulate: micro-batches of one call.
    steps: steps of the schedule that run it; 0 where nothing trains.
    figures: the evaluation of a step number, where there is one.
  """

  name: str
  function: Callable
  arguments: dict[str, Any]
  mesh: Mesh
  examples: int
  tokens: int
  images: int
  accumulate: int = 1
  steps: int = 0
  figures: Callable[[int], Callable] | None = None


def placed(abstract: Any, shardings: Any, dtype: str | None = None) -> Any:
  """Shapes that carry shardings, in another floating dtype when one is given."""

  def leaf(x, spread):
    return jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=spread)

  return jax.tree.map(leaf, abstract, shardings)


def rows_of(mesh: Mesh, size: int, **fields) -> dict[str, jax.ShapeDtypeStruct]:
  """A batch of `size` rows, each field given as (dtype, *shape of a row)."""
  spread = sharding.batch_sharding(mesh)
  return {
    name: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=spread)
    for name, (dtype, *shape) in fields.items()
  }


def _key(mesh: Mesh) -> jax.ShapeDtypeStruct:
  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding.replicated(mesh))


def encoder(variant: str, config: ml_collections.ConfigDict, mesh: Mesh):
  """The frozen encoder and its shapes in the dtypes that it is stored in."""
  tower = vit.VisionTransformer(
    **vit.VARIANTS[variant], dtype=config.dtype, unroll=config.unroll
  )
  abstract, spread = frozen_parts.vit_shapes(tower, mesh)
  return tower, {"vit": placed(frozen_parts.stored(abstract, config.dtype), spread)}


def _is_tiny(sizes: Any, tiny: dict[str, Any]) -> bool:
  return dict(sizes) == tiny


def widths_of(config: ml_collections.ConfigDict) -> list[int]:
  """What fsdp has to divide, with the published encoder where a config is not tiny."""
  tiny = (
    "patch_latents" in config.model
    or config.stage == "visual_tokenizer"
    or _is_tiny(config.model, llama.VARIANTS["tiny"])
  )
  sizes = visual_tokenizer.VARIANTS["tiny" if tiny else "lavit"]
  own = config.model.get("embed_dim") if config.stage == "visual_tokenizer" else None
  return widths.of(config, own or sizes["embed_dim"])


def check_batch(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
  """Refuses a batch that leaves a device without a whole row of a micro-batch.

  Raises:
    ValueError: says what would divide.
  """
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  if config.batch_size % config.accumulate:
    raise ValueError(
      f"batch_size {config.batch_size} is not a multiple of accumulate"
      f" {config.accumulate}; choose a divisor"
    )
  micro = config.batch_size // config.accumulate
  if micro < ways:
    raise ValueError(
      f"a micro-batch of {micro} rows over {ways} chips (data x fsdp) leaves"
      f" {micro / ways:.3g} rows per chip, below one; lower config.accumulate, raise"
      " config.batch_size, or give chips to config.mesh.tensor or config.mesh.sequence"
    )
  sharding.check_divides(mesh, micro_batch=(micro, ("data", "fsdp")))


def images_per_row(data: ml_collections.ConfigDict) -> int:
  """Image slots of a row: as asked, or what the mixture needs at mean lengths."""
  if data.images_per_row:
    return data.images_per_row
  weights = {name: share for name, share in data.mixture.items() if share}
  means = dict.fromkeys(weights, KEPT + CAPTION + MARKS)
  return mixture.image_slots(weights, means, data.row_length)


def contrastive_step(config: ml_collections.ConfigDict, mesh: Mesh) -> Program:
  """The train step of stage 0, which has toy sizes only."""
  check_batch(config, mesh)
  made = contrastive.assemble(config, mesh, TEXT_IDS)
  tower, size = config.model.vit, config.batch_size
  patches = (tower.image_size // tower.patch_size) ** 2
  batch = rows_of(
    mesh,
    size,
    image=(jnp.uint8, tower.image_size, tower.image_size, 3),
    tokens=(jnp.int32, config.model.text.max_length),
    length=(jnp.int32,),
    **{kind: (jnp.uint8, patches) for kind in config.words},
  )
  return Program(
    name="contrastive",
    function=made.step(0),
    figures=made.figures,
    arguments=_train_arguments(made, None, batch, mesh),
    mesh=mesh,
    examples=size,
    tokens=size * patches,
    images=size,
    **_schedule(config),
  )


def language_step(config: ml_collections.ConfigDict, mesh: Mesh) -> Program:
  """The train step of stage 2."""
  tower, frozen, sizes, words = _language_parts(config, mesh)
  made = pretrain.assemble(config, mesh, tower, sizes, words)
  return _language_program(config, mesh, tower, made, frozen)


def finetune_step(config: ml_collections.ConfigDict, mesh: Mesh) -> Program:
  """The train step of finetuning."""
  tower, frozen, sizes, words = _language_parts(config, mesh)
  made = finetune.assemble(config, mesh, tower, sizes, words)
  frozen |= {"base": adapters.nested(made.base)}
  return _language_program(config, mesh, tower, made, frozen)


def _language_parts(config, mesh):
  """Encoder, its shapes, sizes of the visual tokenizer, and the vocabulary."""
  check_batch(config, mesh)
  tiny = _is_tiny(config.model, llama.VARIANTS["tiny"])
  sizes = visual_tokenizer.VARIANTS["tiny" if tiny else "lavit"]
  words = Vocabulary(TEXT_IDS, sizes["num_codes"])
  return *encoder("tiny" if tiny else "g14", config, mesh), sizes, words


def _language_program(config, mesh, tower, made, frozen) -> Program:
  """A train step on packed rows."""
  length, slots = config.data.row_length, images_per_row(config.data)
  side, patches = tower.image_size, tower.num_patches
  batch = rows_of(
    mesh,
    config.batch_size,
    tokens=(jnp.int32, length),
    segment_ids=(jnp.int32, length),
    positions=(jnp.int32, length),
    loss_mask=(jnp.bool_, length),
    target_kind=(jnp.uint8, length),
    images=(jnp.uint8, slots, side, side, 3),
    keep=(jnp.bool_, slots, patches),
    feature_index=(jnp.int32, length),
  )
  return Program(
    name=config.stage,
    function=made.step(0),
    figures=made.figures,
    arguments=_train_arguments(made, frozen, batch, mesh),
    mesh=mesh,
    examples=config.batch_size,
    tokens=config.batch_size * length,
    images=config.batch_size * slots,
    **_schedule(config),
  )


def tokenizer_step(config: ml_collections.ConfigDict, mesh: Mesh) -> Program:
  """The train step of stage 1 in phase b: with the codebook."""
  steps = config.num_steps - config.phase_a_steps
  return _tokenizer_program(config, mesh, config.phase_a_steps, "phase b", steps)


def first_tokenizer_step(config: ml_collections.ConfigDict, mesh: Mesh) -> Program:
  """The train step of stage 1 in phase a: without codes, and the selector learns.

  Raises:
    ValueError: the schedule has no phase a.
  """
  if not config.phase_a_steps:
    raise ValueError(
      "config.phase_a_steps is 0: stage 1 has no phase a to plan; give it steps, or"
      " leave --program=train_a out"
    )
  return _tokenizer_program(config, mesh, 0, "phase a", config.phase_a_steps)


def _tokenizer_program(config, mesh, number: int, phase: str, steps: int) -> Program:
  """The train step of stage 1 at a step number."""
  check_batch(config, mesh)
  tiny = config.model.embed_dim == vit.VARIANTS["tiny"]["embed_dim"]
  tower, frozen = encoder("tiny" if tiny else "g14", config, mesh)
  made = stage_1.assemble(config, mesh, tower)
  side, size = tower.image_size, config.batch_size
  batch = rows_of(mesh, size, image=(jnp.uint8, side, side, 3), noise_id=(jnp.uint32,))
  return Program(
    name=f"visual_tokenizer {phase}",
    function=made.step(number),
    figures=made.figures,
    arguments=_train_arguments(made, frozen, batch, mesh),
    mesh=mesh,
    examples=size,
    tokens=size * tower.num_patches,
    images=size,
    accumulate=config.accumulate,
    steps=steps,
  )


def pixel_step(config: ml_collections.ConfigDict, mesh: Mesh) -> Program:
  """The train step of stage 1b, of square pictures."""
  check_batch(config, mesh)
  made, frozen, fields, patches = pixel_program.step(config, mesh)
  size = config.batch_size
  return Program(
    name="pixel_decoder",
    function=made.step(0),
    figures=made.figures,
    arguments=_train_arguments(made, frozen, rows_of(mesh, size, **fields), mesh),
    mesh=mesh,
    examples=size,
    tokens=size * patches,
    images=size,
    **_schedule(config),
  )


def _schedule(config: ml_collections.ConfigDict) -> dict[str, int]:
  """Micro-batches, and steps where all run one program."""
  return {"accumulate": config.accumulate, "steps": config.num_steps}


def _train_arguments(made: base.Assembled, frozen, batch, mesh) -> dict[str, Any]:
  state = placed(made.abstract, made.shardings)
  return {"state": state, "frozen": frozen, "batch": batch, "key": _key(mesh)}


def evaluation(config: ml_collections.ConfigDict, mesh: Mesh) -> Program:
  """The evaluation of a stage after its last step, on one batch."""
  step = STEPS[config.stage](config, mesh)
  arguments = {k: v for k, v in step.arguments.items() if k != "key"}
  return dataclasses.replace(
    step,
    name=f"{config.stage} evaluation",
    function=step.figures(config.num_steps),
    arguments=arguments,
    steps=0,
  )


STEPS = {
  "contrastive": contrastive_step,
  "pretrain": language_step,
  "finetune": finetune_step,
  "visual_tokenizer": tokenizer_step,
  "pixel_decoder": pixel_step,
}


def trace(program: Program) -> Any:
  """Traces a program on its mesh; `.jaxpr` and `.lower()` follow from it."""
  with jax.set_mesh(program.mesh):
    return program.function.trace(*program.arguments.values())
