"""convert: round trips bit for bit, and complete complaints."""

import json
import pathlib

import golden_data
import numpy as np
import published
import pytest

from lavit_jax.models import unet, vae
from lavit_jax.weights import exchange, files, model_directory, rules, tensors

SUFFIX = ".safetensors"
DTYPES = ("float32", "bfloat16")


@pytest.mark.parametrize("dtype", DTYPES)
def test_encoder_round_trip_is_bit_exact(tmp_path, dtype):
  state = published.rounded(golden_data.load("encoder.npz")[0], dtype)
  source, out = tmp_path / "eva.safetensors", tmp_path / "out.safetensors"
  published.write_file(source, state)
  exchange.import_model("eva", source, tmp_path / "model", num_heads=2)
  exchange.export_model("eva", tmp_path / "model", out)
  published.assert_same(files.open_file(out), state)


@pytest.mark.parametrize(
  "kind, prefix",
  [("eva_timm", ""), ("eva_clip", "visual."), ("eva_open_clip", "visual.trunk.")],
)
def test_other_encoder_layouts_hold_the_same_model(tmp_path, kind, prefix):
  state = golden_data.load("encoder.npz")[0]
  keys = np.random.default_rng(0).permutation(sorted(state))
  moved = {prefix + key: state[key] for key in keys}
  tower = {"text.ln.weight": np.ones(3, np.float32), "logit_scale": np.float32(2)}
  whole = moved | (tower if prefix else {})
  published.write_file(tmp_path / "a.safetensors", state)
  published.write_file(tmp_path / "b.safetensors", whole)
  sums = []
  for name, layout in (("a", "eva"), ("b", kind)):
    target = tmp_path / name
    exchange.import_model(layout, tmp_path / f"{name}.safetensors", target, None, 2)
    sums.append(model_directory.checksum(target, ["vit"]))
  assert sums[0] == sums[1]
  exchange.export_model(kind, tmp_path / "b", tmp_path / "out.safetensors")
  published.assert_same(files.open_file(tmp_path / "out.safetensors"), moved)


def test_order_of_query_key_and_value_matters(tmp_path):
  state = dict(golden_data.load("encoder.npz")[0])
  published.write_file(tmp_path / "a.safetensors", state)
  key = "blocks.0.attn.qkv.weight"
  state[key] = np.concatenate(np.split(state[key], 3)[::-1])
  published.write_file(tmp_path / "b.safetensors", state)
  for name in "ab":
    source = tmp_path / f"{name}.safetensors"
    exchange.import_model("eva", source, tmp_path / name, num_heads=2)
  found = [
    np.asarray(
      model_directory.part_tensors(tmp_path / name, "vit")["blocks.0.attn.qkv.kernel"]
    )
    for name in "ab"
  ]
  np.testing.assert_array_equal(found[0], found[1][:, ::-1])


def test_tied_head_scaled_positions_and_several_ends(tmp_path):
  state = published.random_llama(100)
  del state["lm_head.weight"]
  scaling = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0)
  scaling |= dict(high_freq_factor=4.0, original_max_position_embeddings=64)
  config = published.llama_config(state, 4) | dict(
    num_key_value_heads=2,
    tie_word_embeddings=True,
    rope_theta=500000.0,
    rope_scaling=scaling,
    eos_token_id=[90, 91, 92],
  )
  source, out = tmp_path / "llama", tmp_path / "out"
  published.write_llama(source, state, config, SUFFIX)
  ends = {"eos_token_id": [90, 91], "temperature": 0.6}
  files.write_json(source / "generation_config.json", ends)
  exchange.import_model("llama", source, tmp_path / "model")
  exchange.export_model("llama", tmp_path / "model", out)
  published.assert_same(files.open_folder(out), state)
  exported = json.loads((out / "config.json").read_text())
  assert {key: exported[key] for key in config} == config
  assert json.loads((out / "generation_config.json").read_text()) == ends
  untied = model_directory.read_part(tmp_path / "model", "llama")
  params = dict(untied.params)
  params["head"] = {"kernel": np.asarray(params["head"]["kernel"]) + 1}
  part = model_directory.Part(params, untied.config)
  model_directory.save(tmp_path / "trained", {"llama": part})
  exchange.export_model("llama", tmp_path / "trained", tmp_path / "apart")
  assert "lm_head.weight" in files.open_folder(tmp_path / "apart")
  assert not json.loads((tmp_path / "apart/config.json").read_text())[
    "tie_word_embeddings"
  ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_llama_round_trip_is_bit_exact(tmp_path, dtype, monkeypatch):
  state = published.rounded(published.random_llama(100), dtype)
  config = published.llama_config(state, 4) | {"num_key_value_heads": 2}
  source, out = tmp_path / "llama", tmp_path / "out"
  published.write_llama(source, state, config, SUFFIX)
  published.write_words(source, 97)
  exchange.import_model("llama", source, tmp_path / "model")
  part = model_directory.part_config(tmp_path / "model", "llama")
  assert (part["vocab_size"], part["padded_size"], part["text_size"]) == (100, 128, 97)
  monkeypatch.setattr(files, "SHARD_BYTES", 20_000)
  exchange.export_model("llama", tmp_path / "model", out)
  assert len(list(out.glob("model-*-of-*.safetensors"))) > 2
  published.assert_same(files.open_folder(out), state)
  exported = json.loads((out / "config.json").read_text())
  assert {key: exported[key] for key in config} == config
  assert exported["torch_dtype"] == dtype
  assert (out / "tokenizer.json").is_file()


def test_card_says_what_and_from_which_run(tmp_path):
  state = published.random_llama(100)
  config = published.llama_config(state, 4) | {"num_key_value_heads": 2}
  published.write_llama(tmp_path / "llama", state, config, SUFFIX)
  run = tmp_path / "run"
  run.mkdir()
  exchange.import_model("llama", tmp_path / "llama", run / "model")
  exchange.export_model("llama", run / "model", tmp_path / "first")
  assert "nothing known" in (tmp_path / "first/README.md").read_text()
  files.write_json(run / "config.json", {"stage": "pretrain", "data": {"train": "d/t"}})
  record = {"step": 7, "kind": "eval", "time": 1.0, "loss_text": 2.5}
  lines = [json.dumps(record), json.dumps(record | {"kind": "train"}), '{"step']
  (run / "metrics.jsonl").write_text("\n".join(lines))
  exchange.export_model("llama", run / "model", tmp_path / "out")
  card = (tmp_path / "out/README.md").read_text()
  count = sum(array.size for array in state.values())
  padded = count + 2 * 28 * 32  # filler rows of our tables
  for words in (f"{padded:,}", "stage: pretrain", "d/t", "held-out loss_text: 2.5"):
    assert words in card
  assert "license of Meta" in card


def test_export_in_another_dtype(tmp_path):
  state = published.random_llama(100)
  source = tmp_path / "llama"
  config = published.llama_config(state, 4) | {"num_key_value_heads": 2}
  published.write_llama(source, state, config, SUFFIX)
  exchange.import_model("llama", source, tmp_path / "model")
  exchange.export_model("llama", tmp_path / "model", tmp_path / "out", dtype="bfloat16")
  found = files.open_folder(tmp_path / "out")
  published.assert_same(found, published.rounded(state, "bfloat16"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_lavit_comes_back_bit_for_bit(tmp_path, dtype):
  published.write_whole_lavit(tmp_path / "lavit", SUFFIX, dtype)
  exchange.import_model("lavit", tmp_path / "lavit", tmp_path / "model")
  exchange.export_model("lavit", tmp_path / "model", tmp_path / "out", SUFFIX)
  before, after = (published.all_weights(tmp_path / n) for n in ("lavit", "out"))
  assert before.keys() == after.keys()
  for name, state in before.items():
    published.assert_same(after[name], state)
  for name in ("pixel_decoding", "highres_pixel_decoding"):
    path = pathlib.Path(name) / "scheduler/scheduler_config.json"
    assert (tmp_path / "lavit" / path).read_bytes() == (
      tmp_path / "out" / path
    ).read_bytes()
    for part, read in (("unet", unet), ("vae", vae)):
      configs = [
        json.loads((tmp_path / side / name / part / "config.json").read_text())
        for side in ("lavit", "out")
      ]
      fields = [read.fields_from_config(config) for config in configs]
      assert fields[0] == fields[1]


def test_filler_rows_of_a_lavit_vocabulary_are_left_out(tmp_path):
  states = published.write_lavit(tmp_path / "lavit", SUFFIX)
  state = dict(states["language_model/model"])
  for key in ("model.embed_tokens.weight", "lm_head.weight"):
    state[key] = np.pad(state[key], ((0, 7), (0, 0)), constant_values=3)
  config = published.llama_config(state, 2)
  published.write_llama(tmp_path / "lavit/language_model", state, config, SUFFIX)
  exchange.import_model("lavit", tmp_path / "lavit", tmp_path / "model")
  exchange.export_model("llama", tmp_path / "model", tmp_path / "out")
  found = files.open_folder(tmp_path / "out")
  published.assert_same(found, states["language_model/model"])


def test_base_parts_are_taken_over(tmp_path):
  published.write_lavit(tmp_path / "lavit", SUFFIX)
  exchange.import_model("lavit", tmp_path / "lavit", tmp_path / "model")
  state = published.random_llama(100)
  config = published.llama_config(state, 4) | {"num_key_value_heads": 2}
  published.write_llama(tmp_path / "llama", state, config, SUFFIX)
  new, base = tmp_path / "new", tmp_path / "model"
  exchange.import_model("llama", tmp_path / "llama", new, base=base)
  assert model_directory.part_config(new, "llama")["vocab_size"] == 100
  assert model_directory.checksum(new, ["vit"]) == model_directory.checksum(
    base, ["vit"]
  )


def test_every_unused_key_and_unfilled_target_is_listed(tmp_path):
  state = dict(golden_data.load("encoder.npz")[0])
  state["blocks.1.gamma_1"] = np.ones(3, np.float32)
  state["extra"] = state.pop("norm.bias")
  published.write_file(tmp_path / "eva.safetensors", state)
  with pytest.raises(ValueError) as error:
    exchange.import_model("eva", tmp_path / "eva.safetensors", tmp_path / "m", None, 2)
  message = str(error.value)
  assert "Unused keys: ['blocks.1.gamma_1', 'extra']" in message
  assert "Missing for the model: ['norm.bias']" in message
  assert not (tmp_path / "m").exists()


def test_old_rotary_buffers_are_optional(tmp_path):
  state = published.random_llama(100)
  config = published.llama_config(state, 4) | {"num_key_value_heads": 2}
  name = "model.layers.0.self_attn.rotary_emb.inv_freq"
  published.write_llama(
    tmp_path / "llama", state | {name: np.ones(4, np.float32)}, config, SUFFIX
  )
  exchange.import_model("llama", tmp_path / "llama", tmp_path / "model")
  assert model_directory.damaged_files(tmp_path / "model") == []


def test_an_existing_target_is_left_alone(tmp_path):
  target = tmp_path / "mine"
  target.mkdir()
  (target / "thesis.txt").write_text("years")
  with pytest.raises(ValueError, match="expected a new target"):
    exchange.import_model("eva", "nothing", target)
  assert (target / "thesis.txt").read_text() == "years"


def test_a_failed_conversion_leaves_nothing(tmp_path, monkeypatch):
  state = published.random_llama(100)
  config = published.llama_config(state, 4) | {"num_key_value_heads": 2}
  published.write_llama(tmp_path / "llama", state, config, SUFFIX)

  def full(*arguments):
    raise OSError(28, "No space left on device", "x")

  monkeypatch.setattr(tensors, "write_safetensors", full)
  with pytest.raises(OSError):
    exchange.import_model("llama", tmp_path / "llama", tmp_path / "model")
  assert {path.name for path in tmp_path.iterdir()} == {"llama"}


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_transpose_of_large_matrices(dtype):
  matrix = np.arange(517 * 256).reshape(517, 256).astype(dtype)
  found = rules.transposed(matrix)
  np.testing.assert_array_equal(found, matrix.T)
  assert found.flags.c_contiguous
