"""Visual codes to pictures: a diffusers pipeline around one component of our own."""

import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from torch.nn import functional as F


class LavitPixelPipeline(DiffusionPipeline):
  """Feature decoder, U-Net, VAE and scheduler; safety checking as diffusers has it."""

  model_cpu_offload_seq = "feature_decoder->unet->vae"
  _optional_components = ["vae", "safety_checker", "feature_extractor"]

  def __init__(
    self,
    feature_decoder,
    unet,
    scheduler,
    vae=None,
    safety_checker=None,
    feature_extractor=None,
  ):
    super().__init__()
    self.register_modules(
      feature_decoder=feature_decoder,
      unet=unet,
      scheduler=scheduler,
      vae=vae,
      safety_checker=safety_checker,
      feature_extractor=feature_extractor,
    )
    self.image_processor = VaeImageProcessor()

  @torch.no_grad()
  def __call__(
    self,
    codes=None,
    features=None,
    height=None,
    width=None,
    num_inference_steps=None,
    guidance_scale=None,
    generator=None,
    latents=None,
    output_type="pil",
  ):
    """Pictures of lists of codes int[T], or of features float[B, P, D].

    Sizes, steps and guidance are the model's own when None; latents are standard
    normal noise [B, C, h, w].
    """
    own, device = self.feature_decoder.config, self._execution_device
    if features is None:
      features = self.feature_decoder(codes)
    usual = own.ratios["1:1"]
    size = (height or usual[0], width or usual[1])
    scale = own.guidance if guidance_scale is None else guidance_scale
    context, more = self.feature_decoder.condition(features)
    if scale != 1:
      context, more = self._with_null(context, more)
    factor = 2 ** (len(self.vae.config.block_out_channels) - 1) if self.vae else 0
    factor = factor or own.patch_latents[1]
    shape = (len(features), self.unet.config.out_channels, *(s // factor for s in size))
    if latents is None:
      where = generator.device if generator is not None else "cpu"
      latents = torch.randn(shape, generator=generator, device=where)
    latents = latents.to(device) * self.scheduler.init_noise_sigma
    given = self._unet_inputs(more, size, len(context))
    self.scheduler.set_timesteps(num_inference_steps or own.steps, device=device)
    for step in self.progress_bar(self.scheduler.timesteps):
      inputs = torch.cat([latents] * (2 if scale != 1 else 1))
      inputs = self.scheduler.scale_model_input(inputs, step)
      if "grid" in more:
        grid = F.interpolate(more["grid"], inputs.shape[2:], mode="bilinear")
        inputs = torch.cat([inputs.to(grid.dtype), grid], 1)
      out = self.unet(inputs.to(context.dtype), step, context, **given).sample.float()
      if scale != 1:
        bare, full = out.chunk(2)
        out = bare + scale * (full - bare)
      latents = self.scheduler.step(out, step, latents).prev_sample
    return self._finish(self.decode(latents), output_type)

  def _with_null(self, context, more):
    """[unconditional, conditional] rows: an empty text, else zeros."""
    empty = torch.zeros_like(context)
    if hasattr(self.feature_decoder, "null_embedding"):
      row = self.feature_decoder.null_embedding.to(context.dtype)
      empty[:, : len(row)] = row
      mask = torch.ones(context.shape[:2], dtype=torch.bool, device=context.device)
      bare = torch.arange(context.shape[1], device=context.device) < len(row)
      more = more | {"mask": torch.cat([bare.expand_as(mask), mask])}
    both = lambda x: torch.cat([torch.zeros_like(x), x])
    twice = {k: v if k == "mask" else both(v) for k, v in more.items()}
    return torch.cat([empty, context]), twice

  def _unet_inputs(self, more, size, count):
    given = {"encoder_attention_mask": more.get("mask")}
    if "pooled" in more:
      ids = torch.tensor([[*size, 0, 0, *size]], device=more["pooled"].device)
      ids = ids.to(more["pooled"].dtype).expand(count, -1)
      given["added_cond_kwargs"] = {"text_embeds": more["pooled"], "time_ids": ids}
    return given

  def decode(self, latents):
    """Pictures float32[B, 3, H, W] in [-1, 1] of latents, times the VAE's scale."""
    if self.vae is None:
      kernel = self.feature_decoder.patch_kernel.float()
      return F.conv_transpose2d(latents, kernel, stride=kernel.shape[-1])
    if self.vae.dtype == torch.float16 and self.vae.config.force_upcast:
      self.vae.to(torch.float32)  # in float16 it would draw black
    scaled = latents / self.vae.config.scaling_factor
    return self.vae.decode(scaled.to(self.vae.dtype)).sample.float()

  def _finish(self, pictures, output_type):
    pictures = (pictures / 2 + 0.5).clamp(0, 1)
    done = [False] * len(pictures)  # no second move from [-1, 1]
    if self.safety_checker is not None:
      shown = self.image_processor.postprocess(pictures, "pil", done)
      seen = self.feature_extractor(shown, return_tensors="pt").to(pictures.device)
      array = pictures.permute(0, 2, 3, 1).cpu().numpy()
      array, _ = self.safety_checker(images=array, clip_input=seen.pixel_values)
      pictures = torch.from_numpy(array).permute(0, 3, 1, 2)
    return self.image_processor.postprocess(pictures, output_type, done)
