"""Stage 1: selector, merger, codebook and feature decoder over a frozen encoder.

    images -> ViT f[B,P,D] -> selector (raw or whitened) keep[B,P]
    f[B,P,D] -> whiten, keep -> merger -> z f[B,P,C]
    phase a: z -> feature decoder -> x_rec           (no lookup)
    phase b: z -> nearest code, straight through -> feature decoder -> x_rec

The loss is mean(1 - cos(x, x_rec)) + lambda (rho - mean keep)^2 + a commitment term
(paper, equation 4); `stages/reconstruction.py` holds the step. The codebook follows by
exponential moving averages outside gradient, optimizer and decay.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from einops import rearrange
from jax.sharding import Mesh

from lavit_jax.core import losses, sharding
from lavit_jax.data import items, pipeline, records
from lavit_jax.inference import frozen_parts
from lavit_jax.models import codebook, selector, vit, whitening
from lavit_jax.models import visual_tokenizer as tokenizer_model
from lavit_jax.stages import reconstruction, warm_start
from lavit_jax.training import base, feed, optimizer
from lavit_jax.weights import model_directory

SHOWN = 10  # held-out pictures in the grid that evaluation draws


def assemble(
  config: ml_collections.ConfigDict, mesh: Mesh, tower: vit.VisionTransformer
) -> base.Assembled:
  """Makes model, state and steps over a frozen encoder."""
  model = tokenizer_model.VisualTokenizer(
    **config.model, dtype=config.dtype, remat=config.remat, unroll=config.unroll
  )
  sharding.check_divides(
    mesh,
    vit_heads=(tower.num_heads, ("tensor",)),
    num_heads=(config.model.num_heads, ("tensor",)),
  )
  sizes = {"embed_dim": tower.embed_dim, "num_patches": tower.num_patches}
  for name, expected in sizes.items():
    if config.model[name] != expected:
      raise ValueError(
        f"the encoder in {config.init_from} has {name} {expected}, got"
        f" config.model.{name} {config.model[name]}; set it to {expected}"
      )

  def init(key):
    features = jnp.zeros((1, model.num_patches, model.embed_dim))
    return model.init(key, features, jnp.ones(features.shape[:2], bool))

  def random_codebook(key):
    rows = jax.random.normal(key, (model.num_codes, model.code_dim))
    return codebook.create(codebook.l2_normalize(rows))

  tx = optimizer.make(config.optimizer, config.num_steps)
  abstract, shardings, initial = base.born_sharded(init, tx, mesh, random_codebook)
  steps = {
    quantize: base.jitted(
      reconstruction.make_step(model, tower, tx, config, quantize), shardings
    )
    for quantize in (False, True)
  }
  step = lambda number: steps[number >= config.phase_a_steps]
  return base.Assembled(model, abstract, shardings, initial, step)


def check_phases(num_steps: int, phase_a_steps: int) -> None:
  """Refuses a run that would end before its codebook is trained."""
  if phase_a_steps >= num_steps:
    raise ValueError(
      f"expected config.num_steps above config.phase_a_steps, got {num_steps} and"
      f" {phase_a_steps}: the codebook would never be trained; give"
      f" --config.phase_a_steps={num_steps // 2} too"
    )


def build(config: ml_collections.ConfigDict, mesh: Mesh) -> base.Stage:
  """Assembles the stage on frozen parts read from `config.init_from`."""
  check_phases(config.num_steps, config.phase_a_steps)
  tower, frozen, names = frozen_parts.encoder(
    config.init_from, mesh, config.dtype, config.unroll
  )
  made = assemble(config, mesh, tower)
  model, shardings, num_codes = made.model, made.shardings, config.model.num_codes
  item = lambda record, generator: items.picture(record, tower.image_size)
  source, held_out = (
    pipeline.Map(pipeline.Pictures(records.Records(folder)), item)
    for folder in (config.data.train, config.data.eval)
  )
  feed.check_held_out(held_out, config)

  def batches(position):
    return feed.device_batches(source, config, mesh, position)

  def initial(seed):
    state = made.initial(seed)
    if warm_start.folder_of(config):
      state = warm_start.visual_tokenizer(state, shardings, config)
    return state

  def before_step(state, number):
    # Codes that came with the weights stay when there is no phase without them.
    ready = warm_start.folder_of(config) and not config.phase_a_steps
    if number != config.phase_a_steps or ready:
      return state
    run = jax.jit(lambda *args: _codes_input(model, tower, *args))
    z = _collect(run, batches(0), state, frozen, config)
    rows = codebook.kmeans(
      z, num_codes, jax.random.key(config.seed), config.kmeans_iterations
    )
    book = jax.tree.map(np.asarray, codebook.create(rows))
    return state.replace(codebook=jax.device_put(book, shardings.codebook))

  look = jax.jit(functools.partial(_figures, model, tower), static_argnums=0)

  def evaluate(state):
    quantize = int(state.step) > config.phase_a_steps
    found, pictures = [], {}
    for batch in feed.fixed_batches(held_out, config, mesh):
      figures, keep, cosine = look(
        quantize, state.params, state.codebook, frozen, batch
      )
      found.append(figures)
      if not pictures and jax.process_count() == 1:
        shown = (batch["image"][:SHOWN], keep[:SHOWN], cosine[:SHOWN])
        pictures["kept"] = _grid(*map(np.asarray, shown))
    return base.mean_metrics(found), pictures

  def finish(state, folder):
    counts = sharding.to_host(state.codebook.counts)
    share = counts[counts > 0] / counts.sum()
    usual = {  # what sets to be tokenized are compared with
      "kept_share": float(evaluate(state)[0]["kept_share"]),
      "codes_perplexity": float(np.exp(-(share * np.log(share)).sum())),
    }
    parts = {
      "visual_tokenizer": model_directory.Part(state.params, config.model.to_dict()),
      "codebook": model_directory.Part(
        {"embedding": state.codebook.embedding},
        {"num_codes": num_codes, "code_dim": config.model.code_dim} | usual,
      ),
    }
    model_directory.save(folder, parts, base=config.init_from)

  return base.Stage(
    mesh=mesh,
    abstract=made.abstract,
    shardings=shardings,
    initial=initial,
    frozen=frozen,
    frozen_names=names,
    step=made.step,
    batches=batches,
    before_step=before_step,
    evaluate=evaluate,
    finish=finish,
    contents={"images": 1},
    records=lambda position: feed.record_ids(source, config, position),
  )


def _codes_input(model, tower, params, frozen, batch):
  """Unit vectors before the lookup, and which of them are kept."""
  features = frozen_parts.patch_features(tower, frozen, batch["image"])
  whitened = whitening.whiten(frozen.get("whitening"), features)
  noise = selector.gumbel(jax.random.key(0), batch["noise_id"], model.num_patches)
  encoded = reconstruction.encode(model, params, features, whitened, noise)
  return encoded.z, encoded.keep > 0.5


def _collect(run, batches, state, frozen, config) -> np.ndarray:
  """Kept vectors of the training mixture, at least `kmeans_per_code` for each code."""
  found, needed = [], config.model.num_codes * config.kmeans_per_code
  with contextlib.closing(batches):
    for batch, _ in batches:
      z, keep = run(state.params, frozen, batch)
      found.append(sharding.to_host(z)[sharding.to_host(keep)])
      if sum(map(len, found)) >= needed:
        return np.concatenate(found)[:needed]


def _figures(model, tower, quantize, params, book, frozen, batch):
  features = frozen_parts.patch_features(tower, frozen, batch["image"])
  z, keep = _codes_input(model, tower, params, frozen, batch)
  vectors = z
  if quantize:
    vectors = book.embedding[codebook.lookup(book.embedding, z)]
  keep = keep.astype(z.dtype)
  rebuilt = reconstruction.reconstruct(model, params, vectors, keep)
  mean = features.mean((0, 1), keepdims=True)
  cosine = losses.cosine(features, rebuilt)
  figures = {
    "cosine": cosine.mean(),
    "cosine_of_mean": losses.cosine(features, mean).mean(),
    "kept_share": keep.mean(),
  }
  return figures, keep, cosine


def _grid(images: np.ndarray, keep: np.ndarray, cosine: np.ndarray) -> np.ndarray:
  """Pictures; the same with dropped patches dimmed; how well each patch came back.

  Args:
    images: u8[n, H, W, 3].
    keep: float[n, P], 1 where kept.
    cosine: float[n, P] between true and reconstructed features.

  Returns:
    u8[3 H, n W, 3].
  """
  side = round(keep.shape[1] ** 0.5)
  patch = images.shape[1] // side

  def spread(values):  # [n, P] -> [n, H, W, 1]
    tiles = rearrange(values, "n (h w) -> n h w", h=side)
    return np.kron(tiles, np.ones((1, patch, patch)))[..., None]

  dimmed = images * (0.2 + 0.8 * spread(keep))
  quality = np.broadcast_to(255 * np.clip(spread(cosine), 0, 1), images.shape)
  rows = np.stack([images, dimmed, quality]).astype(np.uint8)
  return rearrange(rows, "r n h w c -> (r h) (n w) c")
