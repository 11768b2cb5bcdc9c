"""Stage 0: a small vision encoder and text tower, when no EVA-CLIP weights are given.

    images, captions -> Clip -> CLIP loss + patch words; then one whitening buffer

The model directory it writes has the parts "vit" (frozen from here on), "clip" (text
tower and word heads, the re-ranker and the reader of reconstructed patches) and
"whitening".
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import Mesh

from lavit_jax.core import losses, sharding
from lavit_jax.data import items, pipeline, records, text
from lavit_jax.models import clip, vit, whitening
from lavit_jax.stages import warm_start
from lavit_jax.training import base, feed, optimizer
from lavit_jax.weights import model_directory


def make_model(config: ml_collections.ConfigDict, text_size: int) -> clip.Clip:
  """Builds the contrastive model of a config."""
  tower = vit.VisionTransformer(
    **config.model.vit, dtype=config.dtype, remat=config.remat, unroll=config.unroll
  )
  words = clip.TextTower(
    vocab_size=text_size,
    **config.model.text,
    output_dim=config.model.vit.clip_dim,
    dtype=config.dtype,
    unroll=config.unroll,
  )
  counts = {kind: entry.classes for kind, entry in config.words.items()}
  return clip.Clip(tower, words, counts, config.dtype)


def make_step(model: clip.Clip, tx: Any, words: dict[str, float], word_weight: float):
  """Builds the pure train step.

  Args:
    model: the contrastive model.
    tx: the optimizer.
    words: weight of background patches by word kind.
    word_weight: weight of the patch-word loss.

  Returns:
    (state, frozen, batch, key) -> (state, metrics).
  """

  def loss_fn(params, batch):
    images = vit.normalize(batch["image"])
    out = model.apply({"params": params}, images, batch["tokens"], batch["length"])
    tokens = batch["tokens"]
    same = (tokens[:, None] == tokens[None]).all(-1)
    clip_loss = losses.contrastive(out.image, out.text, out.scale, same)
    word_losses = {
      kind: losses.words(out.words[kind], batch[kind].astype(jnp.int32), weight)
      for kind, weight in words.items()
    }
    best = (out.image @ out.text.T).argmax(1)
    hits = jnp.take_along_axis(same, best[:, None], 1).mean()
    metrics = {"clip_loss": clip_loss, "retrieval_at_1": hits}
    metrics |= {f"word_loss_{kind}": loss for kind, loss in word_losses.items()}
    return clip_loss + word_weight * sum(word_losses.values()), metrics

  def step(state, frozen, batch, key):
    del frozen, key
    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      state.params, batch
    )
    state, norms = base.apply_gradients(state, grads, tx)
    return state, {"loss": loss} | metrics | norms

  return step


def assemble(
  config: ml_collections.ConfigDict, mesh: Mesh, text_size: int
) -> base.Assembled:
  """Makes model, state and step: one micro-batch, as the loss compares a whole batch.

  Args:
    config: stage config.
    mesh: the mesh.
    text_size: ids of the text tokenizer.
  """
  if config.accumulate != 1:
    raise ValueError(
      f"stage 0 compares a whole batch at once: expected accumulate 1, got"
      f" {config.accumulate}"
    )
  model, sizes = make_model(config, text_size), config.model
  size, length = sizes.vit.image_size, sizes.text.max_length

  def init(key):
    image = jnp.zeros((1, size, size, 3))
    return model.init(key, image, jnp.zeros((1, length), int), jnp.ones(1, int))

  sharding.check_divides(
    mesh,
    vit_heads=(sizes.vit.num_heads, ("tensor",)),
    text_heads=(sizes.text.num_heads, ("tensor",)),
  )
  tx = optimizer.make(config.optimizer, config.num_steps)
  abstract, shardings, initial = base.born_sharded(init, tx, mesh)
  weights = {kind: entry.background_weight for kind, entry in config.words.items()}
  step = base.jitted(make_step(model, tx, weights, config.word_weight), shardings)
  figures = base.evaluation(functools.partial(_figures, model))
  return base.Assembled(
    model, abstract, shardings, initial, lambda number: step, lambda number: figures
  )


def build(config: ml_collections.ConfigDict, mesh: Mesh) -> base.Stage:
  """Assembles the stage on prepared shards."""
  tokenizer = text.load_text_tokenizer(config.data.text_tokenizer)
  made = assemble(config, mesh, tokenizer.text_size)
  model, shardings = made.model, made.shardings
  size, length = config.model.vit.image_size, config.model.text.max_length
  num_patches = (size // config.model.vit.patch_size) ** 2
  weights = dict(config.words)
  item = items.captioned(tokenizer, size, length, num_patches, list(weights))
  source, held_out = (
    pipeline.Map(pipeline.Pictures(records.Records(folder)), item)
    for folder in (config.data.train, config.data.eval)
  )
  feed.check_held_out(held_out, config)

  def batches(position):
    return feed.device_batches(source, config, mesh, position)

  def warm(seed):
    state = made.initial(seed)
    if warm_start.folder_of(config):
      state = warm_start.encoder(state, shardings, config)
    return state

  def evaluate(state):
    batches = feed.fixed_batches(held_out, config, mesh)
    found = [made.figures(0)(state, None, batch) for batch in batches]
    return base.mean_metrics(found), {}

  def finish(state, folder):
    fitted = _fit_whitening(model, state.params, batches(0), config)
    _save(state.params, fitted, config, tokenizer, folder)

  return base.Stage(
    mesh=mesh,
    abstract=made.abstract,
    shardings=shardings,
    initial=warm,
    frozen=None,
    frozen_checksums={},
    step=made.step,
    batches=batches,
    before_step=lambda state, number: state,
    evaluate=evaluate,
    finish=finish,
    contents={"images": 1},
    records=lambda position: feed.record_ids(source, config, position),
  )


def _figures(model, state, frozen, batch) -> dict[str, jax.Array]:
  """Accuracy of retrieval and of each patch word on object patches."""
  del frozen
  images, variables = vit.normalize(batch["image"]), {"params": state.params}
  out = model.apply(variables, images, batch["tokens"], batch["length"])
  same = (batch["tokens"][:, None] == batch["tokens"][None]).all(-1)
  best = (out.image @ out.text.T).argmax(1)
  figures = {"retrieval_at_1": jnp.take_along_axis(same, best[:, None], 1).mean()}
  objects = batch["shape"] < out.words["shape"].shape[-1]
  for kind, logits in out.words.items():
    right = (logits.argmax(-1) == batch[kind]) & objects
    figures[f"word_accuracy_{kind}"] = right.sum() / jnp.maximum(objects.sum(), 1)
  return figures


def _fit_whitening(model, params, batches, config):
  """Whitens what selector and merger will see, from pictures of the mixture."""
  tower = model.vit

  @jax.jit
  def features(params, images):
    return tower.apply({"params": params}, vit.normalize(images))[:, 1:]

  count = -(-config.whitening_pictures // config.batch_size)
  found = [
    sharding.to_host(features(params["vit"], batch["image"]))
    for batch in feed.first_batches(batches, count)
  ]
  return whitening.fit_whitening(np.concatenate(found).reshape(-1, found[0].shape[-1]))


def _save(params, fitted, config, tokenizer, folder) -> None:
  rest = {name: tree for name, tree in params.items() if name != "vit"}
  words = {kind: entry.to_dict() for kind, entry in config.words.items()}
  text_config = config.model.text.to_dict() | {"vocab_size": tokenizer.text_size}
  vit_config = config.model.vit.to_dict()
  dim = {"embed_dim": vit_config["embed_dim"]}
  model_directory.save(
    folder,
    {
      "vit": model_directory.Part(params["vit"], vit_config),
      "clip": model_directory.Part(rest, {"text": text_config, "words": words}),
      "whitening": model_directory.Part(
        {"mean": fitted.mean, "matrix": fitted.matrix}, dim
      ),
    },
    text_tokenizer=config.data.text_tokenizer,
  )
