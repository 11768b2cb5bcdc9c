"""Inception beside torch-fidelity's own network, with random weights at full size.

torch-fidelity asks for torchvision, which this module of it does not need:
`pip install --no-deps torch-fidelity==0.4.0`.
"""

import importlib
import importlib.util
import sys
import types

import numpy as np
import pytest

from lavit_jax.models import inception
from lavit_jax.weights import inception as weights

pytestmark = pytest.mark.judge
ATOL = 2e-5  # of the largest value


@pytest.fixture(scope="module")
def extractor_class():
  """torch-fidelity's extractor, past its package's imports of torchvision."""
  found = importlib.util.find_spec("torch_fidelity")
  if found is None:
    pytest.skip("torch-fidelity is not installed")
  package = types.ModuleType("torch_fidelity")
  package.__path__ = list(found.submodule_search_locations)
  sys.modules["torch_fidelity"] = package
  module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
  yield module.FeatureExtractorInceptionV3
  for name in [name for name in sys.modules if name.startswith("torch_fidelity")]:
    del sys.modules[name]


@pytest.fixture(scope="module")
def file(extractor_class, tmp_path_factory):
  """A state dict with the network's own keys, every normalization at work."""
  import torch

  torch.manual_seed(0)
  made = {}

  class Shell(extractor_class):
    def load_state_dict(self, state):
      made.update(self.state_dict())

  empty = tmp_path_factory.mktemp("inception") / "empty.pth"
  torch.save({}, empty)
  Shell("x", ["2048"], feature_extractor_weights_path=str(empty))
  for key, value in made.items():
    if key.endswith("conv.weight"):
      made[key] = torch.randn(value.shape) * (2 / value[0].numel()) ** 0.5
    elif key.endswith(("running_var", "bn.weight")):
      made[key] = 0.5 + torch.rand(value.shape)
    elif key.endswith(("running_mean", "bn.bias")):
      made[key] = 0.3 * torch.randn(value.shape)
  path = empty.with_name("pt_inception.pth")
  torch.save(made, path)
  return path


@pytest.mark.parametrize("size", [(64, 64), (512, 320), (299, 299)])
def test_features_are_those_of_torch_fidelity(extractor_class, file, size):
  import torch

  judge = extractor_class("x", ["2048"], feature_extractor_weights_path=str(file))
  images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
  images[1] = images[1, :1, :1]  # one plain picture, whose borders stand out
  expected = judge(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))[0].numpy()
  params = weights.read(file)
  found = np.asarray(inception.Inception().apply({"params": params}, images))
  assert found.shape == (2, 2048) and np.ptp(expected) > 1
  scale = np.abs(expected).max()
  print(f"largest deviation {np.abs(found - expected).max():.1e} of {scale:.3g}")
  np.testing.assert_allclose(found, expected, atol=ATOL * scale)


def test_resizing_is_tensorflows(extractor_class):
  import torch

  module = importlib.import_module("torch_fidelity.interpolate_compat_tensorflow")
  resize = module.interpolate_bilinear_2d_like_tensorflow1x
  images = np.random.default_rng(1).integers(0, 256, (1, 37, 400, 3), np.uint8)
  there = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))
  expected = resize(there, size=(299, 299), align_corners=False)
  found = np.asarray(inception.resized(images))
  np.testing.assert_allclose(
    found, expected.permute(0, 2, 3, 1).numpy(), atol=255 * ATOL
  )
