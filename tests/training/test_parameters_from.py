"""Parameters of another run, as far as they fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from lavit_jax.core import sharding
from lavit_jax.training import checkpoint, parameters_from, train_state


def params(value: float, **more):
  tree = {"llama": {"kernel": jnp.full((8, 4), value), "bias": jnp.full(4, value)}}
  return tree | {"old": {"scale": jnp.full(3, value)}} | more


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run whose newest checkpoint holds sevens."""
  folder = str(tmp_path_factory.mktemp("run"))
  saved = checkpoint.Checkpoints(folder, checkpoint.Keep())
  saved.save(3, train_state.fresh(params(7.0), optax.adam(0.1)), {"position": 0})
  saved.close()
  return folder


def test_what_fits_is_taken_and_the_rest_is_told(run):
  mesh = sharding.make_mesh({"fsdp": 8})
  spread = jax.sharding.NamedSharding(mesh, P("fsdp"))
  fresh = params(1.0, merger={"kernel": jnp.ones(2)})
  fresh["llama"]["kernel"] = jax.device_put(fresh["llama"]["kernel"], spread)
  fresh["llama"]["bias"] = jnp.ones(5)
  del fresh["old"]
  found, matches = parameters_from.load(run, fresh)
  assert matches == parameters_from.Matches(
    taken=["llama/kernel"],
    missing=["merger/kernel"],
    reshaped=["llama/bias"],
    unused=["old/scale"],
  )
  np.testing.assert_array_equal(found["llama"]["kernel"], np.full((8, 4), 7.0))
  assert found["llama"]["kernel"].sharding == spread
  np.testing.assert_array_equal(found["llama"]["bias"], np.ones(5))
  np.testing.assert_array_equal(found["merger"]["kernel"], np.ones(2))
  said = matches.text("there").splitlines()
  assert said[0] == "parameters from there: 1 arrays taken" and len(said) == 4
  assert said[3] == "  1 in it are not used: old/scale"


def test_a_folder_without_checkpoints_is_refused(tmp_path):
  with pytest.raises(ValueError, match="expected a run directory with checkpoints"):
    parameters_from.load(str(tmp_path), params(1.0))


def test_a_run_of_other_parameters_is_refused(run):
  with pytest.raises(ValueError, match="expected parameters that fit .* the same st"):
    parameters_from.load(run, {"vit": jnp.ones(3)})
