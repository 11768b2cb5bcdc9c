"""Frozen parts as they are stored."""

import jax
import toy_run

from lavit_jax.core import sharding
from lavit_jax.inference import frozen_parts
from lavit_jax.weights import model_directory


def test_of_a_frozen_encoder_linear_maps_alone_are_in_the_compute_dtype(tmp_path):
  """Norms, query and value biases, class token and positions used to be rounded."""
  part = model_directory.Part(toy_run.frozen()["vit"], toy_run.VIT)
  model_directory.save(tmp_path / "model", {"vit": part})
  mesh = sharding.make_mesh({"fsdp": 8})
  tower, frozen, _ = frozen_parts.encoder(str(tmp_path / "model"), mesh, "bfloat16")
  wide, narrow = set(), set()
  for path, leaf in jax.tree_util.tree_flatten_with_path(frozen["vit"])[0]:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    (wide if leaf.dtype == "float32" else narrow).add(name.removeprefix("blocks/"))
  norms = {f"{n}/{v}" for n in ("norm", "norm1", "norm2") for v in ("scale", "bias")}
  assert wide == norms | {"attn/q_bias", "attn/v_bias", "cls_token", "pos_embed"}
  maps = ("attn/proj", "mlp/fc1", "mlp/fc2", "patch_embed", "head")
  both = {f"{n}/{v}" for n in maps for v in ("kernel", "bias")}
  assert narrow == both | {"attn/qkv/kernel"}
