"""Finetuning: a finished model learns from your own pairs or instructions.

  python -m lavit_jax.prepare --source=jsonl --input=own.jsonl --target=data/own
  python -m lavit_jax.tokenize --model=MODEL --data=data/own
  python -m lavit_jax.train --config=configs/finetune.py:tiny --workdir=runs/finetune \
      --config.init_from=MODEL --config.data.train=data/own --config.data.eval=data/test

MODEL is a model directory of stage 2. Variants: "tiny" (the quickstart's model, CPU,
minutes) and "7b" (LaVIT's sizes, rows of 2048 tokens). See docs/finetuning.md.
"""

from configs import common
from lavit_jax.generate import decoding
from lavit_jax.models import llama
from lavit_jax.training import optimizer


def get_config(variant: str = "tiny"):
  """The config of a variant: "tiny" or "7b"."""
  common.check(variant, ("tiny", "7b"))
  config = common.base(
    "finetune",
    # Model directory with all parts of stage 2; its weights stay as they are.
    init_from="",
    # Adapters for every kernel whose path begins like this; "" is none. Rank 16 and
    # alpha of twice the rank are what most recipes for 7B models take.
    lora=dict(pattern="llama/blocks/attention/", rank=16, alpha=32.0),
    # Parameters that train themselves, by the beginning of their path, as in
    # "merger|vit_proj"; all that neither pattern names is frozen.
    trained="",
    num_steps=1000,
    batch_size=64,
    accumulate=1,
    model=llama.VARIANTS["7b"],
    # How the finished model writes and draws when nothing else is asked for; the model
    # directory carries it.
    decoding=decoding.VARIANTS[variant],
    loss_chunks=8,
    # Weight of the squared log-normalizer of the softmax; 0, as in the paper, is none.
    z_loss=0.0,
    # Which patches are kept is noise; what is to be learnt here is the text.
    kind_weights=dict(
      text=1.0, codes_after_text=1.0, codes_of_image=0.0, text_after_image=1.0
    ),
    data=dict(
      train="",
      eval="",
      shuffle_seed=2,
      # Rows of the stream to leave out, FIRST:LAST,... (docs/training.md).
      skip="",
      row_length=2048,
      images_per_row=0,
      # Rows to plan, old ones included, before they repeat: here the whole run.
      plan_rows=64_000,
      plan_epochs=1.0,
      long_pairs="refuse",
      eval_rows=64,
      # Share of tokens by kind of document, as in configs/pretrain.py.
      mixture=dict(caption=1.0, answer=0.0, text_image=0.0, text=0.0),
      prompt_drop=0.1,
      # Rows of the data that the model was trained on, against forgetting.
      old=dict(
        train="",
        share=0.0,
        mixture=dict(caption=0.5, answer=0.0, text_image=0.5, text=0.0),
      ),
    ),
    # The usual rate of adapters, ten times that of whole weights.
    optimizer=optimizer.default_config(
      learning_rate=2e-4, warmup_steps=30, weight_decay=0.0
    ),
  )
  if variant == "tiny":
    config.update(dict(num_steps=100, batch_size=8, loss_chunks=1))
    config.model = llama.VARIANTS["tiny"]
    config.data.update(dict(row_length=192, plan_rows=800, eval_rows=64))
    # At 3e-3 a few hundred pictures are learnt by heart in 120 steps.
    config.optimizer.learning_rate = 5e-4
    common.on_cpu(config, unroll=config.model.num_layers)
  return config
