"""AdamW or Muon with learning-rate groups, schedules and clipping, from a config."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax
import optax.contrib

# Root mean square of Muon's updates: AdamW's usual one, so that learning rates and
# decay carry over (arXiv 2502.16982, section 2.2).
MUON_RMS = 0.2


def default_config(**overrides) -> ml_collections.ConfigDict:
  """The optimizer section of a config, with the values most stages share."""
  values = dict(
    name="adamw",
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


def matrix_axes(
  path: Any, leaf: jax.Array
) -> optax.contrib.MuonDimensionNumbers | None:
  """Which axes of a kernel are contracted and which are made; None for other leaves.

  Kernels have their contracted axes first (layers/linear.py). Stacked layers and the
  three maps of a fused qkv kernel are matrices of their own. The output head, like the
  tables, keeps Adam.
  """
  names = [getattr(key, "key", "") for key in path]
  if names[-1] != "kernel" or "head" in names:
    return None
  axes = list(range(leaf.ndim))[int("blocks" in names) :]
  if "qkv" in names:
    axes.remove(axes[1])
  joined = 2 if len(axes) == 3 and names[-2] in ("out", "proj") else 1
  if len(axes) == 4:  # a convolution: [K, K, C, D]
    joined = 3
  return optax.contrib.MuonDimensionNumbers(tuple(axes[:joined]), tuple(axes[joined:]))


def make(
  config: ml_collections.ConfigDict, num_steps: int
) -> optax.GradientTransformation:
  """Builds the optimizer; its state mirrors the parameters, without frozen leaves."""
  if config.name not in ("adamw", "muon"):
    raise ValueError(f"optimizer.name {config.name!r} is not 'adamw' or 'muon'")
  rule = adamw if config.name == "adamw" else muon
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    rule(config, schedule(config, num_steps)),
    scale_groups(dict(config.groups)),
  )


def rates_taken(config: ml_collections.ConfigDict, opt_state: Any) -> dict[str, float]:
  """The learning rates of the last step that changed anything, by group.

  Args:
    config: stage config.
    opt_state: state of the optimizer after that step; skipped steps do not count in it.

  Returns:
    `learning_rate` and, for each group, `learning_rate_NAME`.
  """
  counts = optax.tree.get_all_with_path(opt_state, "count")
  taken = max(int(counts[0][1]) - 1, 0)
  rate = float(schedule(config.optimizer, config.num_steps)(taken))
  groups = {f"learning_rate_{n}": rate * s for n, s in config.optimizer.groups.items()}
  return {"learning_rate": rate} | groups


def adamw(
  config: ml_collections.ConfigDict, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
  """AdamW with decoupled decay."""
  return optax.adamw(
    learning_rate,
    config.beta1,
    config.beta2,
    config.eps,
    weight_decay=config.weight_decay,
    mask=_decay_mask,
  )


def muon(
  config: ml_collections.ConfigDict, learning_rate: optax.Schedule
) -> optax.GradientTransformation:
  """Muon for the kernels of linear maps, AdamW for everything else.

  The momentum of a kernel is orthogonalized, so that every direction of it learns at
  one rate. On the toy world it reaches AdamW's losses in half of the steps.
  """
  return optax.contrib.muon(
    learning_rate,
    consistent_rms=MUON_RMS,
    weight_decay=config.weight_decay,
    weight_decay_mask=_decay_mask,
    adam_b1=config.beta1,
    adam_b2=config.beta2,
    adam_weight_decay=config.weight_decay,
    muon_weight_dimension_numbers=lambda params: jax.tree_util.tree_map_with_path(
      matrix_axes, params
    ),
  )


def _decay_mask(params: Any) -> Any:
  return jax.tree_util.tree_map_with_path(decays, params)


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


@flax.struct.dataclass
class Average:
  """State of `averaged`.

  Attributes:
    count: int32[] steps taken.
    params: exponential moving average of the parameters, as they are after the step.
  """

  count: jax.Array
  params: Any


def averaged(decay: float) -> optax.GradientTransformation:
  """Follows the parameters by an exponential moving average; last in a chain.

  The average lives in the optimizer state, so that it is saved and sharded with the
  parameters. It starts with a short memory: min(decay, (1 + n) / (10 + n)).
  """

  def update(updates, state, params=None):
    share = jnp.minimum(decay, (1 + state.count) / (10 + state.count))
    moved = optax.apply_updates(params, updates)
    average = jax.tree.map(
      lambda old, new: share * old + (1 - share) * new, state.params, moved
    )
    return updates, Average(state.count + 1, average)

  def init(params):
    # A copy: a donated state must not hold one buffer twice.
    return Average(jnp.zeros((), jnp.int32), jax.tree.map(jnp.array, params))

  return optax.GradientTransformation(init, update)
