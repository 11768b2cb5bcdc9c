"""A window of profiled steps."""

import jax.numpy as jnp
import pytest

from lavit_jax.training import profile_window


def test_a_window_is_traced(tmp_path):
  window = profile_window.ProfileWindow("2:2", str(tmp_path))
  for step in range(6):
    window.before(step)
    assert window._tracing == (step in (2, 3))
    window.after(step, jnp.ones(3) + step)
  window.close()
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_no_window_traces_nothing(tmp_path):
  window = profile_window.ProfileWindow("", str(tmp_path))
  window.before(0)
  window.after(0, jnp.ones(1))
  window.close()
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["100", "a:3", "3:0", "3:"])
def test_a_wrong_window_is_refused(text, tmp_path):
  with pytest.raises(ValueError, match="expected --profile=FIRST:COUNT"):
    profile_window.ProfileWindow(text, str(tmp_path))
