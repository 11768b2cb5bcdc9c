"""Repeats a block by scan over remat: compile time does not grow with depth."""

import flax.linen as nn
import jax

from lavit_jax.layers import splash

# What a layer's backward pass finds saved; the rest it recomputes.
REMAT_POLICIES = {
  # Everything.
  "none": None,
  # Its input alone.
  "full": jax.checkpoint_policies.nothing_saveable,
  # Its input and, where the attention kernel runs, the kernel's result.
  "attention": jax.checkpoint_policies.save_only_these_names(splash.SAVED),
  # The results of its linear maps.
  "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
}


def layers(
  block: type[nn.Module],
  num_layers: int,
  remat: str = "none",
  unroll: int = 1,
  broadcast: int = 0,
) -> type[nn.Module]:
  """Stacks `block`, whose call is (x, *broadcast) -> (x, per-layer output).

  Args:
    block: module class; its parameters gain a leading layer axis.
    num_layers: repetitions.
    remat: a key of `REMAT_POLICIES`.
    unroll: layers per scan step; `num_layers` unrolls all, which XLA on CPU prefers.
    broadcast: arguments that every layer sees, after the carry.

  Returns:
    The stacked module class; its call returns the carry and stacked outputs.
  """
  if remat not in REMAT_POLICIES:
    raise ValueError(f"remat {remat!r} is not one of {sorted(REMAT_POLICIES)}")
  if remat != "none":
    # Between two loops the compiler finds nothing twice; without one it would take the
    # recomputation for a repetition and keep the values instead.
    looped = num_layers > unroll
    block = nn.remat(block, prevent_cse=not looped, policy=REMAT_POLICIES[remat])
  return nn.scan(
    block,
    variable_axes={"params": 0, "intermediates": 0},
    split_rngs={"params": True},
    in_axes=(nn.broadcast,) * broadcast,
    length=num_layers,
    unroll=unroll,
    metadata_params={nn.meta.PARTITION_NAME: None},
  )
