"""Feed-forward layers."""

from collections.abc import Callable

import flax.linen as nn
import jax

from lavit_jax.core.sharding import constrain
from lavit_jax.layers import linear


def gelu(x: jax.Array) -> jax.Array:
  """The exact erf GELU."""
  return nn.gelu(x, approximate=False)


def quick_gelu(x: jax.Array) -> jax.Array:
  """OpenAI CLIP's approximation of it, which its weights were trained with."""
  return x * nn.sigmoid(1.702 * x)


class Mlp(nn.Module):
  """fc2(activation(fc1(x))) with biases.

  Attributes:
    mlp_dim: F, hidden width.
    dtype: compute dtype.
    activation: `gelu` as in the vision side, or `quick_gelu`.
  """

  mlp_dim: int
  dtype: str = "bfloat16"
  activation: Callable[[jax.Array], jax.Array] = gelu

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, T, D] to [B, T, D]."""
    dim = x.shape[-1]
    hidden = linear.dense(dim, self.mlp_dim, dtype=self.dtype, name="fc1")(x)
    hidden = constrain(hidden, "act_images", None, "act_mlp")
    out = linear.dense(
      self.mlp_dim, dim, ("mlp", "embed"), dtype=self.dtype, name="fc2"
    )
    return out(self.activation(hidden))
