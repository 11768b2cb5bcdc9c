"""Losses of all stages, computed in float32."""

import flax.struct
import jax
import jax.numpy as jnp
from einops import rearrange

from lavit_jax.core import sharding
from lavit_jax.core.contraction import contract
from lavit_jax.core.sharding import constrain
from lavit_jax.core.vocabulary import is_real


@flax.struct.dataclass
class TokenLoss:
  """Cross entropy of one batch, not yet divided.

  Attributes:
    losses: float32[B, L] loss of each position, 0 where masked.
    count: float32[] number of supervised positions.
    correct: float32[B, L] 1 where the target is the most probable id, 0 where masked.
    normalizer: float32[B, L] logarithm of the softmax's sum, 0 where masked.
  """

  losses: jax.Array
  count: jax.Array
  correct: jax.Array
  normalizer: jax.Array


@jax.custom_vjp
def token_logits(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
  """Logits float32[B, L, V] of states dtype[B, L, D] by a kernel dtype[D, V].

  Gradients are products in the operands' dtype, as those of every other kernel are:
  plain differentiation would add up the kernel's over devices in float32, at twice the
  bytes.
  """
  return contract("btd,dv->btv", hidden, kernel, "float32")


def _logits_forward(hidden, kernel):
  return token_logits(hidden, kernel), (hidden, kernel)


def _logits_backward(saved, gradient):
  hidden, kernel = saved
  gradient = gradient.astype(hidden.dtype)
  to_hidden = contract("btv,vd->btd", gradient, kernel.T)
  to_kernel = contract("dbt,btv->dv", rearrange(hidden, "b t d -> d b t"), gradient)
  return to_hidden, to_kernel


token_logits.defvjp(_logits_forward, _logits_backward)


def next_token(
  hidden: jax.Array,
  head: jax.Array,
  targets: jax.Array,
  mask: jax.Array,
  vocab_size: int,
  chunks: int = 1,
  holes: tuple[tuple[int, int], ...] = (),
) -> TokenLoss:
  """Next-token cross entropy over the joint vocabulary, in vocabulary chunks.

  The log-sum-exp is accumulated chunk by chunk and recomputed in the backward pass, so
  that the logits of the whole vocabulary never exist at once. A single chunk is kept
  instead, which saves a quarter of the head's products.

  Args:
    hidden: dtype[B, L, D] final hidden states.
    head: float32[D, V] output kernel, V padded and divisible by `chunks`.
    targets: int32[B, L].
    mask: bool[B, L], True where the target counts.
    vocab_size: ids from here on are padding: never predicted, without gradient.
    chunks: pieces of the vocabulary; V divides into them times the tensor shards.
    holes: ranges [first, after) of ids that are treated as padding too.

  Returns:
    The summed pieces; divide once, after summing over micro-batches.
  """
  shards = sharding.axis_size("act_vocab")
  if head.shape[1] % (chunks * shards):
    raise ValueError(
      f"vocabulary of {head.shape[1]} rows is not a multiple of {chunks} loss chunks"
      f" times {shards} tensor shards; choose divisors"
    )
  # Each chunk takes a piece of every tensor shard, so that no shard waits or is moved.
  spread = dict(t=shards, c=chunks)
  pieces = rearrange(head.astype(hidden.dtype), "d (t c s) -> c d (t s)", **spread)
  # The pieces stay split along D over fsdp: one is gathered at a time, and so is its
  # gradient added up and split again before the next one.
  pieces = constrain(pieces, None, "embed", "act_vocab")
  ids = rearrange(jnp.arange(head.shape[1]), "(t c s) -> c (t s)", **spread)

  def piece(carry, chunk):
    peak, total, target_logit = carry
    kernel, ids = chunk
    kernel = constrain(kernel, None, "act_vocab")
    logits = token_logits(hidden, kernel)
    logits = constrain(logits, "act_batch", "act_length", "act_vocab")
    logits = jnp.where(is_real(ids, vocab_size, holes), logits, -jnp.inf)
    new_peak = jnp.maximum(peak, jax.lax.stop_gradient(logits.max(-1)))
    finite = jnp.where(jnp.isfinite(new_peak), new_peak, 0.0)
    total = total * jnp.exp(peak - finite) + jnp.exp(logits - finite[..., None]).sum(-1)
    found = jnp.where(ids == targets[..., None], logits, 0.0).sum(-1)
    return (new_peak, total, target_logit + found), None

  shape = targets.shape
  carry = (jnp.full(shape, -jnp.inf), jnp.zeros(shape), jnp.zeros(shape))
  if chunks == 1:
    carry, _ = piece(carry, (pieces[0], ids[0]))
  else:
    carry, _ = jax.lax.scan(jax.checkpoint(piece), carry, (pieces, ids))
  peak, total, target_logit = carry
  normalizer = jnp.where(mask, peak + jnp.log(total), 0.0)
  losses = jnp.where(mask, normalizer - target_logit, 0.0)
  correct = (mask & (target_logit >= peak)).astype(jnp.float32)
  return TokenLoss(losses, mask.sum(dtype=jnp.float32), correct, normalizer)


def feature_cosine(features: jax.Array, reconstructed: jax.Array) -> jax.Array:
  """1 - cosine per patch: float[B, P, D] twice -> float32[B, P] (paper, 3.1)."""
  return 1.0 - cosine(features, reconstructed)


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
  """Cosine over the last axis in float32."""
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
  return (a * b).sum(-1) / jnp.maximum(norms, 1e-12)


def keep_rate(mean_keep: jax.Array, rho: float) -> jax.Array:
  """(rho - mean keep)^2, the mean taken over the global batch (paper, section 3.1).

  The batch mean, not each image's, lets the count follow an image's content.
  """
  return jnp.square(rho - mean_keep)


def contrastive(
  image: jax.Array, text: jax.Array, scale: jax.Array, same_text: jax.Array
) -> jax.Array:
  """Symmetric CLIP loss with soft targets for captions that occur twice in the batch.

  Args:
    image: float32[B, D] unit embeddings.
    text: float32[B, D] unit embeddings.
    scale: float32[] logit scale.
    same_text: bool[B, B], True where two captions are identical.

  Returns:
    float32[] loss.
  """
  logits = scale * (image @ text.T)
  target = same_text / same_text.sum(axis=1, keepdims=True)
  per_image = -(target * jax.nn.log_softmax(logits, axis=1)).sum(1)
  per_text = -(target * jax.nn.log_softmax(logits, axis=0)).sum(0)
  return 0.5 * (per_image.mean() + per_text.mean())


def words(logits: jax.Array, labels: jax.Array, background_weight: float) -> jax.Array:
  """Cross entropy of per-patch words; the last class is background.

  Args:
    logits: float[B, P, W].
    labels: int32[B, P], negative or >= W where unlabeled.
    background_weight: weight of patches labeled W - 1.

  Returns:
    float32[] weighted mean, 0 when nothing is labeled.
  """
  num_words = logits.shape[-1]
  labeled = (labels >= 0) & (labels < num_words)
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  picked = jnp.clip(labels, 0, num_words - 1)[..., None]
  losses = -jnp.take_along_axis(log_probs, picked, axis=-1)[..., 0]
  weight = labeled * jnp.where(labels == num_words - 1, background_weight, 1.0)
  return (losses * weight).sum() / jnp.maximum(weight.sum(), 1e-6)
