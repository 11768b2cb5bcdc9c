"""Reads the golden arrays that the PyTorch reference computed at tiny sizes.

The folder is `LAVIT_GOLDEN`, else `tests/golden`. A set may hold other sizes, more
cases and fewer intermediate arrays: `check` compares every expected array that the
file holds, and fails on one that the test does not know.
"""

import os
import pathlib
import re

import jax
import numpy as np

from lavit_jax.layers import linear
from lavit_jax.weights import rules

ATOL, RTOL = 2e-5, 1e-4
# Small programs that run once: compiling is nearly all of their time.
COMPILE_FAST = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}


def folder() -> pathlib.Path:
  """Where the golden files are."""
  default = pathlib.Path(__file__).parent / "golden"
  return pathlib.Path(os.environ.get("LAVIT_GOLDEN", default))


def names(pattern: str) -> list[str]:
  """Golden files that are there, e.g. for "token_merger*.npz"."""
  return sorted(path.name for path in folder().glob(pattern))


def load(name: str) -> tuple[dict, dict, dict]:
  """State dict, dimensions and the remaining arrays of one file."""
  with np.load(folder() / name) as file:
    arrays = {key: file[key] for key in file.files}
  part = lambda prefix: {
    key.removeprefix(prefix): arrays.pop(key)
    for key in list(arrays)
    if key.startswith(prefix)
  }
  state = part("sd/")
  dims = {key: value.item() for key, value in part("dim/").items() if value.ndim == 0}
  return state, dims, arrays


def cases(arrays: dict) -> dict[str, dict]:
  """Splits arrays named `c0/x`, `c1/x`, ... by case; without cases there is one."""
  found = {}
  for key, value in arrays.items():
    case, name = re.fullmatch(r"(?:(c\d+)/)?(.+)", key).groups()
    found.setdefault(case or "", {})[name] = value
  shared = found.pop("", {}) if len(found) > 1 else {}
  return {case: shared | own for case, own in found.items()}


def num_layers(state: dict, prefix: str = "") -> int:
  """Number of blocks in a state dict."""
  pattern = re.compile(re.escape(prefix) + r"blocks\.(\d+)\.")
  found = [pattern.match(key) for key in state]
  return 1 + max(int(match.group(1)) for match in found if match)


def trunk_sizes(state: dict, dims: dict, prefix: str = "") -> dict:
  """Sizes of a transformer trunk, read from its arrays."""
  mlp_dim, width = state[f"{prefix}blocks.0.mlp.fc1.weight"].shape
  return dict(
    embed_dim=width,
    num_layers=num_layers(state, prefix),
    num_heads=dims["heads"],
    head_dim=width // dims["heads"],
    mlp_dim=mlp_dim,
  )


def abstract_params(module, *inputs, **options) -> dict:
  """The module's parameter tree as shapes."""
  boxed = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **options))
  return linear.split_boxes(boxed)[0]["params"]


def random_params(module, *inputs, std: float = 0.2) -> dict:
  """Parameters without compiling `init`."""
  return random_like(abstract_params(module, *inputs), std)


def random_like(abstract: dict, std: float = 0.2) -> dict:
  """A random tree for an abstract one: normal, norm scales around 1."""
  rng = np.random.default_rng(0)
  params = {}
  for path, leaf in rules.flatten(abstract).items():
    noise = rng.normal(size=leaf.shape, scale=std).astype(np.float32)
    params[path] = noise + path.endswith("scale")
  return rules.unflatten(params)


def compiled(function):
  """`jax.jit` for a program that runs once."""
  return jax.jit(function, compiler_options=COMPILE_FAST)


def run(module, params: dict, *inputs, method=None):
  """The module's result, compiled as one program."""
  apply = lambda params, *inputs: module.apply(
    {"params": params}, *inputs, method=method
  )
  return compiled(apply)(params, *inputs)


def run_sown(module, params: dict, *inputs) -> tuple:
  """The module's result and its intermediate arrays."""
  apply = lambda params, *inputs: module.apply(
    {"params": params}, *inputs, mutable="intermediates"
  )
  out, collections = compiled(apply)(params, *inputs)
  return out, collections["intermediates"]


def import_checked(table, state: dict, target: dict) -> dict:
  """Imports a state dict, and checks that exporting gives it back bit by bit."""
  params = rules.import_weights(table, state, target)
  exported = dict(rules.export_weights(table, params))
  assert exported.keys() == state.keys()
  for key, array in exported.items():
    np.testing.assert_array_equal(array, state[key], err_msg=key)
  return params


def sown(intermediates: dict, path: str) -> np.ndarray:
  """One sown array, e.g. "blocks/out": a leading layer axis inside blocks."""
  for name in path.split("/"):
    intermediates = intermediates[name]
  return np.asarray(intermediates[0])


def check(
  actual: dict, arrays: dict, inputs: tuple[str, ...], atol: float = ATOL
) -> None:
  """Compares every golden array but the named inputs, exactly when not float."""
  unknown = set(arrays) - set(actual) - set(inputs)
  assert not unknown, f"golden arrays without a comparison: {sorted(unknown)}"
  compared = set(arrays) - set(inputs)
  assert compared, "nothing to compare"
  for name in sorted(compared):
    expected = arrays[name]
    exact = not np.issubdtype(expected.dtype, np.floating)
    tolerance = dict(atol=0, rtol=0) if exact else dict(atol=atol, rtol=RTOL)
    np.testing.assert_allclose(
      np.asarray(actual[name]), expected, err_msg=name, **tolerance
    )


def assert_all_reached(grads: dict, but: tuple[str, ...] = ()) -> None:
  """Every parameter, each layer of it, gets a finite gradient that is not all zero."""
  for path, grad in rules.flatten(grads).items():
    if path in but:
      continue
    grad = np.asarray(grad)
    layers = grad if path.startswith("blocks/") or "/blocks/" in path else grad[None]
    assert np.isfinite(grad).all(), path
    for i, layer in enumerate(layers):
      assert np.abs(layer).max() > 0, f"{path} of layer {i} gets no gradient"
