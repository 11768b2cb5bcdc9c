"""Stage 1: selector, merger, codebook and feature decoder over a frozen encoder.

    images -> ViT f[B,P,D] -> whiten -> selector keep[B,P] -> merger -> z f[B,P,C]
    phase a: z -> feature decoder -> x_rec           (no lookup)
    phase b: z -> nearest code, straight through -> feature decoder -> x_rec

The loss is mean(1 - cos(x, x_rec)) + lambda (rho - mean keep)^2 + a commitment term
(paper, equation 4). The codebook follows by exponential moving averages outside
gradient, optimizer and decay.
"""

import contextlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from einops import rearrange
from jax.sharding import Mesh

from lavit_jax import feed, losses, optimizer, sequence
from lavit_jax.data import items, pipeline, records
from lavit_jax.models import codebook, selector, whitening
from lavit_jax.models import visual_tokenizer as tokenizer_model
from lavit_jax.stages import base, frozen_parts
from lavit_jax.weights import model_directory

SHOWN = 10  # held-out pictures in the grid that evaluation draws


@flax.struct.dataclass
class Encoded:
  """One batch through selector, merger and bottleneck.

  Attributes:
    keep: float32[B, P] exactly 0 or 1, straight-through.
    log_prob: float32[B] log-probability of the whole mask.
    z: float32[B, P, C] unit vectors, meaningful at kept patches.
    rescued: float32[] pictures that kept nothing and were given one patch.
  """

  keep: jax.Array
  log_prob: jax.Array
  z: jax.Array
  rescued: jax.Array


def encode(model, params, inputs: jax.Array, noise: jax.Array) -> Encoded:
  """Selects and merges whitened features float[B, P, D] under Gumbel noise."""
  variables = {"params": params}
  log_probs = model.apply(variables, inputs, method="select")
  keep = selector.sample(log_probs, noise)
  # Only the mask's value enters the merger. Its gradient would pass through the policy
  # softmax, where a forbidden score that tops an allowed one by d weighs exp(d): steps
  # of norm 100 and a selector that drops objects. `reconstruct` carries the gradient.
  hard = jax.lax.stop_gradient(keep)
  z = model.apply(variables, inputs, hard, method="encode")
  rescued = selector.count_empty(log_probs, noise).astype(jnp.float32)
  chosen = jnp.where(hard > 0.5, log_probs[..., 0], log_probs[..., 1])
  return Encoded(keep, chosen.sum(1), z, rescued)


def reconstruct(model, params, vectors: jax.Array, keep: jax.Array) -> jax.Array:
  """Decodes code vectors of kept patches to features float32[B, P, D].

  Multiplying by the straight-through mask (1.0 in value) lets the reconstruction reach
  the selector directly.
  """
  aligned, length = sequence.left_align(vectors * keep[..., None], keep > 0.5)
  return model.apply({"params": params}, aligned, length, method="decode")


def make_step(model, tower, tx: Any, config: ml_collections.ConfigDict, quantize: bool):
  """Builds the train step of phase a (`quantize` False) or phase b.

  A first pass over the micro-batches finds the mean keep of the global batch; the rate
  term then enters each micro-batch as its exact slope times the batch's own mean, so
  that accumulation changes no gradient.
  """
  accumulate = config.accumulate

  def step(state, frozen, batch, key):
    micro = base.micro_batches(batch, accumulate)
    total = batch["image"].shape[0] * model.num_patches

    def observe(_, mb):
      features = frozen_parts.patch_features(tower, frozen, mb["image"])
      inputs = whitening.whiten(frozen.get("whitening"), features)
      noise, other = (
        base.gumbel(jax.random.fold_in(key, draw), mb["noise_id"], model.num_patches)
        for draw in range(2)
      )
      log_probs = model.apply({"params": state.params}, inputs, method="select")
      keep = jax.lax.stop_gradient(selector.sample(log_probs, noise))
      return None, ((features, inputs, noise, other), keep.sum())

    _, (seen, kept) = base.over_micro_batches(observe, None, micro)
    kept = kept.sum()
    slope = 2 * config.rate_weight * (kept / total - config.keep_share)

    def compare(params, features, inputs, noise, distance, log_prob):
      """Credits a mask with what it does better than a second one of its picture."""
      encoded = encode(model, params, inputs, noise)
      vectors = encoded.z
      if quantize:
        vectors = state.codebook.embedding[
          codebook.lookup(state.codebook.embedding, vectors)
        ]
      rebuilt = reconstruct(model, params, vectors, encoded.keep)
      worse = distance - losses.feature_cosine(features, rebuilt).mean(1)
      worse = jax.lax.stop_gradient(worse)
      return (worse * (log_prob - encoded.log_prob)).sum() / 2

    def loss_fn(params, features, inputs, noise, other):
      encoded = encode(model, params, inputs, noise)
      vectors, commitment, codes = encoded.z, jnp.zeros(()), None
      valid = jax.lax.stop_gradient(encoded.keep) > 0.5
      if quantize:
        codes = codebook.lookup(state.codebook.embedding, encoded.z)
        rows = state.codebook.embedding[codes]
        distance = jnp.square(encoded.z - rows).sum(-1) * valid
        commitment = distance.sum() / jnp.maximum(kept, 1)
        vectors = codebook.straight_through(encoded.z, rows)
      rebuilt = reconstruct(model, params, vectors, encoded.keep)
      distance = losses.feature_cosine(features, rebuilt).mean(1)
      score = compare(params, features, inputs, other, distance, encoded.log_prob)
      distance, score = (x.sum() * model.num_patches / total for x in (distance, score))
      loss = distance + score + config.commitment_weight * commitment
      loss = loss + slope * encoded.keep.sum() / total
      parts = {"cosine": -distance, "commitment": commitment}
      parts |= {"rescued": encoded.rescued}
      return loss, (parts, _assign(codes, encoded.z, valid))

    def _assign(codes, z, valid):
      if not quantize:
        return None
      z = jax.lax.stop_gradient(z)
      sums = codebook.assignments(codes, z, valid, config.model.num_codes)
      return sums, (z, valid)

    def one(grads, mb):
      (_, (parts, assigned)), new = jax.value_and_grad(loss_fn, has_aux=True)(
        state.params, *mb
      )
      return jax.tree.map(jnp.add, grads, new), (parts, assigned)

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    grads, (parts, assigned) = base.over_micro_batches(one, zeros, seen)
    metrics = jax.tree.map(lambda x: x.sum(0), parts)
    metrics["cosine"] = 1.0 + metrics["cosine"]
    metrics["kept_share"] = kept / total
    rate = losses.keep_rate(kept / total, config.keep_share)
    metrics["loss"] = (
      1.0
      - metrics["cosine"]
      + config.rate_weight * rate
      + config.commitment_weight * metrics["commitment"]
    )
    changes = {}
    if quantize:
      book, usage = _move_codebook(state.codebook, assigned, key, config)
      changes, metrics = {"codebook": book}, metrics | usage
    state, norms = base.apply_gradients(state, grads, tx, **changes)
    return state, metrics | norms

  return step


def _move_codebook(book, assigned, key, config):
  """One EMA update from the kept positions of the whole global batch."""
  (counts, sums), (z, valid) = assigned
  counts, sums = counts.sum(0), sums.sum(0)
  merge = lambda x: rearrange(x, "a b p ... -> (b a p) ...")  # batch order
  book = codebook.ema_update(book, counts, sums, config.ema_decay)
  book, dead = codebook.revive(
    book, merge(z), jax.random.fold_in(key, 7), config.revive_below, merge(valid)
  )
  share = counts / jnp.maximum(counts.sum(), 1.0)
  entropy = -(share * jnp.log(jnp.maximum(share, 1e-12))).sum()
  usage = {
    "code_perplexity": jnp.exp(entropy),
    "codes_used": (counts > 0).sum(),
    "codes_revived": dead,
  }
  return book, usage


def build(config: ml_collections.ConfigDict, mesh: Mesh) -> base.Stage:
  """Assembles the stage on frozen parts read from `config.init_from`."""
  tower, frozen, names = frozen_parts.encoder(
    config.init_from, mesh, config.dtype, config.unroll
  )
  model = tokenizer_model.VisualTokenizer(
    **config.model, dtype=config.dtype, remat=config.remat, unroll=config.unroll
  )
  num_codes, code_dim = config.model.num_codes, config.model.code_dim

  def init(key):
    features = jnp.zeros((1, model.num_patches, model.embed_dim))
    return model.init(key, features, jnp.ones(features.shape[:2], bool))

  def random_codebook(key):
    rows = jax.random.normal(key, (num_codes, code_dim))
    return codebook.create(codebook.l2_normalize(rows))

  tx = optimizer.make(config.optimizer, config.num_steps)
  abstract, shardings, initial = base.born_sharded(init, tx, mesh, random_codebook)
  item = lambda record, generator: items.picture(record, tower.image_size)
  steps = {
    quantize: base.jitted(make_step(model, tower, tx, config, quantize), shardings)
    for quantize in (False, True)
  }
  source, held_out = (
    pipeline.Map(pipeline.Pictures(records.Records(folder)), item)
    for folder in (config.data.train, config.data.eval)
  )

  def batches(position):
    return feed.device_batches(source, config, mesh, position)

  def before_step(state, number):
    if number != config.phase_a_steps:
      return state
    run = jax.jit(lambda *args: _codes_input(model, tower, *args))
    z = _collect(run, batches(0), state, frozen, config)
    rows = codebook.kmeans(
      z, num_codes, jax.random.key(config.seed), config.kmeans_iterations
    )
    book = codebook.create(rows)
    return state.replace(codebook=jax.device_put(book, shardings.codebook))

  def evaluate(state):
    quantize = int(state.step) > config.phase_a_steps
    run = jax.jit(lambda *args: _figures(model, tower, quantize, *args))
    found, pictures = [], {}
    for batch in feed.fixed_batches(held_out, config, mesh):
      figures, keep, cosine = run(state.params, state.codebook, frozen, batch)
      found.append(figures)
      if not pictures and jax.process_count() == 1:
        shown = (batch["image"][:SHOWN], keep[:SHOWN], cosine[:SHOWN])
        pictures["kept"] = _grid(*map(np.asarray, shown))
    return base.mean_metrics(found), pictures

  def finish(state, folder):
    parts = {
      "visual_tokenizer": model_directory.Part(state.params, config.model.to_dict()),
      "codebook": model_directory.Part(
        {"embedding": state.codebook.embedding},
        {"num_codes": num_codes, "code_dim": code_dim},
      ),
    }
    model_directory.save(folder, parts, base=config.init_from)

  return base.Stage(
    mesh=mesh,
    abstract=abstract,
    shardings=shardings,
    initial=initial,
    frozen=frozen,
    frozen_names=names,
    step=lambda number: steps[number >= config.phase_a_steps],
    batches=batches,
    before_step=before_step,
    evaluate=evaluate,
    finish=finish,
  )


def _codes_input(model, tower, params, frozen, batch):
  """Unit vectors before the lookup, and which of them are kept."""
  features = frozen_parts.patch_features(tower, frozen, batch["image"])
  inputs = whitening.whiten(frozen.get("whitening"), features)
  noise = base.gumbel(jax.random.key(0), batch["noise_id"], model.num_patches)
  encoded = encode(model, params, inputs, noise)
  return encoded.z, encoded.keep > 0.5


def _collect(run, batches, state, frozen, config) -> np.ndarray:
  """Kept vectors of the training mixture, at least `kmeans_per_code` for each code."""
  found, needed = [], config.model.num_codes * config.kmeans_per_code
  with contextlib.closing(batches):
    for batch, _ in batches:
      z, keep = run(state.params, frozen, batch)
      found.append(np.asarray(z)[np.asarray(keep)])
      if sum(map(len, found)) >= needed:
        return np.concatenate(found)[:needed]


def _figures(model, tower, quantize, params, book, frozen, batch):
  features = frozen_parts.patch_features(tower, frozen, batch["image"])
  z, keep = _codes_input(model, tower, params, frozen, batch)
  vectors = z
  if quantize:
    vectors = book.embedding[codebook.lookup(book.embedding, z)]
  keep = keep.astype(z.dtype)
  rebuilt = reconstruct(model, params, vectors, keep)
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
