"""What is said about a mesh before the first step, with devices and without."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from configs import contrastive, pixel_decoder, pretrain, visual_tokenizer
from lavit_jax.core import sharding
from lavit_jax.planning import programs
from lavit_jax.stages import widths
from lavit_jax.training import mesh_report


def leaf(mesh, shape, *spec, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))


def groups(mesh):
  kernel = leaf(mesh, (1024, 512), "fsdp", "tensor")  # 2 MiB over all devices
  table = leaf(mesh, (1024, 512))  # 2 MiB on each
  half = leaf(mesh, (64, 64), dtype=jnp.bfloat16)  # 8 KiB on each
  return {
    "parameters": {"kernel": kernel, "table": table},
    "optimizer": {"mu": {"kernel": kernel}},
    "codebook": None,
    "frozen": {"vit": half},
  }


EXPECTED = [
  "mesh: data 1 x fsdp 4 x sequence 1 x tensor 2 = 8 devices",
  "per device: parameters 2.36 MB, optimizer 262 kB, frozen 8.19 kB, activations about"
  " 1 MB; together about 3.63 MB",
  "whole on every device, above 1.05 MB:",
  "    2.1 MB  parameters/table",
]


def test_bytes_by_group_and_whole_copies():
  mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
  assert mesh_report.lines(mesh, groups(mesh), 10**6) == EXPECTED


def test_no_device_is_needed():
  mesh = mesh_report.without_devices({"fsdp": -1, "tensor": 2}, 8)
  assert mesh_report.lines(mesh, groups(mesh), 10**6) == EXPECTED
  wide = mesh_report.without_devices({"fsdp": -1}, 4096)
  assert wide.size == 4096 and wide.shape["fsdp"] == 4096


def test_one_device_has_no_copies():
  mesh = mesh_report.without_devices({}, 1)
  assert len(mesh_report.lines(mesh, groups(mesh), 0)) == 2


def test_nothing_large_is_whole():
  mesh = mesh_report.without_devices({"fsdp": 8}, 8)
  made = {"parameters": {"a": leaf(mesh, (1024, 512), "fsdp")}}
  assert mesh_report.lines(mesh, made, 0)[2].endswith("nothing")


def estimate(config, **sizes):
  mesh = mesh_report.without_devices(sizes, 8)
  return mesh_report.activation_bytes(config, mesh)


def test_activations_shrink_with_devices_and_remat():
  config = pretrain.get_config("7b")
  full = estimate(config, fsdp=8)
  config.remat = "none"
  assert estimate(config, fsdp=8) > 10 * full > 0
  assert estimate(config, tensor=8) > estimate(config, fsdp=8)  # eight times the rows
  config.accumulate = 1
  assert estimate(config, fsdp=8) > 1e12


def test_every_stage_has_an_estimate():
  for module in (contrastive, visual_tokenizer, pretrain):
    assert estimate(module.get_config("tiny"), fsdp=8) > 1000


def held(config, **sizes) -> int:
  """Bytes of state and frozen parts on each of 256 devices."""
  split = programs.widths_of(config)
  mesh = mesh_report.without_devices(dict(config.mesh) | sizes, 256, split)
  arguments = programs.STEPS[config.stage](config, mesh).arguments
  groups = mesh_report.groups_of(arguments["state"], arguments["frozen"])
  return mesh_report.total_bytes(groups)


@pytest.mark.parametrize(
  ("module", "fields"),
  [(visual_tokenizer, {}), (pretrain, dict(accumulate=8))],
  ids=["stage 1", "stage 2"],
)
def test_on_256_devices_the_default_mesh_splits_the_whole_model(module, fields):
  config = module.get_config("7b")
  config.update(fields)
  assert held(config) <= 1.10 * held(config, data=4, fsdp=64)


def test_a_named_size_that_leaves_arrays_whole_is_refused():
  mesh = mesh_report.without_devices({"fsdp": 256}, 256)
  split = programs.widths_of(pretrain.get_config("7b"))
  assert split == [4096, 1408]
  with pytest.raises(ValueError, match=r"fsdp = 256 .* \[1408\] .*mesh.fsdp=-1"):
    widths.check(mesh, split)
  widths.check(mesh_report.without_devices({"fsdp": -1}, 256, split), split)
  split = programs.widths_of(pixel_decoder.get_config("sdxl"))
  assert mesh_report.without_devices({"fsdp": -1}, 256, split).shape["fsdp"] == 64
