"""The programming interface on a tiny model directory of random parameters."""

import subprocess
import sys
import types

import golden_data
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from lavit_jax import infer
from lavit_jax.core import sharding
from lavit_jax.core.vocabulary import Vocabulary
from lavit_jax.data import items, text
from lavit_jax.generate import decoding, tasks
from lavit_jax.inference import api, tokenizing
from lavit_jax.models import selector, vit
from lavit_jax.models.visual_tokenizer import VisualTokenizer
from lavit_jax.toy import patch_words
from lavit_jax.weights import model_directory, rules

TRUNK = dict(embed_dim=16, num_layers=1, num_heads=2, head_dim=8, mlp_dim=16)
VIT = TRUNK | dict(image_size=16, patch_size=4, clip_dim=8)
TOKENIZER = TRUNK | dict(num_patches=16, code_dim=4, num_codes=32)
LLAMA = TRUNK | dict(num_kv_heads=2, rope_base=10000.0, norm_eps=1e-5)
WORDS = dict(
  color=dict(classes=9, background_weight=0.2),
  shape=dict(classes=6, background_weight=1.0),
)


pytestmark = pytest.mark.usefixtures("compile_fast")


def random_tree(abstract, seed: int) -> dict:
  rng, params = np.random.default_rng(seed), {}
  for path, leaf in rules.flatten(abstract).items():
    noise = rng.normal(size=leaf.shape, scale=0.4).astype(np.float32)
    params[path] = noise + path.endswith("scale")
  return rules.unflatten(params)


def visual_parts(rng) -> dict[str, model_directory.Part]:
  tower = vit.VisionTransformer(**VIT)
  tokenizer = VisualTokenizer(**TOKENIZER)
  inputs = jnp.zeros((1, 16, 16))
  trees = (
    golden_data.abstract_params(tower, jnp.zeros((1, 16, 16, 3))),
    golden_data.abstract_params(tokenizer, inputs, inputs[..., 0] > 0),
  )
  rows = rng.normal(size=(32, 4)).astype(np.float32)
  heads = {
    f"word_{kind}": {
      "kernel": rng.normal(size=(16, entry["classes"])).astype(np.float32),
      "bias": np.zeros(entry["classes"], np.float32),
    }
    for kind, entry in WORDS.items()
  }
  ones = np.ones(16, np.float32)
  heads |= {"word_norm": {"scale": ones, "bias": ones * 0}, "scale": np.float32(1)}
  parts = {
    "vit": (random_tree(trees[0], 1), VIT),
    "visual_tokenizer": (random_tree(trees[1], 2), TOKENIZER),
    "codebook": ({"embedding": rows}, dict(num_codes=32, code_dim=4)),
    "whitening": (
      {"mean": ones, "matrix": np.eye(16, dtype=np.float32)},
      {"embed_dim": 16},
    ),
    "clip": (heads, {"text": {}, "words": WORDS}),
  }
  return {name: model_directory.Part(*part) for name, part in parts.items()}


def language_parts(text_size: int) -> dict[str, model_directory.Part]:
  from lavit_jax.models import lavit, llama, merger

  words = Vocabulary(text_size, TOKENIZER["num_codes"])
  extra = dict(vocab_size=words.size, padded_size=words.padded_size)
  model = lavit.LaVIT(llama.Llama(**LLAMA, **extra), merger.Merger(**TRUNK), 16)
  ids, keep = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 1, 16), bool)
  arguments = (ids, ids, ids, ids, jnp.zeros((1, 16, 16)), keep)
  tree = golden_data.abstract_params(model, *arguments, method="everything")
  params = random_tree(tree, 3)
  return {
    "llama": model_directory.Part(
      params.pop("llama"), LLAMA | extra | {"text_size": text_size}
    ),
    "understanding": model_directory.Part(params, {}),
  }


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Two model directories: after stage 1, and complete."""
  root = tmp_path_factory.mktemp("models")
  sentences = ["a red circle", "Question: What color is it? Answer:", "two stars"]
  tokenizer = text.train_text_tokenizer(sentences, 300, root / "text_tokenizer")
  visual = visual_parts(np.random.default_rng(0))
  model_directory.save(root / "stage1", visual, text_tokenizer=root / "text_tokenizer")
  language = language_parts(tokenizer.text_size)
  model_directory.save(root / "whole", language, base=root / "stage1")
  return root


@pytest.fixture(scope="module")
def model(folders):
  return api.LaVIT.load(folders / "whole", batch_size=3)


def greedy(max_new: int) -> api.Settings:
  numbers = dict(beams=1, max_new=max_new, min_new=0)
  return decoding.text(
    "caption", decoding.REFERENCE["caption"] | numbers, Vocabulary(40, 24)
  )


def pictures(count: int) -> np.ndarray:
  rng = np.random.default_rng(5)
  return rng.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8)


def test_tokens_are_those_of_the_shared_function(model):
  images = pictures(4)  # one full batch and one padded
  found = model.tokenize(images)
  names = np.array([items.noise_id(image) for image in images], np.uint32)
  expected = tokenizing.encode_pictures(model.coder, images, names, seed=model.seed)
  for i, own in enumerate(found):
    np.testing.assert_array_equal(own["keep"], expected.keep[i])
    np.testing.assert_array_equal(own["codes"], expected.codes[i][own["keep"]])
  noise = selector.gumbel(jax.random.key(model.seed), names, 16)
  odds = np.asarray(expected.log_probs)
  drop = np.log1p(-np.exp(odds))
  keep = odds + noise[..., 0] >= drop + noise[..., 1]
  np.testing.assert_array_equal(expected.keep, keep)
  assert 0 < keep.sum() < keep.size


def test_every_form_of_a_picture_gives_the_same_codes(model, tmp_path):
  array = pictures(1)[0]
  Image.fromarray(array).save(tmp_path / "a.png")
  forms = [array, Image.fromarray(array), tmp_path / "a.png", str(tmp_path / "a.png")]
  expected = model.tokenize([array])[0]
  for form in forms:
    np.testing.assert_array_equal(model.tokenize(form)[0]["codes"], expected["codes"])
  assert model.tokenize([]) == [] and model.caption([]) == []


def test_captions_do_not_depend_on_their_batch(model):
  images = pictures(4)
  together = model.caption(images, how=greedy(8))
  alone = [model.caption(image, how=greedy(8))[0] for image in images]
  assert together == alone
  assert len(set(together)) > 1
  assert model.caption(images, how=greedy(8)) == together


def test_answers_follow_the_template(model):
  image = pictures(1)
  question = "What color is it?"
  found = model.answer(image, [question, "two?"], how=greedy(6))
  continued = model.caption(image, api.QUESTION.format(question), how=greedy(6))
  assert found[:1] == [tasks.cut_answer(text) for text in continued]
  with pytest.raises(ValueError, match="2 pictures and 3 questions"):
    model.answer(pictures(2), ["a", "b", "c"])


def test_captions_equal_the_training_forward_pass(model, folders):
  """Prefill and cache against `LaVIT.__call__` on the same packed row."""
  language, image = model.language, pictures(1)
  keep = model.tokenize(image)[0]["keep"]
  words = language.vocabulary
  request = api.layouts.understanding(keep, [5, 6], words)
  settings = api.Settings(end=Vocabulary.end, allowed="text", max_new=4)
  shown = (image, keep[None])
  path = model._continue([request], settings, [None], shown)[0]
  path = path if len(path) == 4 else np.append(path, Vocabulary.end)
  tokens = np.concatenate([request.tokens, path])[None]
  index = np.append(request.patches, np.full(len(path), -1))[None]
  features = tokenizing.frozen_parts.patch_features(
    model.coder.tower, model.coder.frozen, image
  )
  inputs = features - model.coder.frozen["whitening"].mean
  row = (tokens, np.ones_like(tokens), np.arange(tokens.shape[1])[None], index)
  arguments = (*row, inputs, keep[None, None])
  tree = golden_data.abstract_params(language.model, *arguments, method="everything")[
    "llama"
  ]
  whole = sharding.replicated(model.mesh)
  words_side = model_directory.load(folders / "whole", "llama", tree, whole)
  logits = golden_data.run(
    language.model,
    language.params | {"llama": words_side},
    *arguments,
    method="everything",
  )
  best = np.asarray(logits)[0, len(request) - 1 : -1, : words.text_size].argmax(-1)
  np.testing.assert_array_equal(best, path)


def test_drawings_follow_from_prompt_and_seed_alone(model):
  asked = ["a red circle", "two stars", "a"]
  together = model.draw_codes(asked, n=2, guidance=2.0, top_k=8)
  assert len(together) == 6
  alone = model.draw_codes("two stars", n=2, guidance=2.0, top_k=8)
  for one, other in zip(alone, together[2:4]):
    np.testing.assert_array_equal(one, other)
  other = model.draw_codes(asked, n=2, guidance=2.0, top_k=8, seed=1)
  assert any(a.tolist() != b.tolist() for a, b in zip(together, other))
  for codes in together:
    assert 1 <= len(codes) <= 16
    assert ((codes >= 0) & (codes < 32)).all()


def test_codes_become_features_and_words(model):
  codes = [found["codes"] for found in model.tokenize(pictures(2))]
  features = model.decode_features(codes)
  assert features.shape == (2, 16, 16)
  names = patch_words.read(model, features)
  assert names["color"].shape == names["shape"].shape == (2, 16)
  assert set(names["color"].ravel()) <= set(patch_words.WORDS["color"])
  assert (names["shape"][names["color"] == "background"] == "").all()
  for wrong in ([], [32], [-1], range(17)):
    with pytest.raises(ValueError, match=r"1 to 16 codes in \[0, 32\)"):
      model.decode_features([np.array(wrong, int)])


def test_without_a_pixel_decoder_drawing_says_so(model):
  with pytest.raises(ValueError, match="has no pixel decoder"):
    model.draw("a red circle")


def test_a_stage_one_directory_tokenizes_but_does_not_write(folders):
  model = api.LaVIT.load(folders / "stage1", batch_size=2)
  assert len(model.tokenize(pictures(1))) == 1
  with pytest.raises(ValueError, match="has no part 'llama'"):
    model.caption(pictures(1))
  with pytest.raises(ValueError, match="expected a model directory"):
    api.LaVIT.load(folders / "nowhere")


def test_a_mesh_gives_the_same_captions(model, folders):
  mesh = sharding.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
  spread = api.LaVIT.load(folders / "whole", mesh=mesh, batch_size=2)
  images = pictures(2)
  assert spread.caption(images, how=greedy(6)) == model.caption(images, how=greedy(6))


def test_infer_writes_what_it_says(model, tmp_path, capsys):
  path = tmp_path / "a.png"
  Image.fromarray(pictures(1)[0]).save(path)
  given = types.SimpleNamespace(
    images=[str(path)],
    questions=[],
    prompts=[],
    target=str(tmp_path / "out"),
    stream=True,
    **dict.fromkeys(infer.DECODING_FLAGS),
  )
  infer.reconstruct(model, given)
  said = capsys.readouterr().out
  assert infer.PIXELS_NOTE in said and "0000.npz" in said
  with np.load(tmp_path / "out" / "0000.npz") as written:
    assert written["features"].shape == (16, 16)
  assert Image.open(tmp_path / "out" / "0000.png").size == (64, 64)
  infer.caption(model, given)
  assert capsys.readouterr().out.startswith(f"{path}: ")
  with pytest.raises(ValueError, match="expected --questions"):
    infer.answer(model, given)
  with pytest.raises(ValueError, match="found no file"):
    model.caption(str(tmp_path / "missing.png"))


def test_streams_grow_to_the_caption(model):
  image = pictures(1)[0]
  seen = list(model.stream(image, how=greedy(12)))
  assert seen[-1] == model.caption(image, how=greedy(12))[0]
  assert all(b.startswith(a) for a, b in zip(seen, seen[1:]))


def test_patch_pictures_paint_color_words():
  picture = patch_words.patch_picture(np.array(["red", "background", "blue", "red"]))
  assert picture.shape == (32, 32, 3)
  np.testing.assert_array_equal(picture[0, 31], patch_words.BACKGROUND_RGB)
  np.testing.assert_array_equal(picture[31, 31], picture[0, 0])


def test_the_package_imports_without_jax():
  code = "import sys, lavit_jax; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
