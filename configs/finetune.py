"""Finetuning: a finished model learns from your own pairs or instructions.

  python -m lavit_jax.prepare --source=jsonl --input=own.jsonl --target=data/own
  python -m lavit_jax.tokenize --model=MODEL --data=data/own
  python -m lavit_jax.train --config=configs/finetune.py:tiny --workdir=runs/finetune \
      --config.init_from=MODEL --config.data.train=data/own --config.data.eval=data/test

MODEL is a model directory of stage 2. Variants: "tiny" (the quickstart's model, CPU,
minutes) and "7b" (LaVIT's sizes, rows of 2048 tokens). See docs/finetuning.md.
"""

from configs import pretrain
from lavit_jax.training import optimizer


def get_config(variant: str = "tiny"):
  """The config of a variant, "tiny" or "7b": that of stage 2, but for what follows."""
  config = pretrain.get_config(variant)
  # The model directory, with all parts of stage 2, gives weights and text tokenizer.
  del config.warm_start, config.data.text_tokenizer
  config.update(
    dict(
      stage="finetune",
      # Adapters for every kernel whose path begins like this; "" is none. Rank 16 and
      # alpha of twice the rank are what most recipes for 7B models take.
      lora=dict(pattern="llama/blocks/attention/", rank=16, alpha=32.0),
      # Parameters that train themselves, by the beginning of their path, as in
      # "merger|vit_proj"; all that neither pattern names is frozen.
      trained="",
      num_steps=1000,
      batch_size=64,
      accumulate=1,
      # Which patches are kept is noise; what is to be learnt here is the text.
      kind_weights=dict(codes_of_image=0.0),
    )
  )
  config.data.update(
    dict(
      # Rows to plan, old ones included, before they repeat: here the whole run.
      plan_rows=64_000,
      eval_rows=64,
      mixture=dict(caption=1.0, answer=0.0, text_image=0.0, text=0.0),
      # Rows of the data that the model was trained on, against forgetting.
      old=dict(
        train="",
        share=0.0,
        mixture=dict(caption=0.5, answer=0.0, text_image=0.5, text=0.0),
      ),
    )
  )
  # The usual rate of adapters, ten times that of whole weights.
  config.optimizer = optimizer.default_config(
    learning_rate=2e-4, warmup_steps=30, weight_decay=0.0
  )
  if variant == "tiny":
    config.update(dict(num_steps=100, batch_size=8))
    config.data.plan_rows = 800
    # At 3e-3 a few hundred pictures are learnt by heart in 120 steps.
    config.optimizer.learning_rate = 5e-4
  return config
