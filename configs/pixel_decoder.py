"""Stage 1b: a conditional U-Net learns to draw what codes say.

  python -m lavit_jax.train --config=configs/pixel_decoder.py:tiny \
      --workdir=runs/pixel_decoder --config.init_from=runs/visual_tokenizer/model \
      --config.data.train=data/train --config.data.eval=data/test

Each data folder holds prepared shards and, below `codes`, the sidecar of `tokenize`.
Variants: "tiny" (CPU, minutes), "sd15" (512 px, Stable Diffusion 1.5) and "sdxl"
(1024 px in six aspect ratios). The full-size ones start from published weights:
--config.warm_start names a model directory that holds the parts unet and vae.
"""

from configs import common
from lavit_jax.diffusion import schedule
from lavit_jax.generate import pixels
from lavit_jax.models import patch_latents, unet, vae
from lavit_jax.training import optimizer


def get_config(variant: str = "sd15"):
  """The config of a variant: "tiny", "sd15" or "sdxl"."""
  common.check(variant, ("tiny", "sd15", "sdxl"))
  config = common.base(
    "pixel_decoder",
    # Model directory with the visual tokenizer that made the codes.
    init_from="",
    # Model directory with the parts unet and vae (and null_condition for SD 1.5), e.g.
    # a converted Stable Diffusion folder. "random", as in the tiny variant, must be
    # asked for by name.
    warm_start="random" if variant == "tiny" else "",
    num_steps=20_000,  # as the paper, from Stable Diffusion 1.5
    batch_size=2048,  # not published; that of the paper's stage 1
    # Eight pictures at a time per chip, or more: with fewer the compiler for TPUs pads
    # small convolutions to 1.6 times their products. Here that is 32 chips.
    accumulate=8,
    model=dict(
      unet=unet.VARIANTS[variant],
      vae=vae.VARIANTS["sdxl" if variant == "sdxl" else "sd15"],
      # Widths of the two projections and of the pooled vector, see condition_heads.py.
      head=dict(condition_dim=768),
    ),
    # Pictures whose condition is dropped, for guidance; not published, the usual value.
    condition_drop=0.1,
    ema_decay=0.9999,
    scheduler=schedule.STABLE_DIFFUSION,
    # Height and width by aspect ratio; a picture goes to the nearest.
    ratios={"1:1": (512, 512)},
    # How pictures are sampled when nothing else is asked for.
    sampling=dict(steps=25, guidance=7.0, solver="ddim"),
    # data.skip: rows of the stream to leave out, FIRST:LAST,... (docs/training.md).
    data=dict(train="", eval="", shuffle_seed=3, skip=""),
    # Not published; Video-LaVIT's detokenizer (same group) used 5e-5 and 1e-3.
    optimizer=optimizer.default_config(
      learning_rate=5e-5, warmup_steps=1000, beta2=0.99, weight_decay=0.001
    ),
  )
  if variant == "sdxl":
    config.model.head = dict(
      first_dim=768, second_dim=1280, pooled_dim=1280, num_heads=16, head_dim=88
    )
    config.update(dict(ratios=pixels.RATIOS, accumulate=32))
  if variant == "tiny":
    own = config.model.unet
    config.model.head = dict(
      condition_dim=own.context_dim, hidden_dim=512, grid_dim=own.grid_dim
    )
    # A fixed transform stands for the VAE, see models/patch_latents.py.
    del config.model.vae
    config.model.patch_latents = patch_latents.VARIANTS["tiny"]
    config.update(dict(num_steps=2400, batch_size=16, accumulate=1, ema_decay=0.99))
    config.ratios = {"1:1": (64, 64)}
    config.sampling.update(dict(steps=10, guidance=3.0, solver="dpm"))
    # At high noise, where the condition decides, epsilon gives it next to no weight.
    config.scheduler.prediction_type = "v_prediction"
    config.scheduler.timestep_spacing = "trailing"  # starts where training ends
    config.optimizer = optimizer.default_config(
      name="muon",
      learning_rate=4e-3,
      groups=dict(head=0.25),  # its kernel keeps Adam, for which that rate is high
      warmup_steps=20,
      schedule="linear",
      flat_fraction=0.5,
      beta2=0.98,
      eps=1e-8,
      weight_decay=0.01,
    )
    common.on_cpu(config, unroll=1)
  return config
