"""The embedding of an empty text, beside transformers on torch."""

import json

import numpy as np
import pytest

from lavit_jax.weights import empty_text


@pytest.mark.judge
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_it_is_what_the_text_encoder_says(tmp_path, activation):
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(0)
  config = transformers.CLIPTextConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=7,
    hidden_act=activation,
  )
  model = transformers.CLIPTextModel(config).eval()
  with torch.no_grad():
    for value in model.parameters():
      value.normal_(std=0.3)
    ids = torch.tensor([[38, *[39] * 6]])
    expected = model(ids).last_hidden_state[0].numpy()
  model.save_pretrained(tmp_path)
  found = empty_text.embedding(tmp_path)
  assert found.shape == (7, 16)
  np.testing.assert_allclose(found, expected, atol=2e-5)


def test_another_folder_is_refused(tmp_path):
  from safetensors.numpy import save_file

  (tmp_path / "config.json").write_text(json.dumps({"hidden_act": "gelu"}))
  save_file({"a": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
  with pytest.raises(ValueError, match="expected a CLIP text encoder in"):
    empty_text.embedding(tmp_path)
