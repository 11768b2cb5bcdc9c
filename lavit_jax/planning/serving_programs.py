"""The programs of a finished model as shapes, as `infer` runs them.

    tokenize   pictures -> codes
    prefill    prompts -> the first ids and the cache
    decode     one step over the cache: the body of the decoding loop
    draw       conditions -> latents: every step of the U-Net

Generation is planned as a guided drawing, the largest of its tasks: every row has an
unconditional stream, and may grow as many codes as a picture has patches. Weights are
stored in the compute dtype, as `infer` loads them.
"""

import functools

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from lavit_jax.core import sharding
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.generate import ahead, decoding, engine, pixels
from lavit_jax.inference import pixel_parts, tokenizing
from lavit_jax.layers import linear
from lavit_jax.models import llama, visual_tokenizer, vit
from lavit_jax.planning import programs
from lavit_jax.planning.programs import Program
from lavit_jax.stages import pixel_decoder

PROMPT = 128  # slots of a prompt


def tokenize(config: ml_collections.ConfigDict, mesh: Mesh, rows: int) -> Program:
  """Pictures to codes, `rows` at a time."""
  tiny = config.model.embed_dim == vit.VARIANTS["tiny"]["embed_dim"]
  sizes = visual_tokenizer.VARIANTS["tiny" if tiny else "lavit"]
  tower, frozen = programs.encoder("tiny" if tiny else "g14", config, mesh)
  model = visual_tokenizer.VisualTokenizer(**sizes, dtype=config.dtype)
  init = visual_tokenizer.init_function(model)
  abstract, axes = linear.abstract_params(init)
  spread = sharding.parameter_shardings(abstract, axes, mesh)
  table = jax.ShapeDtypeStruct((model.num_codes, model.code_dim), jnp.float32)
  frozen |= {
    "visual_tokenizer": programs.placed(abstract, spread),
    "codebook": {"embedding": programs.placed(table, sharding.replicated(mesh))},
  }

  @jax.jit
  def run(frozen, batch):
    coder = tokenizing.PictureCoder(tower, model, frozen)
    return tokenizing.encode_pictures(coder, batch["image"], batch["noise_id"])

  side = tower.image_size
  fields = dict(image=(jnp.uint8, side, side, 3), noise_id=(jnp.uint32,))
  arguments = {"frozen": frozen, "batch": programs.rows_of(mesh, rows, **fields)}
  positions = rows * tower.num_patches
  return Program("tokenize", run, arguments, mesh, rows, positions, rows)


def _drawing(config, mesh: Mesh, rows: int, prompt: int, max_new: int | None):
  """Arguments of `ahead.start` and `ahead.advance`."""
  tiny = dict(config.model) == llama.VARIANTS["tiny"]
  sizes = visual_tokenizer.VARIANTS["tiny" if tiny else "lavit"]
  words = Vocabulary(programs.TEXT_IDS, sizes["num_codes"])
  model = llama.Llama(words.size, words.padded_size, **config.model, dtype=config.dtype)
  ids = jnp.zeros((1, 8), jnp.int32)
  init = lambda key: model.init(key, ids, ids, ids, method="everything")
  abstract, _ = linear.abstract_params(init)
  side = ahead.abstract_serving(model, words, abstract, mesh)
  most = max_new or sizes["num_patches"]
  numbers = decoding.REFERENCE["draw"] | {"max_new": most, "min_new": 1}
  settings = decoding.drawing(numbers, words, most)
  shape = engine.shape_of([settings], rows, words.padded_size)
  return side, mesh, rows, prompt, shape


def prefill(
  config: ml_collections.ConfigDict,
  mesh: Mesh,
  rows: int,
  prompt: int = PROMPT,
  max_new: int | None = None,
) -> Program:
  """Reads `rows` prompts, and makes the cache.

  Args:
    config: of stage 2, for the sizes of the language model.
    mesh: the mesh.
    rows: drawings.
    prompt: slots of a prompt.
    max_new: most new ids; the patches of a picture when None.
  """
  call = ahead.start(*_drawing(config, mesh, rows, prompt, max_new))
  return Program("prefill", *call, mesh, rows, rows * prompt, 0)


def decode(
  config: ml_collections.ConfigDict,
  mesh: Mesh,
  rows: int,
  prompt: int = PROMPT,
  max_new: int | None = None,
) -> Program:
  """One new id for each of `rows` drawings; arguments as for `prefill`."""
  call = ahead.advance(*_drawing(config, mesh, rows, prompt, max_new))
  return Program("decode", *call, mesh, rows, rows, 0)


def draw(config: ml_collections.ConfigDict, mesh: Mesh, rows: int) -> Program:
  """Noise to latents for `rows` square pictures, by the config's sampling.

  The autoencoder is another program, and decodes one picture at a time.
  """
  modules = pixel_decoder.Modules(config)
  model = modules.unet.clone(remat="none", unroll=1)  # as `pixel_parts.load` makes it
  tiny = modules.autoencoder_name == "patch_latents"
  coder = visual_tokenizer.VARIANTS["tiny" if tiny else "lavit"]
  slots, settings = coder["num_patches"], pixels.Settings(**config.sampling)
  abstract, axes = linear.abstract_params(pixel_parts.init_unet(model, slots))
  spread = sharding.parameter_shardings(abstract, axes, mesh)

  @jax.jit
  def run(params, batch):
    return pixels.sample(model, params, modules.schedule, **batch, settings=settings)

  features = jax.ShapeDtypeStruct((rows, slots, coder["embed_dim"]), jnp.float32)
  size = tuple(config.ratios["1:1"])  # what `infer` draws unless told otherwise
  arguments = {
    "parameters": programs.placed(abstract, spread, config.dtype),
    "batch": _conditions(modules, mesh, features, size),
  }
  return Program("draw", run, arguments, mesh, rows, rows * slots, rows)


def _conditions(modules: pixel_decoder.Modules, mesh: Mesh, features, size):
  """Condition, null embedding and noise of `pixels.sample`, from features' shape."""
  model, head, rows = modules.unet, modules.head, features.shape[0]
  params, _ = linear.abstract_params(
    lambda key: head.init(key, jnp.zeros(features.shape))
  )
  make = functools.partial(pixel_parts.condition_of, head)
  condition = jax.eval_shape(make, params, None, features)
  if model.pooled_dim:
    condition = condition.replace(time_ids=pixels.time_ids(size, rows))
  null = None  # zeros, but for the Stable Diffusion 1.5 type
  if not model.pooled_dim and not model.grid_dim:
    null = jax.ShapeDtypeStruct((pixels.NULL_SLOTS, model.context_dim), jnp.float32)
  sides = (side // modules.autoencoder.factor for side in size)
  start = jax.ShapeDtypeStruct((rows, *sides, model.channels), jnp.float32)
  by_row, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  place = lambda tree, to: programs.placed(tree, jax.tree.map(lambda _: to, tree))
  return {
    "condition": place(condition, by_row),
    "null": place(null, whole),
    "start": place(start, by_row),
  }


PROGRAMS = {"tokenize": tokenize, "prefill": prefill, "decode": decode, "draw": draw}
# Stage whose config gives the sizes, and a full-size variant of it.
CONFIG = {
  "tokenize": ("visual_tokenizer", "7b"),
  "prefill": ("pretrain", "7b"),
  "decode": ("pretrain", "7b"),
  "draw": ("pixel_decoder", "sdxl"),
}
