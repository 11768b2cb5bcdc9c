"""Stage 2: LLaMA learns the next token of text and images alike.

  python -m lavit_jax.train --config=configs/pretrain.py:tiny --workdir=runs/pretrain \
      --config.init_from=runs/visual_tokenizer/model --config.data.train=data/train \
      --config.data.eval=data/test --config.data.text_tokenizer=data/text_tokenizer

Each data folder holds prepared shards and, below `codes`, the sidecar of `tokenize`.
Variants: "tiny" (CPU, minutes) and "7b" (paper scale: rows of 2048, batch 2048 rows).
"""

from configs import common
from lavit_jax.generate import decoding
from lavit_jax.models import llama
from lavit_jax.training import optimizer


def get_config(variant: str = "tiny"):
  """The config of a variant: "tiny" or "7b"."""
  common.check(variant, ("tiny", "7b"))
  config = common.base(
    "pretrain",
    # Model directory with the parts vit, visual_tokenizer and codebook.
    init_from="",
    # Model directory whose LLaMA (plain, or over the joint vocabulary) to start from,
    # with merger and vit_proj if it has them. "random" must be asked for by name.
    warm_start="random" if variant == "tiny" else "",
    num_steps=20_000,
    batch_size=2048,
    # One row per chip of a 64-chip slice at a time: scores of 2048 x 2048 are large.
    accumulate=32,
    model=llama.VARIANTS["7b"],
    # How the finished model writes and draws when nothing else is asked for; the model
    # directory carries it.
    decoding=decoding.VARIANTS[variant],
    # Pieces of the vocabulary in the loss: the logits never exist at once.
    loss_chunks=8,
    # Weight of the squared log-normalizer of the softmax; 0, as in the paper, is none.
    z_loss=0.0,
    # Weight of a token's loss by what it is; the paper weighs every position alike.
    kind_weights=dict(
      text=1.0, codes_after_text=1.0, codes_of_image=1.0, text_after_image=1.0
    ),
    data=dict(
      train="",
      eval="",
      text_tokenizer="",
      shuffle_seed=2,
      # Rows of the stream to leave out, FIRST:LAST,... (docs/training.md).
      skip="",
      row_length=2048,
      # Image slots per row; 0 lets the mixture decide.
      images_per_row=0,
      # Rows to plan before they repeat; 0 plans until the source that lasts longest has
      # shown each of its documents plan_epochs times.
      plan_rows=0,
      plan_epochs=1.0,
      # Pairs of picture and text longer than a row: "refuse" or "skip". Texts are cut.
      long_pairs="refuse",
      eval_rows=4096,
      # Share of each kind of document in tokens; text to vision-language is 2 : 1, and
      # captions of 119 tokens (94 of them visual) fill three image slots per row.
      mixture=dict(caption=0.175, answer=0.0, text_image=0.155, text=0.67),
      # Drawings whose text is dropped: the unconditional stream of guidance.
      prompt_drop=0.1,
    ),
    # Author's words (repository thread 20): 1e-5 level for the LLM and vocabulary,
    # 1e-4 level for the visual part.
    optimizer=optimizer.default_config(
      learning_rate=1.5e-4, warmup_steps=2000, groups=dict(llama=1 / 3)
    ),
  )
  if variant == "tiny":
    config.update(dict(num_steps=1230, batch_size=8, accumulate=1, loss_chunks=1))
    config.model = llama.VARIANTS["tiny"]
    config.data.update(dict(row_length=192, plan_rows=10_240, eval_rows=128))
    config.data.mixture = dict(caption=0.19, answer=0.50, text_image=0.28, text=0.03)
    # Which patches are kept is noise, so their codes are many hard targets without
    # information on the picture; at full weight they crowd out the answers.
    config.kind_weights.codes_of_image = 0.2
    config.optimizer = optimizer.default_config(
      name="muon",
      learning_rate=3e-3,
      warmup_steps=50,
      beta2=0.98,
      weight_decay=0.05,
      groups=dict(merger=0.3),
    )
    common.on_cpu(config, unroll=config.model.num_layers)
  return config
