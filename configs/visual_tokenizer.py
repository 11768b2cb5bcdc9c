"""Stage 1: selector, merger, codebook and feature decoder over a frozen encoder.

  python -m lavit_jax.train --config=configs/visual_tokenizer.py:tiny \
      --workdir=runs/visual_tokenizer --config.init_from=runs/contrastive/model \
      --config.data.train=data/train --config.data.eval=data/test

Variants: "tiny" (CPU, minutes) and "7b", the paper's scale: batch 2048, 50k steps
(arXiv 2309.04669, section 3.1), on EVA-CLIP ViT-g/14.
"""

from configs import common
from lavit_jax.models import visual_tokenizer
from lavit_jax.training import optimizer


def get_config(variant: str = "tiny"):
  """The config of a variant: "tiny" or "7b"."""
  common.check(variant, ("tiny", "7b"))
  config = common.base(
    "visual_tokenizer",
    # Model directory with the parts vit and, for the toy world, whitening.
    init_from="",
    # Model directory whose visual tokenizer and codebook to start from, or "random", as
    # in the paper. With phase_a_steps=0 the codebook stays as it comes.
    warm_start="random",
    num_steps=50_000,
    # Steps without lookup; they train selector and merger. Then the selector is frozen
    # and codes arrive.
    phase_a_steps=20_000,
    batch_size=2048,
    model=visual_tokenizer.VARIANTS["lavit"],
    keep_share=1 / 3,  # rho of the paper
    rate_weight=2.0,  # lambda of the paper
    # Weight of the comparison of two masks of a picture, in phase a. The paper has the
    # straight-through gradient alone, which is 0 here; that gradient fades once
    # reconstructions are good (stages/reconstruction.py).
    mask_comparison=1.0,
    commitment_weight=0.25,  # not published; the usual value of VQ-VAE
    ema_decay=0.99,  # not published; BEiT-v2's value
    revive_below=0.1,  # codes used less per step take a current vector
    kmeans_per_code=64,
    kmeans_iterations=10,
    # data.skip: rows of the stream to leave out, FIRST:LAST,... (docs/training.md).
    data=dict(train="", eval="", shuffle_seed=1, skip=""),
    # Not published; Video-LaVIT's tokenizer (same group) used 1e-4, (0.9, 0.99), 1e-3.
    optimizer=optimizer.default_config(
      learning_rate=1e-4, warmup_steps=5000, beta2=0.99, weight_decay=0.001
    ),
  )
  if variant == "tiny":
    tiny = dict(
      num_steps=1000,
      phase_a_steps=600,
      batch_size=32,
      keep_share=0.25,  # objects cover 17 % of this world's patches
      rate_weight=5.0,  # 2 lets the share drift over so few steps
      ema_decay=0.97,
      kmeans_per_code=24,
    )
    config.update(tiny)
    config.model = visual_tokenizer.VARIANTS["tiny"]
    config.optimizer = optimizer.default_config(
      name="muon",  # at as many steps a third of AdamW's loss is left
      learning_rate=3e-3,
      groups=dict(selector=0.5),
      warmup_steps=50,
      schedule="linear",
      flat_fraction=0.6,
      beta2=0.98,
      eps=1e-8,
      weight_decay=0.01,
    )
    common.on_cpu(config, unroll=config.model.num_layers)
  return config
