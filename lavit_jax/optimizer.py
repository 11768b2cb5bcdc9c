"""AdamW with learning-rate groups, schedules and clipping, from a config section."""

from typing import Any

import jax
import ml_collections
import optax


def default_config(**overrides) -> ml_collections.ConfigDict:
  """The optimizer section of a config, with the values most stages share."""
  values = dict(
    learning_rate=1e-4,
    warmup_steps=100,
    schedule="cosine",
    # Fraction of the steps at the peak before a "linear" decay begins.
    flat_fraction=0.0,
    final_fraction=0.05,
    beta1=0.9,
    beta2=0.95,
    eps=1e-6,
    weight_decay=0.1,
    clip_norm=1.0,
    # Multiplies the learning rate of parameters below a top-level name.
    groups=ml_collections.ConfigDict(),
  )
  values.update(overrides)
  return ml_collections.ConfigDict(values)


def schedule(config: ml_collections.ConfigDict, num_steps: int) -> optax.Schedule:
  """Warm-up, then cosine or flat-and-linear decay to `final_fraction` of the peak."""
  peak, final = config.learning_rate, config.learning_rate * config.final_fraction
  warmup = min(config.warmup_steps, max(num_steps - 1, 0))
  rest = max(num_steps - warmup, 1)
  if config.schedule == "cosine":
    decay = optax.cosine_decay_schedule(peak, rest, config.final_fraction)
  elif config.schedule == "linear":
    flat = int(rest * config.flat_fraction)
    decay = optax.join_schedules(
      [
        optax.constant_schedule(peak),
        optax.linear_schedule(peak, final, max(rest - flat, 1)),
      ],
      [flat],
    )
  else:
    raise ValueError(
      f"optimizer.schedule {config.schedule!r} is not 'cosine' or 'linear'"
    )
  return optax.join_schedules(
    [optax.linear_schedule(0.0, peak, max(warmup, 1)), decay], [warmup]
  )


def decays(path: Any, leaf: Any) -> bool:
  """Weight decay touches kernels and tables, not biases, scales or positions."""
  del leaf
  return getattr(path[-1], "key", None) in ("kernel", "embedding")


def make(
  config: ml_collections.ConfigDict, num_steps: int
) -> optax.GradientTransformation:
  """Builds the optimizer; its state mirrors the parameters, without frozen leaves."""
  learning_rate = schedule(config, num_steps)
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.scale_by_adam(config.beta1, config.beta2, config.eps),
    optax.add_decayed_weights(
      config.weight_decay,
      mask=lambda params: jax.tree_util.tree_map_with_path(decays, params),
    ),
    optax.scale_by_learning_rate(learning_rate),
    scale_groups(dict(config.groups)),
  )


def scale_groups(groups: dict[str, float]) -> optax.GradientTransformation:
  """Multiplies the updates below each named top-level entry of the parameters."""

  def update(updates, state, params=None):
    del params
    unknown = sorted(set(groups) - set(updates))
    if unknown:
      raise ValueError(
        f"optimizer.groups names {unknown}, but the parameters are {sorted(updates)}"
      )
    scaled = {
      name: optax.tree.scale(groups.get(name, 1.0), tree)
      for name, tree in updates.items()
    }
    return scaled, state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
