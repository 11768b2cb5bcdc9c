"""Full-size models as shapes: parameter counts, and every published key has a place."""

import json
import math

import golden_data
import jax
import jax.numpy as jnp
import pytest

from lavit_jax.layers import linear
from lavit_jax.models import condition_heads, vit
from lavit_jax.models.visual_tokenizer import VARIANTS, VisualTokenizer
from lavit_jax.weights import eva, rules, visual_tokenizer

HEADS = {
  "lowres": condition_heads.LowResHead(condition_dim=768),
  "highres": condition_heads.HighResHead(768, 1280, 1280, num_heads=16, head_dim=88),
}
TABLES = {
  "encoder": eva.ENCODER,
  "tokenizer": visual_tokenizer.TOKENIZER,
  "lowres": visual_tokenizer.LOWRES,
  "highres": visual_tokenizer.HIGHRES,
}


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


def count(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def targets():
  """Abstract trees by the file they are exchanged with."""
  encoder = vit.VisionTransformer(**vit.VARIANTS["g14"])
  features, keep = jnp.zeros((1, 256, 1408)), jnp.ones((1, 256), bool)
  parts = golden_data.abstract_params(
    VisualTokenizer(**VARIANTS["lavit"]), features, keep
  )
  decoder = parts.pop("feature_decoder")
  vit_proj = linear.dense(1408, 4096)
  found = {
    "encoder": golden_data.abstract_params(encoder, jnp.zeros((1, 224, 224, 3))),
    "tokenizer": parts
    | {
      "codebook": {"embedding": shape(16384, 32)},
      "vit_proj": golden_data.abstract_params(vit_proj, features),
    },
  }
  for name, head in HEADS.items():
    head_params = golden_data.abstract_params(head, features)
    found[name] = {"feature_decoder": decoder, "head": head_params}
  return found


def test_parameter_counts(targets):
  tokenizer = targets["tokenizer"]
  assert count(targets["encoder"]) == 1_012_588_928
  assert count(tokenizer["selector"]) == 3_227_490
  assert count(tokenizer["merger"]) == 398_267_392
  assert count(tokenizer["encode_task_layer"]) == 2_028_960
  assert count(tokenizer["vit_proj"]) == 5_771_264
  assert count(targets["lowres"]) == 404_081_792
  assert count(targets["highres"]) == 414_002_304


@pytest.fixture(scope="module")
def published():
  return json.loads((golden_data.folder() / "lavit_fullsize_keys.json").read_text())


@pytest.mark.parametrize("name", TABLES)
def test_every_published_key_has_its_place(name, targets, published):
  matches = rules.match_keys(TABLES[name], published[name], targets[name])
  assert {match.key for match in matches} == set(published[name])
  assert len(matches) == len(published[name])


def test_every_mismatch_is_named_at_once(targets, published):
  shapes = dict(published["lowres"])
  del shapes["norm.bias"]
  shapes["blocks.12.norm0.weight"] = [1408]
  shapes["in_proj.weight"] = [32, 1408]
  with pytest.raises(ValueError) as error:
    rules.match_keys(visual_tokenizer.LOWRES, shapes, targets["lowres"])
  message = str(error.value)
  assert "Unused keys: ['blocks.12.norm0.weight']" in message
  assert "Missing for the model: ['norm.bias']" in message
  assert "in_proj.weight: expected [1408, 32], got [32, 1408]" in message


def test_a_parameter_without_a_rule_is_refused(targets, published):
  target = targets["encoder"] | {"extra": shape(3)}
  with pytest.raises(ValueError, match="extra"):
    rules.match_keys(eva.ENCODER, published["encoder"], target)
  with pytest.raises(ValueError, match="extra"):
    next(rules.export_weights(eva.ENCODER, target))
