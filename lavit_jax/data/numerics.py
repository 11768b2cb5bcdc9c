"""The version of the arithmetic that chooses codes: sidecars of another are refused."""

# Raised whenever a picture may get other codes than before. 2: norms, query and value
# biases, class token and positions of a frozen encoder in float32.
VERSION = 2


def check(manifest: dict) -> None:
  """Refuses the manifest of a sidecar that another version made.

  Sidecars that name no version are of the first.
  """
  found = manifest.get("numerics", 1)
  if found != VERSION:
    raise ValueError(
      f"expected a sidecar of numerics version {VERSION}, got one of {found}: this"
      " program may give these pictures other codes; empty the codes folder and run"
      " python -m lavit_jax.tokenize again"
    )
