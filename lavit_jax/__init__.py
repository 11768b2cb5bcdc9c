"""LaVIT in JAX and Flax: language and vision in one model, with dynamic tokens."""

__all__ = ["LaVIT"]


def __getattr__(name: str):
  """Imports the programming interface when it is asked for: it takes seconds."""
  if name == "LaVIT":
    from lavit_jax.inference.api import LaVIT

    return LaVIT
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
