"""What the card of an exported model says of its run."""

import json

import pytest

from lavit_jax.weights import model_card


@pytest.mark.parametrize(
  "start, told",
  [("random", "models/a"), ("", "models/a"), ("random_words/model",) * 2],
)
def test_where_a_run_started(tmp_path, start, told):
  config = {"stage": "toy", "warm_start": start, "init_from": "models/a"}
  (tmp_path / "config.json").write_text(json.dumps(config))
  assert f"- started from: {told}\n" in model_card.text("lavit", tmp_path / "model", {})
