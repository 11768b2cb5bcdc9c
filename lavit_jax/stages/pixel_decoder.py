"""Stage 1b: a conditional U-Net learns to draw what codes say.

    codes i32[B,P] -> codebook rows -> feature decoder (frozen) -> x_rec f[B,P,D]
    -> (whiten) -> head -> condition, dropped for some pictures
    images -> VAE (frozen) -> latents + noise -> U-Net, given the condition -> noise

The loss is the squared error of the predicted noise (or v). The U-Net and the head
train; their moving average is what is written. Noise, time and dropout of a picture
follow from the step and its record alone.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from einops import rearrange
from jax.sharding import Mesh

from lavit_jax.data import coded, pipeline, skipping
from lavit_jax.diffusion import schedule as schedules
from lavit_jax.generate import pixels
from lavit_jax.inference import pixel_parts, tokenizing
from lavit_jax.models import condition_heads, vae, whitening
from lavit_jax.models.published_config import PUBLISHED
from lavit_jax.stages import warm_start
from lavit_jax.training import base, feed, optimizer, train_state
from lavit_jax.weights import model_directory

SHOWN = 8  # held-out pictures in the grid that evaluation draws


class Modules:
  """The modules of a config, and what belongs to them.

  Attributes:
    unet: the U-Net.
    head: makes its condition.
    autoencoder: a VAE or its stand-in, as it draws: in float32.
    encoder: the same in the compute dtype, for latents to train on.
    autoencoder_name: the part's name.
    schedule: the noise schedule.
  """

  def __init__(self, config: ml_collections.ConfigDict):
    sizes = config.model.to_dict()
    more = dict(dtype=config.dtype, remat=config.remat, unroll=config.unroll)
    self.unet = pixel_parts.make_unet(sizes["unet"], **more)
    self.head = condition_heads.make(sizes["head"], config.dtype)
    pixel_parts.check_fits(self.head, self.unet)
    self.autoencoder_name = "patch_latents" if "patch_latents" in sizes else "vae"
    if self.autoencoder_name not in sizes:
      raise ValueError(
        "config.model has neither vae nor patch_latents; give the sizes of one of them"
      )
    self.autoencoder = pixel_parts.make_autoencoder(
      self.autoencoder_name, sizes[self.autoencoder_name]
    )
    # Rounding shows in pictures but not beside the noise that latents are given, and
    # float32 takes a TPU six passes.
    is_vae = self.autoencoder_name == "vae"
    self.encoder = self.autoencoder.clone(**dict(dtype=config.dtype) if is_vae else {})
    if self.autoencoder.latent_channels != self.unet.channels:
      raise ValueError(
        f"the autoencoder makes {self.autoencoder.latent_channels} latent channels, the"
        f" U-Net takes {self.unet.channels}; set config.model.unet.channels to them"
      )
    self.schedule = schedules.from_config(config.scheduler.to_dict())

  def init(self, patches: int, width: int):
    """key -> boxed variables of what trains."""
    features = jnp.zeros((1, patches, width))
    make_unet = pixel_parts.init_unet(self.unet, patches)

    def init(key):
      first, second = jax.random.split(key)
      made = make_unet(first), self.head.init(second, features)
      names = ("unet", "head")
      return {"params": {n: m["params"] for n, m in zip(names, made)}}

    return init


def chances(key: jax.Array, names: jax.Array, steps: int, shape: tuple[int, ...]):
  """Time int32[B], noise float32[B, ...], VAE noise and dropout draw float32[B].

  Args:
    key: of the step.
    names: uint32[B] name of each record.
    steps: training steps of the schedule.
    shape: of one picture's latents.
  """

  def one(name):
    time, noise, encoder, drop = jax.random.split(jax.random.fold_in(key, name), 4)
    return (
      jax.random.randint(time, (), 0, steps),
      jax.random.normal(noise, shape),
      jax.random.normal(encoder, shape),
      jax.random.uniform(drop),
    )

  return jax.vmap(one)(names)


def features_of(coder: tokenizing.VisualTokenizer, frozen: Any, batch) -> jax.Array:
  """Features float[B, P, D] that the stored codes stand for, whitened."""
  vectors = frozen["codebook"]["embedding"][batch["codes"]]
  variables = {"params": {"feature_decoder": frozen["feature_decoder"]}}
  rebuilt = coder.apply(variables, vectors, batch["length"], method="decode")
  whitened = whitening.whiten(frozen["whitening"], rebuilt)
  return jax.lax.stop_gradient(whitened)


def latents_of(encoder, frozen: Any, images: jax.Array, noise: jax.Array):
  """Latents float32[B, h, w, C] of u8[B, H, W, 3], times the scaling factor."""
  scaled = images.astype(jnp.float32) / 127.5 - 1
  variables = {"params": frozen["autoencoder"]}
  mean, log_variance = encoder.apply(variables, scaled, method="encode")
  sampled = vae.sample(mean, log_variance, noise)
  return jax.lax.stop_gradient(sampled * encoder.scaling_factor)


def make_loss(modules: Modules, coder, drop: float):
  """(params, frozen, batch, key) -> mean squared error float32[B], dropped bool[B]."""
  factor, channels = modules.autoencoder.factor, modules.unet.channels
  steps = modules.schedule.num_train_timesteps

  def loss(params, frozen, batch, key):
    height, width = (side // factor for side in batch["image"].shape[1:3])
    shape = (height, width, channels)
    time, noise, encoder_noise, draw = chances(key, batch["noise_id"], steps, shape)
    clean = latents_of(modules.encoder, frozen, batch["image"], encoder_noise)
    features = features_of(coder, frozen, batch)
    given = pixel_parts.condition_of(modules.head, params["head"], None, features)
    if modules.unet.pooled_dim:
      given = given.replace(time_ids=batch["time_ids"])
    dropped = draw < drop
    free = pixels.unconditional(given, frozen["null"])
    given = pixels.choose(dropped, free, given)
    noisy = schedules.add_noise(modules.schedule, clean, noise, time)
    wanted = schedules.target(modules.schedule, clean, noise, time)
    inputs = (noisy, time, *pixels.unet_inputs(given))
    found = modules.unet.apply({"params": params["unet"]}, *inputs)
    return jnp.square(found - wanted).mean((1, 2, 3)), dropped

  return loss


def make_step(modules: Modules, coder, tx: Any, config: ml_collections.ConfigDict):
  """Builds the train step (state, frozen, batch, key) -> (state, metrics)."""
  per_picture = make_loss(modules, coder, config.condition_drop)

  def step(state, frozen, batch, key):
    micro = base.micro_batches(batch, config.accumulate)
    share = 1 / config.accumulate

    def loss(params, mb):
      errors, dropped = per_picture(params, frozen, mb, key)
      return errors.mean() * share, dropped.mean() * share

    def one(grads, mb):
      (value, dropped), new = jax.value_and_grad(loss, has_aux=True)(state.params, mb)
      return jax.tree.map(jnp.add, grads, new), (value, dropped)

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    grads, (values, dropped) = base.over_micro_batches(one, zeros, micro)
    state, norms = base.apply_gradients(state, grads, tx)
    return state, {"loss": values.sum(), "dropped": dropped.sum()} | norms

  return step


def average_of(state: train_state.TrainState) -> Any:
  """The moving average of the parameters, which is what draws."""
  return state.opt_state[-1].params


def build(config: ml_collections.ConfigDict, mesh: Mesh) -> base.Stage:
  """Assembles the stage on a stage-1 model directory and its sidecars."""
  modules = Modules(config)
  ratios = {name: pixels.check_size(s) for name, s in config.ratios.items()}
  coder = tokenizing.load(config.init_from, mesh, config.dtype, config.unroll)
  frozen, names = _frozen(config, mesh, modules, coder)
  model = coder.model
  init = modules.init(model.num_patches, model.embed_dim)
  tx = optax.chain(
    optimizer.make(config.optimizer, config.num_steps),
    optimizer.averaged(config.ema_decay),
  )
  abstract, shardings, initial = base.born_sharded(init, tx, mesh)
  step = base.jitted(make_step(modules, model, tx, config), shardings)
  checksum = tokenizing.checksum(config.init_from)
  source, held_out = (
    coded.CodedPictures(folder, ratios, checksum)
    for folder in (config.data.train, config.data.eval)
  )
  feed.check_held_out(held_out, config)

  def warm(seed):
    state = initial(seed)
    if warm_start.folder_of(config):
      state = _warm(state, shardings, config, mesh, modules, tx)
    return state

  def batches(position):
    left_out = feed.rows_left_out(config)
    return feed.DeviceFeed(_rows(source, config, mesh, position), mesh, left_out)

  per_picture = jax.jit(make_loss(modules, model, 0.0))
  decoder = _decoder(config, modules, frozen, ratios)

  def evaluate(state):
    params, found, pictures = average_of(state), [], {}
    for batch in _fixed_batches(held_out, config, mesh):
      errors, _ = per_picture(params, frozen, batch, jax.random.key(0))
      found.append({"loss": errors.mean()})
      if not pictures and jax.process_count() == 1:
        shown = _shown(decoder, params, model, frozen, batch)
        pictures["reconstructed"] = shown
    return base.mean_metrics(found), pictures

  def finish(state, folder):
    save(average_of(state), config, modules, folder)

  return base.Stage(
    mesh=mesh,
    abstract=abstract,
    shardings=shardings,
    initial=warm,
    frozen=frozen,
    frozen_names=names | {"codes": checksum},
    step=lambda number: step,
    batches=batches,
    before_step=lambda state, number: state,
    evaluate=evaluate,
    finish=finish,
    records=lambda position: feed.record_ids(
      source, config, position, _order(source, config)
    ),
  )


def _frozen(config, mesh, modules, coder) -> tuple[dict[str, Any], dict[str, str]]:
  """What is read and never trained, and its checksums."""
  own = coder.frozen
  frozen = {
    "codebook": own["codebook"],
    "feature_decoder": own["visual_tokenizer"]["feature_decoder"],
    "whitening": own.get("whitening"),
    "autoencoder": {},
    "null": None,
  }
  names, folder = {}, warm_start.folder_of(config)
  if folder:
    parts = model_directory.read_manifest(folder)["parts"]
    frozen["null"] = pixel_parts.load_null(folder, mesh, "", modules.unet.context_dim)
    names = {
      name: parts[name]["checksum"][:16]
      for name in ("vae", "null_condition")
      if name in parts
    }
  if modules.autoencoder_name == "vae":
    if not folder:
      raise ValueError(
        f"config.warm_start is {config.warm_start!r}, but the VAE comes from there;"
        " give a model directory with the part vae, or train the tiny variant"
      )
    _, _, frozen["autoencoder"] = pixel_parts.load_autoencoder(folder, mesh)
  return frozen, names


def _warm(state, shardings, config, mesh, modules: Modules, tx):
  """Starts from published weights: the U-Net's, and the head's where there is one."""
  folder, loaded = config.warm_start, {}
  make_unet = pixel_parts.init_unet(modules.unet, 1)
  loaded["unet"] = pixel_parts.load_part(folder, mesh, "unet", make_unet)
  if "condition" in model_directory.read_manifest(folder)["parts"]:
    coder = model_directory.part_config(config.init_from, "visual_tokenizer")
    features = jnp.zeros((1, coder["num_patches"], coder["embed_dim"]))
    make_head = lambda key: modules.head.init(key, features)
    loaded["head"] = pixel_parts.load_part(folder, mesh, "condition", make_head)
  params = state.params | loaded
  with jax.set_mesh(mesh):
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(params)
  return state.replace(params=params, opt_state=opt_state)


def _rows(source, config, mesh, position) -> pipeline.RowFeed:
  """The host's rows; with several picture sizes, each batch has one of them."""
  size = config.batch_size
  local = feed.local_rows(mesh, size)
  left_out = feed.rows_left_out(config)
  if len(source.targets) > 1:
    edges = [edge for span in left_out.spans for edge in span]
    if any(edge % size for edge in edges):
      raise ValueError(
        f"batches hold one picture size: expected config.data.skip to leave out whole"
        f" batches of {size} rows, got {config.data.skip!r}; widen it to multiples"
      )
    if position % size:
      raise ValueError(
        f"batches hold one picture size: the position {position} is no multiple of"
        f" batch_size {size}; resume with the batch size of before"
      )
  places = skipping.Order(_order(source, config), left_out)
  return pipeline.RowFeed(
    source,
    size,
    config.data.shuffle_seed,
    local,
    left_out.used(position),
    threads=config.data_threads,
    places=places,
  )


def _order(source, config):
  """The order of the stream; with several picture sizes each batch has one of them."""
  seed = config.data.shuffle_seed
  if len(source.targets) > 1:
    return coded.BatchOrder(source.bucket, config.batch_size, seed)
  return pipeline.order(source, seed)


def _fixed_batches(source, config, mesh):
  """The first held-out batches of each picture size, always the same."""
  size, local = config.batch_size, feed.local_rows(mesh, config.batch_size)
  order = coded.BatchOrder(source.bucket, size, 0)
  for number in range(min(config.eval_batches, order.per_epoch)):
    items = [source[order[number * size + row]] for row in local]
    yield feed.place(pipeline.stack(items), local, size, mesh)


def _decoder(config, modules, frozen, ratios) -> pixel_parts.PixelDecoder:
  """The pixel decoder of this run, without what trains."""
  params = {
    "autoencoder": frozen["autoencoder"],
    "null": frozen["null"],
    "whitening": None,  # `features_of` has whitened already
    "feature_decoder": None,
  }
  parts = (modules.unet, modules.head, modules.autoencoder, params, modules.schedule)
  return pixel_parts.PixelDecoder(
    *parts, ratios, pixels.Settings(**config.sampling.to_dict())
  )


def _shown(decoder, params, coder, frozen, batch) -> np.ndarray:
  """Held-out pictures above their reconstructions: u8[2 H, n W, 3]."""
  features = jax.jit(functools.partial(features_of, coder))(frozen, batch)[:SHOWN]
  images = np.asarray(batch["image"][:SHOWN])
  decoder.params.update(params)
  keys = jax.random.split(jax.random.key(0), len(images))
  drawn = pixel_parts.draw(decoder, features, keys, images.shape[1:3], decoder.settings)
  rows = np.stack([images, np.asarray(drawn)])
  return rearrange(rows, "r n h w c -> (r h) (n w) c")


def save(params: Any, config, modules: Modules, folder: str) -> None:
  """Writes the whole model directory: that of stage 1, and the pixel decoder."""
  part, sizes = model_directory.Part, config.model.to_dict()
  if before := warm_start.folder_of(config):
    # What its file says besides our sizes goes on with the weights.
    before = model_directory.part_config(before, "unet")
    sizes["unet"] |= {k: before[k] for k in (PUBLISHED,) if k in before}
  facts = {
    "head": sizes["head"],
    "scheduler": config.scheduler.to_dict(),
    "ratios": {name: list(size) for name, size in config.ratios.items()},
    "sampling": config.sampling.to_dict(),
  }
  name = modules.autoencoder_name
  parts = {
    "unet": part(params["unet"], sizes["unet"]),
    "condition": part(params["head"], facts),
  }
  if name == "patch_latents":
    parts[name] = part({}, sizes[name])
  else:
    found = model_directory.read_manifest(config.warm_start)["parts"]
    for kept in (name, "null_condition"):
      if kept in found:
        parts[kept] = model_directory.read_part(config.warm_start, kept)
  model_directory.save(folder, parts, base=config.init_from)
