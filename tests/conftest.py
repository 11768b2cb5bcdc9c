"""Every test runs on the CPU as eight devices, with full float32 products."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
_FLAG = "--xla_force_host_platform_device_count"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=8".strip()

import jax  # noqa: E402  (the environment must be set before jax starts)

jax.config.update("jax_default_matmul_precision", "highest")
