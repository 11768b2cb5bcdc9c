"""Stage 0: a small encoder for the toy world, when no EVA-CLIP weights are given.

  python -m lavit_jax.train --config=configs/contrastive.py:tiny \
      --workdir=runs/contrastive --config.data.train=data/train \
      --config.data.eval=data/test --config.data.text_tokenizer=data/text_tokenizer

Expected: retrieval and patch words near 1.0 on held-out scenes after 380 steps, about
two minutes on two cores. There is no full-size variant: full size starts from EVA-CLIP.
"""

from configs import common
from lavit_jax.models import clip, vit
from lavit_jax.training import optimizer


def get_config(variant: str = "tiny"):
  """The config of a variant: "tiny"."""
  common.check(variant, ("tiny",))
  config = common.base(
    "contrastive",
    num_steps=380,
    batch_size=64,
    model=dict(vit=vit.VARIANTS["tiny"], text=clip.TEXT_VARIANTS["tiny"]),
    # Model directory whose vision encoder to start from, or "random".
    warm_start="random",
    # Classes of each patch-word head, the last one background where it is a word.
    words=dict(
      color=dict(classes=9, background_weight=0.2),
      shape=dict(classes=6, background_weight=1.0),
    ),
    word_weight=1.0,
    # Pictures of the mixture behind the whitening buffer.
    whitening_pictures=3000,
    # data.skip: rows of the stream to leave out, FIRST:LAST,... (docs/training.md).
    data=dict(train="", eval="", text_tokenizer="", shuffle_seed=0, skip=""),
    optimizer=optimizer.default_config(
      learning_rate=1e-3, warmup_steps=100, beta2=0.98, weight_decay=0.05
    ),
  )
  common.on_cpu(config, unroll=config.model.vit.num_layers)
  return config
