"""The train step of stage 1, in its two phases.

    features, whitened f[B,P,D] -> select, twice -> keep[B,P], other keep[B,P]
    whitened, keep -> merge -> z f[B,P,C]
    z -> (phase b: nearest code, straight through) -> decode

The selector learns in two ways. The straight-through mask multiplies the vectors that
are decoded, so that the reconstruction reaches it directly (paper, section 3.1). That
gradient is of first order and fades once reconstructions are good, though leaving a
patch out would still cost much. So two masks of each picture are also compared, and
the better one is made more likely in proportion to how much better it is (REINFORCE
with a leave-one-out baseline); this term, times `config.mask_comparison`, is added to
the straight-through gradient. At 0 there is no second mask: the paper's way.

Phase b freezes the selector, as the authors describe (repository thread 10): code noise
would teach it to keep about as many patches of every picture.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
from einops import rearrange

from lavit_jax.core import losses, sequence
from lavit_jax.inference import frozen_parts
from lavit_jax.models import codebook, selector, whitening
from lavit_jax.training import base


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


def encode(
  model, params, features: jax.Array, whitened: jax.Array, noise: jax.Array
) -> Encoded:
  """Selects and merges patches under Gumbel noise.

  Args:
    model: the visual tokenizer.
    params: its parameters.
    features: float[B, P, D] of the encoder, as they are.
    whitened: float[B, P, D] the same as the merger gets them.
    noise: float[B, P, 2].
  """
  variables = {"params": params}
  log_probs = model.apply(variables, features, whitened, method="select")
  keep = selector.sample(log_probs, noise)
  # Only the mask's value enters the merger. Its gradient would pass through the policy
  # softmax, where a forbidden score that tops an allowed one by d weighs exp(d): steps
  # of norm 100 and a selector that drops objects. `reconstruct` carries the gradient.
  hard = jax.lax.stop_gradient(keep)
  z = model.apply(variables, whitened, hard, method="encode")
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


def lookup(book: codebook.Codebook, z: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Nearest codes int32[B, P] of z float[B, P, C], and their rows."""
  codes = codebook.lookup(book.embedding, z)
  return codes, book.embedding[codes]


def make_step(model, tower, tx: Any, config: ml_collections.ConfigDict, quantize: bool):
  """Builds the train step of phase a (`quantize` False) or phase b.

  A first pass over the micro-batches finds the mean keep of the global batch; the rate
  term then enters each micro-batch as its exact slope times the batch's own mean, so
  that accumulation changes no gradient.

  Returns:
    (state, frozen, batch, key) -> (state, metrics).
  """

  def step(state, frozen, batch, key):
    micro = base.micro_batches(batch, config.accumulate)
    total = batch["image"].shape[0] * model.num_patches

    def look(_, mb):
      return None, _look(model, tower, state.params, frozen, mb, key)

    _, (seen, counts) = base.over_micro_batches(look, None, micro)
    kept = counts.sum(dtype=jnp.float32)
    book = state.codebook if quantize else None
    loss = _make_loss(model, book, config, kept, total)

    grads, (_, (parts, assigned)) = base.accumulated_gradients(
      lambda params, mb: loss(params, *mb), state.params, seen
    )
    metrics = _summary(parts, kept / total, config)
    found = sequence.percentiles(counts, model.num_patches, counts >= 0)
    metrics |= {f"kept_{name}": value for name, value in found.items()}
    changes = {}
    if quantize:
      moved, usage = _move_codebook(state.codebook, assigned, key, config)
      changes, metrics = {"codebook": moved}, metrics | usage
    selector_params = state.params["selector"]
    state, norms = base.apply_gradients(state, grads, tx, **changes)
    if quantize:
      state = state.replace(params=state.params | {"selector": selector_params})
    return state, metrics | norms

  return step


def _look(model, tower, params, frozen, batch, key):
  """Features, raw and whitened, two noises of a micro-batch; and what each keeps."""
  features = frozen_parts.patch_features(tower, frozen, batch["image"])
  whitened = whitening.whiten(frozen.get("whitening"), features)
  noise, other = (
    selector.gumbel(jax.random.fold_in(key, draw), batch["noise_id"], model.num_patches)
    for draw in range(2)
  )
  log_probs = model.apply({"params": params}, features, whitened, method="select")
  keep = jax.lax.stop_gradient(selector.sample(log_probs, noise))
  counts = keep.sum(1).astype(jnp.int32)
  return (features, whitened, noise, other), counts


def _make_loss(model, book, config, kept: jax.Array, total: int):
  """The loss of a micro-batch as its share of the global batch.

  Without a codebook (phase a) it trains the selector too; with one it does not.
  """
  slope = 2 * config.rate_weight * (kept / total - config.keep_share)

  def compared(params, features, whitened, noise, distance, log_prob):
    """The score of masks against a second one of the same pictures, float32[B]."""
    second = encode(model, params, features, whitened, noise)
    rebuilt = reconstruct(model, params, second.z, second.keep)
    worse = distance - losses.feature_cosine(features, rebuilt).mean(1)
    return jax.lax.stop_gradient(worse) * (log_prob - second.log_prob) / 2

  def loss(params, features, whitened, noise, other):
    first = encode(model, params, features, whitened, noise)
    vectors, keep = first.z, first.keep
    commitment, assigned = jnp.zeros(()), None
    if book is not None:
      keep = jax.lax.stop_gradient(keep)
      valid = keep > 0.5
      codes, rows = lookup(book, first.z)
      gap = jnp.square(first.z - rows).sum(-1) * valid
      commitment = gap.sum() / jnp.maximum(kept, 1)
      vectors = codebook.straight_through(first.z, rows)
      z = jax.lax.stop_gradient(first.z)
      counted = codebook.assignments(codes, z, valid, config.model.num_codes)
      assigned = (counted, (z, valid))
    rebuilt = reconstruct(model, params, vectors, keep)
    distance = losses.feature_cosine(features, rebuilt).mean(1)  # [B]
    share = model.num_patches / total
    value = distance.sum() * share + config.commitment_weight * commitment
    if book is None:
      value = value + slope * keep.sum() / total
      if config.mask_comparison:
        score = compared(params, features, whitened, other, distance, first.log_prob)
        value = value + config.mask_comparison * score.sum() * share
    parts = {"distance": distance.sum() * share, "commitment": commitment}
    return value, (parts | {"rescued": first.rescued}, assigned)

  return loss


def _summary(parts, share: jax.Array, config) -> dict[str, jax.Array]:
  """Metrics of the global batch; `loss` is the objective that the paper states."""
  parts = jax.tree.map(lambda x: x.sum(0), parts)
  rate = losses.keep_rate(share, config.keep_share)
  loss = parts["distance"] + config.rate_weight * rate
  loss = loss + config.commitment_weight * parts["commitment"]
  named = {name: parts[name] for name in ("commitment", "rescued")}
  return named | {"loss": loss, "cosine": 1 - parts["distance"], "kept_share": share}


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
