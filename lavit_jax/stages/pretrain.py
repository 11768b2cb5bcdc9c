"""Stage 2: the language model learns text and visual codes in one stream.

    packed row -> images u8[B,M,H,W,3] -> ViT (frozen) -> whiten -> LaVIT -> hidden
    -> next-token loss over the joint vocabulary, in vocabulary chunks

Codes and keep masks are data (the sidecar of `tokenize`); no selector, stage-1 merger
or codebook is loaded.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from lavit_jax.core import losses, sequence, sharding
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.data import text
from lavit_jax.generate import decoding
from lavit_jax.inference import frozen_parts, tokenizing
from lavit_jax.models import lavit, vit
from lavit_jax.stages import warm_start
from lavit_jax.training import base, feed, optimizer, train_state
from lavit_jax.weights import model_directory

# Names of `target_kind` (data/rows.py), 0 being unsupervised.
KINDS = ("text", "codes_after_text", "codes_of_image", "text_after_image")


def make_model(
  config: ml_collections.ConfigDict, words: Vocabulary, tokenizer: dict[str, Any]
) -> lavit.LaVIT:
  """Builds the trainable model.

  Args:
    config: stage config; gives the language model's sizes.
    words: the joint vocabulary.
    tokenizer: sizes of the visual tokenizer, whose merger is copied.
  """
  return lavit.build(
    config.model, tokenizer, words, config.dtype, config.remat, config.unroll
  )


def even_slots(images: jax.Array, keep: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Adds empty slots until the devices that share rows encode equally many pictures.

  Three pictures over two devices would take turns with those of the next row, and
  features would cross from one device's rows to another's. No device gets more to do:
  one of the two had two pictures anyway.

  Args:
    images: uint8[B, M, H, W, 3].
    keep: bool[B, M, P].

  Returns:
    The same with as many slots as `sequence` divides.
  """
  rows = max(images.shape[0] // sharding.axis_size("act_batch"), 1)
  sharing = sharding.axis_size("act_images") // sharding.axis_size("act_batch")
  missing = -images.shape[1] % (sharing // math.gcd(rows, sharing))
  add = lambda x: jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))
  return add(images), add(keep)


def token_loss(model, tower, params, frozen, batch, words: Vocabulary, chunks: int):
  """Losses of packed rows, not yet divided: see `losses.next_token`."""
  images, keep = even_slots(batch["images"], batch["keep"])
  features = frozen_parts.merger_inputs(tower, frozen, images)
  hidden = model.apply(
    {"params": params},
    batch["tokens"],
    batch["segment_ids"],
    batch["positions"],
    batch["feature_index"],
    features,
    keep,
  )
  return losses.next_token(
    hidden,
    params["llama"]["head"]["kernel"],
    sequence.next_tokens(batch["tokens"]),
    batch["loss_mask"],
    words.size,
    chunks,
    words.holes,
  )


def all_train(params: Any, frozen: Any) -> Any:
  """The parameters of a model of which nothing is frozen."""
  del frozen
  return params


def make_step(
  model,
  tower,
  tx: Any,
  words: Vocabulary,
  accumulate: int,
  chunks: int,
  kind_weights: Sequence[float] = (1.0,) * len(KINDS),
  z_loss: float = 0.0,
  whole: Callable[[Any, Any], Any] = all_train,
):
  """Builds the pure train step (state, frozen, batch, key) -> (state, metrics).

  Token losses and their weights are summed over devices and micro-batches and divided
  once. `whole` makes the model's parameters of those that train and the frozen ones.
  `z_loss` is the weight of the mean squared logarithm of the softmax's sum, which keeps
  logits from drifting; `loss` in the metrics is without it.
  """

  def weights_of(batch):
    table = jnp.array((0.0, *kind_weights))
    return table[batch["target_kind"]] * batch["loss_mask"]

  def step(state, frozen, batch, key):
    del key
    weight = jnp.maximum(weights_of(batch).sum(), 1.0)
    count = jnp.maximum(batch["loss_mask"].sum(dtype=jnp.float32), 1.0)

    def loss_fn(params, mb):
      own = whole(params, frozen)
      found = token_loss(model, tower, own, frozen, mb, words, chunks)
      loss = (found.losses * weights_of(mb)).sum() / weight
      sums = kind_losses(found, mb["target_kind"])
      sums["normalizer_sum"] = found.normalizer.sum()
      objective = loss
      if z_loss:
        objective += z_loss * jnp.square(found.normalizer).sum() / count
      return objective, (loss, sums)

    micro = base.micro_batches(batch, accumulate)
    grads, (_, (loss, sums)) = base.accumulated_gradients(loss_fn, state.params, micro)
    sums = jax.tree.map(lambda x: x.sum(0), sums)
    state, norms = base.apply_gradients(state, grads, tx)
    metrics = {"loss": loss.sum()} | _summary(sums, batch)
    return state, metrics | norms

  return step


def _summary(sums: dict[str, jax.Array], batch: Any) -> dict[str, jax.Array]:
  """Metrics of a batch: of all targets, of each kind of them, and of its pictures."""
  count = jnp.maximum(batch["loss_mask"].sum(dtype=jnp.float32), 1.0)
  correct = sum(sums[f"{name}_correct"] for name in KINDS)
  metrics = {
    "accuracy": correct / count,
    "log_normalizer": sums["normalizer_sum"] / count,
    "fill": (batch["segment_ids"] > 0).mean(dtype=jnp.float32),
  }
  metrics |= means_by_kind(sums)
  metrics |= {f"share_{name}": sums[f"{name}_count"] / count for name in KINDS}
  kept = batch["keep"].sum(-1, dtype=jnp.int32)  # [B, M]
  patches, shown = batch["keep"].shape[-1], kept > 0
  if kept.shape[1]:
    metrics["kept_share"] = kept.sum() / jnp.maximum(shown.sum() * patches, 1)
    found = sequence.percentiles(kept, patches, shown)
    metrics |= {f"kept_{name}": value for name, value in found.items()}
  return metrics


def step_of(config, model, tower, tx, words: Vocabulary, **changes):
  """`make_step` with the settings of a config."""
  weights = [config.kind_weights[name] for name in KINDS]
  split = (config.accumulate, config.loss_chunks)
  more = {"kind_weights": weights, "z_loss": config.z_loss} | changes
  return make_step(model, tower, tx, words, *split, **more)


def kind_losses(found: losses.TokenLoss, kinds: jax.Array) -> dict[str, jax.Array]:
  """Sums and counts of the loss by kind of target: float32[] each."""
  figures = {}
  for kind, name in enumerate(KINDS, start=1):
    chosen = kinds == kind
    figures[f"{name}_sum"] = (found.losses * chosen).sum()
    figures[f"{name}_correct"] = (found.correct * chosen).sum()
    figures[f"{name}_count"] = chosen.sum(dtype=jnp.float32)
  return figures


def means_by_kind(sums: dict[str, Any]) -> dict[str, Any]:
  """Loss and accuracy by kind of target, of sums as `kind_losses` gives them."""
  figures = {}
  for name in KINDS:
    count = jnp.maximum(sums[f"{name}_count"], 1.0)
    figures[f"loss_{name}"] = sums[f"{name}_sum"] / count
    figures[f"accuracy_{name}"] = sums[f"{name}_correct"] / count
  return figures


def check_mesh(
  config: ml_collections.ConfigDict,
  mesh: Mesh,
  tower: vit.VisionTransformer,
  sizes: dict[str, Any],
) -> None:
  """Refuses a mesh that does not divide the model; arguments as `assemble`."""
  sharding.check_divides(
    mesh,
    vit_heads=(tower.num_heads, ("tensor",)),
    merger_heads=(sizes["num_heads"], ("tensor",)),
    num_heads=(config.model.num_heads, ("tensor",)),
    num_kv_heads=(config.model.num_kv_heads, ("tensor",)),
    row_length=(config.data.row_length, ("sequence",)),
    embed_dim=(config.model.embed_dim, ("fsdp",)),
  )


def assemble(
  config: ml_collections.ConfigDict,
  mesh: Mesh,
  tower: vit.VisionTransformer,
  sizes: dict[str, Any],
  words: Vocabulary,
) -> base.Assembled:
  """Makes model, state and step.

  Args:
    config: stage config.
    mesh: the mesh.
    tower: the frozen encoder.
    sizes: sizes of the visual tokenizer.
    words: the joint vocabulary.
  """
  check_mesh(config, mesh, tower, sizes)
  model = make_model(config, words, sizes)
  init = lavit.init_function(model, sizes["num_patches"])
  tx = optimizer.make(config.optimizer, config.num_steps)
  abstract, shardings, initial = base.born_sharded(init, tx, mesh)
  step = base.jitted(step_of(config, model, tower, tx, words), shardings)
  figures = evaluation(config, model, tower, words)
  return base.Assembled(
    model, abstract, shardings, initial, lambda number: step, lambda number: figures
  )


def build(config: ml_collections.ConfigDict, mesh: Mesh) -> base.Stage:
  """Assembles the stage on a stage-1 model directory and a pack plan."""
  tokenizer = text.load_text_tokenizer(config.data.text_tokenizer)
  sizes = model_directory.part_config(config.init_from, "visual_tokenizer")
  folder = warm_start.folder_of(config)
  words = warm_start.vocabulary(folder, tokenizer, sizes["num_codes"])
  decoding.check(config.decoding.to_dict(), words, sizes["num_patches"])
  tower, frozen, names = frozen_parts.encoder(
    config.init_from, mesh, config.dtype, config.unroll
  )
  made = assemble(config, mesh, tower, sizes, words)
  abstract, shardings = made.abstract, made.shardings

  checksum = tokenizing.checksum(config.init_from)
  data = config.data
  rows, held_out = (
    feed.packed_rows(
      folder, config, words, tokenizer, tower.image_size, checksum, size, drop
    )
    for folder, size, drop in (
      (data.train, data.plan_rows, data.prompt_drop),
      (data.eval, data.eval_rows, 0.0),
    )
  )
  feed.check_held_out(held_out, config)

  def warm(seed):
    """Starts the merger as a copy of the stage-1 one, and the rest where asked for."""
    state = made.initial(seed)
    old = _stage1_merger(config.init_from, abstract, shardings)
    state = state.replace(params=state.params | {"merger": old})
    if warm_start.folder_of(config):
      state = warm_start.language(state, shardings, config, words)
    return state

  def batches(position):
    return feed.device_batches(rows, config, mesh, position)

  def finish(state, folder):
    save(state.params, config, words, folder)

  return base.Stage(
    mesh=mesh,
    abstract=abstract,
    shardings=shardings,
    initial=warm,
    frozen=frozen,
    frozen_checksums=names | {"codes": checksum},
    step=made.step,
    batches=batches,
    before_step=lambda state, number: state,
    evaluate=evaluator(config, mesh, made, frozen, held_out),
    finish=finish,
    contents={"tokens": data.row_length, "images": rows.plan.images_per_row},
    records=lambda position: feed.record_ids(rows, config, position),
  )


def evaluation(config, model, tower, words: Vocabulary, whole=all_train):
  """(state, frozen, batch) -> sums of `kind_losses`; arguments as `make_step`."""

  @base.evaluation
  def sums(state, frozen, batch):
    parameters = whole(state.params, frozen)

    def one(mb):
      found = token_loss(
        model, tower, parameters, frozen, mb, words, config.loss_chunks
      )
      return kind_losses(found, mb["target_kind"])

    found = base.in_micro_batches(one, batch, config.accumulate)
    return jax.tree.map(lambda x: x.sum(), found)

  return sums


def evaluator(config, mesh: Mesh, made: base.Assembled, frozen, held_out):
  """Makes the evaluation of a `base.Stage`: losses of held-out rows by kind of target.

  Args:
    config: stage config.
    mesh: the mesh.
    made: the assembled stage.
    frozen: frozen parameters.
    held_out: `data.rows.Rows` to evaluate on.
  """

  def evaluate(state):
    added = {}
    for batch in feed.fixed_batches(held_out, config, mesh):
      for name, value in made.figures(0)(state, frozen, batch).items():
        added[name] = added.get(name, 0.0) + float(value)
    return held_out_means(added), {}

  return evaluate


def held_out_means(sums: dict[str, float]) -> dict[str, float]:
  """Figures of each kind of target that the held-out data has: 0 reads as perfect."""
  present = [name for name in KINDS if sums[f"{name}_count"]]
  found = means_by_kind(sums)
  names = [f"{what}_{name}" for name in present for what in ("loss", "accuracy")]
  return {name: float(found[name]) for name in names}


def _stage1_merger(folder, abstract: train_state.TrainState, shardings):
  """Reads the merger out of the visual tokenizer part."""
  tree = {"merger": abstract.params["merger"]}
  spread = {"merger": shardings.params["merger"]}
  loaded = model_directory.load(
    folder, "visual_tokenizer", tree, spread, below=("merger",)
  )
  return loaded["merger"]


def save(params, config, words: Vocabulary, folder: str) -> None:
  """Writes the whole model directory: stage-1 parts and what stage 2 trained."""
  llama_config = config.model.to_dict() | {
    "vocab_size": words.size,
    "padded_size": words.padded_size,
    "text_size": words.text_size,
    "begin": words.begin,
    "end": words.end,
    "pad": words.pad,
    "holes": words.holes,
  }
  parts = {
    "llama": model_directory.Part(params["llama"], llama_config),
    "understanding": model_directory.Part(
      {"merger": params["merger"], "vit_proj": params["vit_proj"]}, {}
    ),
  }
  model_directory.save(
    folder,
    parts,
    base=config.init_from,
    text_tokenizer=config.data.text_tokenizer,
    decoding=config.decoding.to_dict(),
  )
