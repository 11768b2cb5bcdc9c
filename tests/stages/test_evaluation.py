"""Evaluation: no larger than the step, and never in the way of a finished model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_loop
from jax.extend.core import jaxprs_in_params

from configs import finetune, pixel_decoder, pretrain, visual_tokenizer
from lavit_jax.core import sharding
from lavit_jax.planning import programs
from lavit_jax.stages import stage_run
from lavit_jax.training import base

STAGES = {
  "pretrain": pretrain,
  "finetune": finetune,
  "visual_tokenizer": visual_tokenizer,
  "pixel_decoder": pixel_decoder,
}
ROWS, ACCUMULATE = 12, 4


def shapes(jaxpr):
  """Shapes of all floating values that a program computes, in its loops too."""
  for equation in jaxpr.eqns:
    for value in equation.outvars:
      if jnp.issubdtype(getattr(value.aval, "dtype", jnp.int32), jnp.floating):
        yield value.aval.shape
    for inner in jaxprs_in_params(equation.params):
      yield from shapes(inner)


@pytest.mark.parametrize("stage", STAGES)
def test_evaluation_computes_as_many_rows_at_a_time_as_the_step(stage):
  config = STAGES[stage].get_config("tiny")
  config.update(dict(batch_size=ROWS, accumulate=ACCUMULATE, unroll=1))
  program = programs.evaluation(config, sharding.make_mesh({}, jax.devices()[:1]))
  # Pictures or rows by what follows them: features, states, latents.
  pictures = program.images
  found = {shape for shape in shapes(programs.trace(program).jaxpr) if len(shape) > 2}
  assert not [shape for shape in found if shape[0] in (ROWS, pictures)]
  assert [shape for shape in found if shape[0] in (ROWS // 4, pictures // 4)]


def test_rows_come_back_in_their_order():
  batch = {"x": np.arange(24.0).reshape(12, 2)}
  found = base.in_micro_batches(lambda mb: mb["x"] + 1, batch, 3)
  assert found.shape == (3, 4, 2)
  np.testing.assert_array_equal(base.joined(found), batch["x"] + 1)


def test_gradients_of_micro_batches_add_up_to_those_of_the_batch():
  x = np.arange(12.0, dtype=np.float32)
  loss = lambda w, mb: (((w * mb["x"]) ** 2).sum(), mb["x"].sum())
  found, (losses, sums) = base.accumulated_gradients(
    loss, jnp.float32(2), base.micro_batches({"x": x}, 4)
  )
  assert found == 4 * (x**2).sum() and losses.shape == (4,)
  assert losses.sum() == 4 * (x**2).sum() and sums.sum() == x.sum()


def test_the_model_is_written_though_the_last_evaluation_fails(tmp_path, monkeypatch):
  written = []

  def evaluate(state):
    raise RuntimeError("out of memory")

  stage = test_loop.make_stage()
  stage.evaluate = evaluate
  stage.finish = lambda state, folder: written.append(int(state.step))
  monkeypatch.setitem(stage_run.STAGES, "toy", lambda config, mesh: stage)
  monkeypatch.setattr(stage_run.widths, "of_run", lambda config: [])
  config = test_loop.config(
    num_steps=2, eval_every=0, checkpoint_every=0, data={}, batch_size=8
  )
  with pytest.raises(RuntimeError, match="out of memory"):
    stage_run.run(config, str(tmp_path / "run"))
  assert written == [2]
