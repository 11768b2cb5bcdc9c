"""The PyTorch side of verify against the numbers of the reference."""

import golden_data
import numpy as np
import pytest

from lavit_jax.weights import torch_reference

pytestmark = pytest.mark.judge


def check(found, expected) -> None:
  np.testing.assert_allclose(found.detach().numpy(), expected, atol=2e-5, rtol=1e-4)


def loaded(name: str):
  state, dims, arrays = golden_data.load(name)
  return torch_reference.state_of(state), dims, golden_data.cases(arrays)


def test_encoder_selector_and_merger():
  import torch

  state, dims, cases = loaded("encoder.npz")
  own = cases[""]
  images = torch.from_numpy(own["image"])
  found = torch_reference.encoder(state, images, dims["heads"])
  check(found, own["out_all_features"])
  state, dims, cases = loaded("token_predictor.npz")
  own = cases[""]
  check(torch_reference.selector(state, torch.from_numpy(own["x"])), own["logp"])
  state, dims, cases = loaded("token_merger.npz")
  own = cases[""]
  x, keep = torch.from_numpy(own["x"]), torch.from_numpy(own["decisions"])
  check(torch_reference.merger(state, x, keep, dims["heads"]), own["out"])


@pytest.mark.parametrize(
  "name, outputs",
  [("decoder_lowres", ("out",)), ("decoder_highres", ("prompt_embeds", "pooled"))],
)
def test_feature_decoders_and_their_heads(name, outputs):
  import torch

  state, dims, cases = loaded(f"{name}.npz")
  own = cases["c0"]
  counts = own["token_nums"]
  packed = np.zeros((len(counts), counts.max(), own["x"].shape[1]), np.float32)
  for row, part in zip(packed, np.split(own["x"], np.cumsum(counts)[:-1])):
    row[: len(part)] = part
  inputs = torch.from_numpy(packed), torch.from_numpy(counts)
  rebuilt = torch_reference.feature_decoder(state, *inputs, dims["heads"])
  check(rebuilt, own["rec_features"])
  heads = torch_reference.condition(state, rebuilt, dims["heads"])
  for found, key in zip(heads, outputs, strict=True):
    check(found, own[key])
