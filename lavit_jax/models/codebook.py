"""The codebook: cosine vector quantization with an EMA update (paper, section 3.1).

z f[..., C] unit vectors -> lookup -> codes int32[...]; `embedding[codes]` are the
vectors the decoder sees. The codebook is state, not parameters: it lives outside the
optimizer and has no gradient. All of it is float32 at full precision, since a rounded
distance picks another code.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp

# Rows per step of k-means: bounds the distance table and stays in a CPU's cache.
CHUNK = 2048


@flax.struct.dataclass
class Codebook:
  """Rows and the running statistics they come from.

  Attributes:
    embedding: float32[K, C] rows, of unit length when trained here.
    counts: float32[K] EMA of how many tokens per step chose each code.
    sums: float32[K, C] EMA of the sum of those tokens.
  """

  embedding: jax.Array
  counts: jax.Array
  sums: jax.Array


def create(embedding: jax.Array, count: float = 1.0) -> Codebook:
  """A codebook of float[K, C] rows, as if each were chosen `count` times a step."""
  rows = jnp.array(embedding, jnp.float32, copy=True)
  # Three buffers of their own: a donated state must not hold one buffer twice.
  counts = jnp.full(rows.shape[:1], count, jnp.float32)
  return Codebook(embedding=rows, counts=counts, sums=rows * counts[:, None] + 0.0)


def l2_normalize(z: jax.Array) -> jax.Array:
  """Scales float[..., C] to unit length in float32; zero stays zero."""
  z = z.astype(jnp.float32)
  # The root of a sum of squares has no gradient at 0, so the floor goes inside.
  square = jnp.square(z).sum(axis=-1, keepdims=True)
  return z * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def distances(embedding: jax.Array, z: jax.Array) -> jax.Array:
  """Squared distances of float[..., C] to each row: float32[..., K]."""
  z, embedding = z.astype(jnp.float32), embedding.astype(jnp.float32)
  product = jnp.einsum("...c,kc->...k", z, embedding, precision="highest")
  lengths = jnp.square(embedding).sum(axis=-1)
  return jnp.square(z).sum(axis=-1, keepdims=True) + lengths - 2 * product


def lookup(embedding: jax.Array, z: jax.Array) -> jax.Array:
  """The nearest row of each float[..., C] vector, int32[...].

  The rows are used as they are, unit length or not, as the reference does.
  """
  return jnp.argmin(distances(embedding, z), axis=-1).astype(jnp.int32)


def straight_through(z: jax.Array, vectors: jax.Array) -> jax.Array:
  """The value of `vectors` exactly, with the gradient going to `z`."""
  vectors = jax.lax.stop_gradient(vectors)
  return vectors + (z - jax.lax.stop_gradient(z))


def assignments(
  codes: jax.Array, z: jax.Array, valid: jax.Array, num_codes: int
) -> tuple[jax.Array, jax.Array]:
  """Counts and sums of the vectors that chose each code.

  Written as a product with one-hot codes: under a mesh it becomes local sums and one
  all-reduce of [K, C].

  Args:
    codes: int32[...].
    z: float[..., C].
    valid: bool[...], False for dropped patches and padding.
    num_codes: K.

  Returns:
    float32[K] counts and float32[K, C] sums.
  """
  chosen = jax.nn.one_hot(jnp.where(valid, codes, -1).reshape(-1), num_codes)
  rows = z.astype(jnp.float32).reshape(-1, z.shape[-1])
  return chosen.sum(axis=0), jnp.matmul(chosen.T, rows, precision="highest")


def ema_update(
  codebook: Codebook, counts: jax.Array, sums: jax.Array, decay: float
) -> Codebook:
  """Moves the statistics towards one step's, and the rows to their directions."""
  counts = decay * codebook.counts + (1 - decay) * counts
  sums = decay * codebook.sums + (1 - decay) * sums
  known = jnp.square(sums).sum(axis=-1, keepdims=True) > 1e-20
  embedding = jnp.where(known, l2_normalize(sums), codebook.embedding)
  return Codebook(embedding=embedding, counts=counts, sums=sums)


def revive(
  codebook: Codebook,
  candidates: jax.Array,
  key: jax.Array,
  threshold: float,
  valid: jax.Array | None = None,
) -> tuple[Codebook, jax.Array]:
  """Replaces rarely used codes by current vectors, each by another one.

  Args:
    codebook: the codebook after `ema_update`.
    candidates: float[n, C] unit vectors of this step.
    key: random key.
    threshold: codes with an EMA count below it are dead.
    valid: bool[n] candidates to draw from; None is all.

  Returns:
    The codebook, whose revived codes start with the mean count, and int32[] how many
    were revived.
  """
  num_rows = candidates.shape[0]
  valid = jnp.ones(num_rows, bool) if valid is None else valid
  priority = jnp.where(valid, jax.random.uniform(key, (num_rows,)), 2.0)
  order = jnp.argsort(priority)  # valid ones first, shuffled
  available = jnp.maximum(valid.sum(), 1)
  dead = (codebook.counts < threshold) & valid.any()
  rank = jnp.cumsum(dead) - 1
  fresh = candidates.astype(jnp.float32)[order[rank % available]]  # [K, C]
  counts = jnp.where(dead, codebook.counts.mean(), codebook.counts)
  dead_rows = dead[:, None]
  revived = Codebook(
    embedding=jnp.where(dead_rows, fresh, codebook.embedding),
    counts=counts,
    sums=jnp.where(dead_rows, fresh * counts[:, None], codebook.sums),
  )
  return revived, dead.sum(dtype=jnp.int32)


def _assign(rows: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Best row by cosine of each z [n, C], chunk by chunk: codes and cosines [n]."""

  def chunk(part):
    cosine = jnp.matmul(part, rows.T, precision="highest")
    return jnp.argmax(cosine, axis=-1), cosine.max(axis=-1)

  size = min(CHUNK, z.shape[0])
  padded = jnp.pad(z, ((0, -z.shape[0] % size), (0, 0)))
  codes, cosine = jax.lax.map(chunk, padded.reshape(-1, size, z.shape[-1]))
  return codes.reshape(-1)[: z.shape[0]], cosine.reshape(-1)[: z.shape[0]]


@functools.partial(jax.jit, static_argnames=("num_codes", "iterations"))
def kmeans(
  z: jax.Array, num_codes: int, key: jax.Array, iterations: int = 10
) -> jax.Array:
  """Cosine k-means from a random start; an empty cluster takes the worst-fitted z.

  Args:
    z: float[n, C] unit vectors, at least 64 per code advised.
    num_codes: K, at most n.
    key: random key of the start.
    iterations: passes over z.

  Returns:
    float32[K, C] unit rows; `create` makes a codebook of them.
  """
  if z.shape[0] < num_codes:
    raise ValueError(
      f"k-means needs at least {num_codes} vectors for {num_codes} codes, got"
      f" {z.shape[0]}; encode more images first"
    )
  z = l2_normalize(z)
  start = jax.random.choice(key, z.shape[0], (num_codes,), replace=False)

  def step(rows, _):
    codes, cosine = _assign(rows, z)
    sums = jax.ops.segment_sum(z, codes, num_codes)
    counts = jax.ops.segment_sum(jnp.ones_like(cosine), codes, num_codes)
    empty = counts == 0
    _, worst = jax.lax.top_k(-cosine, num_codes)
    outliers = z[worst[jnp.cumsum(empty) - 1]]  # a different one per empty cluster
    return jnp.where(empty[:, None], outliers, l2_normalize(sums)), None

  rows, _ = jax.lax.scan(step, z[start], length=iterations)
  return rows
