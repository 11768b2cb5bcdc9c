"""Finetuning: adapters beside frozen weights, and the model they are merged into."""

import functools
import hashlib
import pathlib
import shutil

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import toy_run
from test_meshes import BATCH, mesh_of, run_step
from test_resume import arrays_of, assert_resumed, cut_back

from configs import finetune as finetune_config
from lavit_jax import LaVIT
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.data import joined, text
from lavit_jax.inference import frozen_parts
from lavit_jax.layers import linear
from lavit_jax.models import lavit
from lavit_jax.planning import programs
from lavit_jax.stages import adapters, finetune, pretrain, stage_run
from lavit_jax.training import mesh_report, train_state
from lavit_jax.weights import exchange, files, model_directory, part

ATTENTION = "llama/blocks/attention/"
SCALE = 2.0


def language_names() -> list[str]:
  return sorted(adapters.flat(toy_run.language_params()))


def kernels_everywhere() -> adapters.Choice:
  """Adapters for every linear map of language model, merger and projection."""
  pattern = "(llama/blocks|merger|vit_proj)"
  return adapters.choose(language_names(), pattern, "", 3, 3 * SCALE)


def random_adapters(choice: adapters.Choice, std: float = 0.1):
  """Adapters whose product is not zero."""
  everything = lavit.init_function(toy_run.language_model(), toy_run.PATCHES)
  init = adapters.init_function(everything, choice)
  abstract, _ = linear.abstract_params(init)
  return toy_run.random_tree(abstract, 7, std)


@functools.cache
def hidden_function():
  model, tower = toy_run.language_model(), toy_run.tower()

  def run(params, batch):
    features = frozen_parts.merger_inputs(tower, toy_run.frozen(), batch["images"])
    names = ("tokens", "segment_ids", "positions", "feature_index")
    rows = [batch[name] for name in names]
    return model.apply({"params": params}, *rows, features, batch["keep"])

  return golden_data.compiled(run)


def hidden(params, batch) -> np.ndarray:
  """Hidden states of a batch."""
  return np.asarray(hidden_function()(params, batch))


# Choosing


def test_two_patterns_say_what_trains():
  chosen = adapters.choose(
    language_names(), ATTENTION, "vit_proj|merger/.*norm", 4, 8.0
  )
  path = "llama/blocks/attention"
  assert chosen.adapted == tuple(
    f"{path}/{name}/kernel" for name in ("key", "out", "query", "value")
  )
  assert {"vit_proj/kernel", "vit_proj/bias"} < set(chosen.trained)
  assert not [name for name in chosen.trained if name.startswith("llama")]
  assert chosen.scale == 2.0


@pytest.mark.parametrize(
  ("patterns", "message"),
  [
    (("lama", ""), "lora.pattern 'lama' names no kernel; choose among"),
    (("", "visual"), "trained 'visual' names no parameter; choose among"),
    (("llama/blocks/mlp", "llama"), "both name .*down/kernel"),
    (("", ""), "nothing trains; set"),
  ],
)
def test_patterns_that_cannot_be_meant_are_refused(patterns, message):
  with pytest.raises(ValueError, match=message):
    adapters.choose(language_names(), *patterns, 4, 8.0)


def test_a_table_gets_no_adapter():
  choice = adapters.choose(language_names(), "llama/head", "", 4, 8.0)
  with pytest.raises(ValueError, match="kernels of linear maps .* llama/head/kernel"):
    random_adapters(choice)


# Numbers


def test_a_new_adapter_changes_nothing():
  choice = kernels_everywhere()
  everything = lavit.init_function(toy_run.language_model(), toy_run.PATCHES)
  init = train_state.unboxed_init(adapters.init_function(everything, choice))
  params = jax.jit(init)(jax.random.key(0))
  one = adapters.flat(params)[f"{adapters.ROOT}/{ATTENTION}query/lora_a"]
  assert one.shape == (2, 64, 3)
  assert np.std(one) == pytest.approx(64**-0.5, rel=0.15)
  frozen, batch = {"base": toy_run.language_params()}, toy_run.packed_batch(2)
  whole = adapters.whole(params, frozen, SCALE)
  np.testing.assert_array_equal(
    hidden(whole, batch), hidden(toy_run.language_params(), batch)
  )


def test_merged_weights_compute_what_adapters_do():
  choice = kernels_everywhere()
  params, batch = random_adapters(choice), toy_run.packed_batch(2)
  plain = toy_run.language_params()
  stored = part.tree_of(dict(part.named_tensors(plain)))
  merged, changed = adapters.merged(stored, params, choice.scale)
  assert changed
  merged = jax.tree.map(np.asarray, merged)
  beside = hidden(adapters.whole(params, {"base": plain}, choice.scale), batch)
  np.testing.assert_allclose(hidden(merged, batch), beside, atol=1e-5, rtol=1e-5)
  assert np.abs(beside - hidden(plain, batch)).max() > 0.1
  for name, leaf in adapters.flat(merged).items():
    same = np.array_equal(leaf, adapters.flat(plain)[name])
    assert same == (name not in choice.adapted), name


# The step


def step_result(shape, choice):
  """One step on a mesh; the gradient is its optimizer state."""
  config, model = toy_run.language_config(), toy_run.language_model()
  everything = lavit.init_function(model, toy_run.PATCHES)
  whole = lambda params, frozen: adapters.whole(params, frozen, choice.scale)
  parts = (model, toy_run.tower(), toy_run.recorder(), toy_run.WORDS)
  step = pretrain.step_of(config, *parts, whole=whole)
  init = adapters.init_function(everything, choice)
  frozen = toy_run.frozen() | {"base": toy_run.language_params()}
  batch = toy_run.packed_batch(BATCH)
  return run_step(step, init, random_adapters(choice), frozen, batch, mesh_of(shape))


def test_gradients_reach_adapters_alone_and_are_those_of_one_device():
  choice = kernels_everywhere()
  expected, values = step_result((1, 1, 1, 1), choice)
  found, metrics = step_result((1, 2, 1, 4), choice)
  np.testing.assert_allclose(metrics["loss"], values["loss"], atol=1e-5)
  gradient, other = (adapters.flat(state.opt_state) for state in (expected, found))
  assert len(gradient) == 2 * len(choice.adapted)
  for name, leaf in gradient.items():
    assert name.startswith(adapters.ROOT) and np.abs(leaf).max() > 1e-6, name
    np.testing.assert_allclose(other[name], leaf, atol=2e-5, rtol=2e-5, err_msg=name)


# Whole runs


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, tokenized_data, visual_tokenizer_directory):
  """A finished model of stage 2, of random parameters."""
  folder = tmp_path_factory.mktemp("finished") / "model"
  tokenizer = text.load_text_tokenizer(tokenized_data / "text_tokenizer")
  words = Vocabulary(tokenizer.text_size, toy_run.TOKENIZER["num_codes"])
  config = toy_run.language_run(tokenized_data, visual_tokenizer_directory)
  init = lavit.init_function(
    pretrain.make_model(config, words, toy_run.TOKENIZER), toy_run.PATCHES
  )
  abstract, _ = linear.abstract_params(init)
  params = jax.tree.map(jnp.asarray, toy_run.random_tree(abstract, 3, 0.05))
  pretrain.save(params, config, words, str(folder))
  return folder


@pytest.fixture(scope="module")
def run_config(model_folder, tokenized_data):
  """Makes the config of six steps, a quarter of their rows from old data."""

  def make():
    config = finetune_config.get_config("tiny")
    config.model = toy_run.LLAMA
    config.update(dict(num_steps=6, batch_size=4, unroll=1, checkpoint_every=3))
    config.update(dict(init_from=str(model_folder), eval_batches=1))
    config.lora.rank = 4
    config.trained = "vit_proj"
    config.mesh.update(dict(data=2, fsdp=2, sequence=1, tensor=2))
    config.optimizer.warmup_steps = 2
    data, old = config.data, dict(share=0.25, train=str(tokenized_data / "train"))
    data.update(dict(train=old["train"], eval=str(tokenized_data / "test")))
    data.update(dict(row_length=96, plan_rows=24, eval_rows=4))
    data.old.update(old)
    return config

  return make


def digests(folder: pathlib.Path) -> dict[str, str]:
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run_config, model_folder):
  """A run, and what the model directory held before it."""
  folder, before = tmp_path_factory.mktemp("finetune") / "run", digests(model_folder)
  stage_run.run(run_config(), str(folder))
  return folder, before


def test_the_base_is_untouched_and_only_the_chosen_changes(finished, model_folder):
  run, before = finished
  assert digests(model_folder) == before
  made = model_directory.read_manifest(run / "model")["parts"]
  assert made.keys() == model_directory.read_manifest(model_folder)["parts"].keys()
  changed = {
    f"{own}/{name}"
    for own in made
    for name, tensor in model_directory.part_tensors(model_folder, own).items()
    if not np.array_equal(
      tensor, model_directory.part_tensors(run / "model", own)[name]
    )
  }
  kernels = ("query", "key", "value", "out")
  assert changed == {
    *(f"llama/blocks.{i}.attention.{k}.kernel" for i in (0, 1) for k in kernels),
    *(f"understanding/vit_proj.{leaf}" for leaf in ("kernel", "bias")),
  }


def test_the_checkpoint_holds_what_trains_and_nothing_else(finished):
  stored = arrays_of(finished[0], 6)
  assert set(stored["params"]) == {adapters.ROOT, "vit_proj"}
  sizes = [leaf.size for leaf in jax.tree.leaves(stored["params"])]
  assert sum(sizes) == 2 * 4 * 2 * 4 * (64 + 64) // 2 + 32 * 64 + 64
  metrics = (finished[0] / "metrics.jsonl").read_text()
  assert '"loss_text_after_image"' in metrics


def test_finetuning_resumes_bit_for_bit(finished, run_config, tmp_path):
  resumed = cut_back(finished[0], tmp_path / "run", 3)
  # XLA on CPU may abort in the collectives of a program that it reads back.
  shutil.rmtree(resumed / "compiled", ignore_errors=True)
  stage_run.run(run_config(), str(resumed))
  assert_resumed(finished[0], resumed)


def test_the_merged_model_loads_and_exports_like_any_other(finished, tmp_path):
  model = LaVIT.load(finished[0] / "model", batch_size=8)
  assert len(model.caption(toy_run.pictures(1))) == 1
  exchange.export_model("llama", finished[0] / "model", tmp_path / "llama")
  exported = files.open_folder(tmp_path / "llama")
  query = model_directory.part_tensors(finished[0] / "model", "llama")
  query = np.asarray(query["blocks.1.attention.query.kernel"]).reshape(64, 64)
  found = np.asarray(exported["model.layers.1.self_attn.q_proj.weight"])
  assert np.sort(found.ravel()).tolist() == np.sort(query.ravel()).tolist()


def test_a_published_directory_is_merged_into_a_model_directory(tmp_path):
  source, target = tmp_path / "published", tmp_path / "model"
  published.write_whole_lavit(source, ".safetensors")
  kernel = model_directory.read_part(source, "llama").params["blocks"]["mlp"]["up"]
  layers, inputs, outputs = kernel["kernel"].shape
  pair = {
    "lora_a": np.ones((layers, inputs, 1), np.float32),
    "lora_b": np.ones((layers, 1, outputs), np.float32),
  }
  params = {adapters.ROOT: {"llama": {"blocks": {"mlp": {"up": pair}}}}}
  own = {"answer": {"min_new": 1}}
  finetune.save(params, 0.5, str(source), str(target), own)
  assert model_directory.decoding_of(target) == own
  parts = model_directory.read_manifest(source)["parts"]
  assert model_directory.read_manifest(target)["parts"].keys() == parts.keys()
  for name in parts:
    new = model_directory.part_tensors(target, name)
    for key, tensor in model_directory.part_tensors(source, name).items():
      more = 0.5 if name == "llama" and key.endswith("mlp.up.kernel") else 0.0
      wanted = np.asarray(tensor) + np.float32(more)
      np.testing.assert_array_equal(new[key], wanted, err_msg=f"{name}/{key}")


def test_old_data_needs_a_folder_and_a_share(run_config):
  for change in (dict(train=""), dict(share=0.0), dict(share=1.0)):
    config = run_config()
    config.data.old.update(change)
    with pytest.raises(ValueError, match="expected a folder of old data with a share"):
      finetune.build(config, mesh_of((2, 2, 1, 2)))


def test_sizes_that_are_not_those_of_the_weights_are_refused(run_config):
  config = run_config()
  config.model.num_heads = 4
  with pytest.raises(ValueError, match="'llama' in .* does not fit config.model"):
    finetune.build(config, mesh_of((2, 2, 1, 2)))


class Items:
  """A source of numbered items."""

  def __init__(self, name: str, count: int):
    self.name, self.count = name, count

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int) -> dict:
    if self.name == "b" and index == 1:
      raise ValueError("b1 is bad")
    return {"item": f"{self.name}{index}"}

  def ids(self, index: int) -> list[str]:
    return [f"{self.name}{index}"]


def test_joined_sources_stand_behind_each_other():
  source = joined.Joined([Items("a", 2), Items("b", 3)])
  assert [source.ids(i)[0] for i in range(len(source))] == [
    "a0",
    "a1",
    "b0",
    "b1",
    "b2",
  ]
  assert [source[i]["item"] for i in (0, 1, 2, 4)] == ["a0", "a1", "b0", "b2"]
  assert source.read(3) == ({"item": "b2"}, ["b1 is bad"])


# Full size


def test_full_size_trains_a_quarter_of_a_percent_on_64_chips():
  config = finetune_config.get_config("7b")
  config.mesh.update(dict(data=1, fsdp=32, sequence=1, tensor=2))

  mesh = mesh_report.without_devices(dict(config.mesh), 64)
  program = programs.finetune_step(config, mesh)
  state, frozen = program.arguments["state"], program.arguments["frozen"]
  # Four kernels of 4096 x 4096 in each of 32 layers, two factors of rank 16.
  assert train_state.count(state.params) == 4 * 32 * 2 * 4096 * 16
  whole = 6_872_649_728 + 2 * 4096 * (48_512 - 48_386) + 398_267_392 + 5_771_264
  assert train_state.count(frozen["base"]) == whole
  groups = mesh_report.groups_of(state, frozen)
  report = "\n".join(mesh_report.lines(mesh, groups, 0))
  frozen_bytes = mesh_report.total_bytes({"frozen": frozen})
  assert frozen_bytes < 1.04 * 2 * (whole + 1_012_588_928) / 64, report
  # One factor of each pair is split over fsdp, the other over tensor: less than 60 MB.
  assert mesh_report.total_bytes(groups) - frozen_bytes < 60e6, report
  assert "whole on every device, above 1.05 MB: nothing" in report
  query = state.params[adapters.ROOT]["llama"]["blocks"]["attention"]["query"]
  for leaf in jax.tree.leaves(query):
    assert leaf.sharding.shard_shape(leaf.shape) != leaf.shape
