"""What every stage config shares."""

import ml_collections

from lavit_jax.core import sharding


def base(stage: str, **fields) -> ml_collections.ConfigDict:
  """A config with the fields that `train` itself reads, and those given."""
  config = ml_collections.ConfigDict(
    dict(
      stage=stage,
      seed=0,
      # -1 takes the devices that are left. Axes: data, fsdp, sequence, tensor.
      mesh=dict(data=1, fsdp=-1, sequence=1, tensor=1),
      # Other rows for the table of core/sharding.py, by logical name: mesh axes joined
      # by "+", "none" for a dimension that stays whole, "" for the table's own.
      rules=dict.fromkeys(sharding.RULES, ""),
      # Run directory whose parameters the first step starts from, where they fit.
      parameters_from="",
      # Project of Weights & Biases that gets the metrics, too.
      wandb="",
      dtype="bfloat16",
      # What the backward pass recomputes, a name of layers.stack.REMAT_POLICIES:
      # "none", "dots" (all but linear maps), "attention" (all but its kernel), "full".
      remat="full",
      # Layers per scan step; XLA on CPU runs faster with all layers unrolled.
      unroll=1,
      # Micro-batches per optimizer step.
      accumulate=1,
      log_every=10,
      eval_every=500,
      eval_batches=8,
      checkpoint_every=500,
      # Checkpoints that stay: the newest, all of each so many steps, and the best by a
      # figure such as "eval/loss_text" ("lowest" or "highest").
      keep=dict(last=2, every=0, best=0, metric="", order="lowest"),
      # Seconds of one step, evaluation or save after which every host prints where it
      # is; 0 for never.
      step_timeout=1800,
      # Seconds of the same after which a host that hangs ends with status 75, for a
      # supervisor to give the command again; 0 for never.
      end_hung=0,
      # Steps in a row without finite gradients that end the run; 0 for never.
      skip_limit=20,
      data_threads=16,
    )
  )
  config.update(fields)
  return config


def on_cpu(config: ml_collections.ConfigDict, unroll: int) -> None:
  """Settings of the tiny variants: float32, no remat, unrolled, few threads."""
  config.update(
    dict(
      dtype="float32",
      remat="none",
      unroll=unroll,
      log_every=20,
      eval_every=0,
      data_threads=2,
    )
  )


def check(variant: str, known: tuple[str, ...]) -> None:
  """Refuses an unknown variant by name."""
  if variant not in known:
    raise ValueError(f"unknown variant {variant!r}; choose one of {list(known)}")
