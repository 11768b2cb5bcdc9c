"""Weight exchange by table: each row ties a published key to a path of our tree.

A table row is `Rule(source key, our path, transform)`. A key with `{i}` exists once
per layer and fills axis 0 of our stacked parameter. The same table runs both ways;
importing fails unless every source key is used and every parameter is filled.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from einops import rearrange

from lavit_jax.weights import tensors
from lavit_jax.weights.tensors import Stack, Tensor

STRIPE = 128  # rows transposed at a time


@dataclasses.dataclass(frozen=True)
class Transform:
  """How a published array becomes ours, and back.

  Attributes:
    forward: (source array, our shape) -> our array.
    inverse: our array -> source array.
    source_shape: our shape -> source shape, for an inverse that copies; None runs the
      inverse on a broadcast scalar.
  """

  forward: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
  inverse: Callable[[np.ndarray], np.ndarray]
  source_shape: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None


def transposed(matrix: np.ndarray) -> np.ndarray:
  """A contiguous transpose.

  Rows whose length is a power of two share few cache lines, which makes numpy's own
  copy ten times slower; stripes with padded rows avoid that.
  """
  if matrix.size < 2**16:
    return np.ascontiguousarray(matrix.T)
  rows, columns = matrix.shape
  out = np.empty((columns, rows), matrix.dtype)
  stripe = np.empty((STRIPE, columns + 64 // matrix.itemsize), matrix.dtype)
  for start in range(0, rows, STRIPE):
    count = min(STRIPE, rows - start)
    stripe[:count, :columns] = matrix[start : start + count]
    out[:, start : start + count] = stripe[:count, :columns].T
  return out


def _transposed(array, shape):
  return _words(transposed, array).reshape(shape)


def _words(function, array: np.ndarray) -> np.ndarray:
  """Runs a copy on plain integers: numpy moves bfloat16 item by item."""
  if array.dtype.kind != "V":
    return function(array)
  return function(array.view(np.uint16)).view(array.dtype)


def _reshaped(array, shape):
  return array.reshape(shape)


def _patches_forward(kernel, shape):
  return rearrange(kernel, "d c p q -> (p q c) d").reshape(shape)


def _patches_inverse(kernel):
  side = round((kernel.shape[0] // 3) ** 0.5)
  return rearrange(kernel, "(p q c) d -> d c p q", p=side, q=side, c=3)


def _linear_inverse(array):
  return _words(transposed, array.reshape(array.shape[0], -1))


def _from_heads_inverse(array):
  return _words(transposed, array.reshape(-1, array.shape[-1]))


# The same array on both sides.
same = Transform(_reshaped, lambda array: array)
# A vector there, split here into heads (or anything): biases.
vector = Transform(_reshaped, lambda array: array.reshape(-1))
# Leading axes of size 1 there: position tables and single tokens.
batched = Transform(_reshaped, lambda array: array[None])
token = Transform(_reshaped, lambda array: array[None, None])
# (outputs, inputs) there; here inputs first, outputs split, e.g. (D, 3, N, H).
linear = Transform(_transposed, _linear_inverse, lambda s: (math.prod(s[1:]), s[0]))
# (outputs, inputs) there; here inputs split, outputs last, e.g. (N, H, D).
linear_from_heads = Transform(
  _transposed, _from_heads_inverse, lambda s: (s[-1], math.prod(s[:-1]))
)
# A convolution as large as its stride there; a linear map of flat patches here.
patches = Transform(_patches_forward, _patches_inverse)


@dataclasses.dataclass(frozen=True)
class Rule:
  """One row of a table.

  Attributes:
    source: published key, with `{i}` for the layer where layers repeat.
    path: path in our parameter tree, parts joined by "/".
    transform: one of the transforms.
  """

  source: str
  path: str
  transform: Transform = same


@dataclasses.dataclass(frozen=True)
class Match:
  """One published array and its place.

  Attributes:
    key: published key.
    path: our path.
    layer: index on axis 0 of ours, or None for the whole array.
    transform: how to convert.
  """

  key: str
  path: str
  layer: int | None
  transform: Transform


def prefixed(rules: Sequence[Rule], source: str, path: str) -> list[Rule]:
  """The same rules with a prefix on published keys and one on our paths."""
  return [Rule(source + r.source, path + r.path, r.transform) for r in rules]


def layer_norm(source: str, path: str) -> list[Rule]:
  """Both parameters of a layer norm."""
  return [
    Rule(f"{source}.weight", f"{path}/scale"),
    Rule(f"{source}.bias", f"{path}/bias"),
  ]


def dense(source: str, path: str, kernel: Transform = linear) -> list[Rule]:
  """Both parameters of a linear layer."""
  return [
    Rule(f"{source}.weight", f"{path}/kernel", kernel),
    Rule(f"{source}.bias", f"{path}/bias", vector),
  ]


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """{"a": {"b": x}} -> {"a/b": x}."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      flat.update({f"{name}/{path}": leaf for path, leaf in flatten(value).items()})
    else:
      flat[name] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """{"a/b": x} -> {"a": {"b": x}}."""
  tree = {}
  for path, leaf in flat.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return tree


def _places(
  rules: Sequence[Rule], target: Mapping[str, Any]
) -> Iterator[tuple[Match, tuple[int, ...]]]:
  """Every place of a flat target that a rule fills, with its shape there."""
  for rule in rules:
    if rule.path not in target:
      continue
    shape = tuple(target[rule.path].shape)
    if "{i}" not in rule.source:
      yield Match(rule.source, rule.path, None, rule.transform), shape
      continue
    for i in range(shape[0]):
      key = rule.source.replace("{i}", str(i))
      yield Match(key, rule.path, i, rule.transform), shape[1:]


def source_shapes(
  rules: Sequence[Rule], target: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
  """Shape of every published array that a (possibly abstract) tree exports to."""
  places = _places(rules, flatten(target))
  return {match.key: _source_shape(match.transform, shape) for match, shape in places}


def _source_shape(transform: Transform, shape: Sequence[int]) -> tuple[int, ...]:
  """Shape there of an array of a shape here, from the inverse without memory."""
  if transform.source_shape is not None:
    return transform.source_shape(tuple(shape))
  return transform.inverse(np.broadcast_to(np.float32(0), shape)).shape


def match_keys(
  rules: Sequence[Rule], shapes: Mapping[str, Sequence[int]], target: Mapping[str, Any]
) -> list[Match]:
  """Assigns published arrays to parameters, or fails naming all that does not fit.

  Args:
    rules: the table.
    shapes: shape of every published array.
    target: parameter tree, abstract or not.

  Returns:
    One match per published array.

  Raises:
    ValueError: lists unused keys, unfilled parameters and differing shapes.
  """
  flat = flatten(target)
  expected = source_shapes(rules, target)
  matches = [match for match, _ in _places(rules, flat)]
  ruled = {match.path for match in matches}
  unused = sorted(set(shapes) - set(expected))
  missing = sorted(set(expected) - set(shapes))
  missing += sorted(f"{path} (no rule)" for path in set(flat) - ruled)
  wrong = [
    f"{key}: expected {list(expected[key])}, got {list(shapes[key])}"
    for key in sorted(set(expected) & set(shapes))
    if not _fits(expected[key], shapes[key])
  ]
  if unused or missing or wrong:
    raise ValueError(
      "the weights must fill the model exactly; use the variant they were made for."
      f" Unused keys: {unused}. Missing for the model: {missing}. Other shapes: {wrong}"
    )
  return matches


def _fits(expected: Sequence[int], found: Sequence[int]) -> bool:
  """Equal shapes; a number may also be stored as a vector of one."""
  one = tuple(expected) == () and tuple(found) == (1,)
  return one or tuple(expected) == tuple(found)


def import_tensors(
  rules: Sequence[Rule], source: Mapping[str, Tensor], target: Mapping[str, Any]
) -> dict[str, Any]:
  """Converts published tensors to our tree when they are read.

  Args:
    rules: the table.
    source: published tensors by key.
    target: abstract parameter tree; shapes count, dtypes stay those of the source.

  Returns:
    Tree of `Tensor`, and `Stack` where layers are stacked.

  Raises:
    ValueError: lists unused keys, unfilled parameters, and differing shapes or dtypes.
  """
  flat = flatten(target)
  matches = match_keys(rules, {key: t.shape for key, t in source.items()}, target)
  strange = [
    f"{k}: {t.dtype}" for k, t in source.items() if str(t.dtype) not in tensors.WEIGHTS
  ]
  if strange:
    raise ValueError(
      f"expected weights in one of {list(tensors.WEIGHTS)}, got {strange}; use weights"
      " that are not quantized"
    )
  found: dict[str, Any] = {}
  for match in matches:
    stacked, shape = match.layer is not None, tuple(flat[match.path].shape)
    tensor = _converted(match, source[match.key], shape[1:] if stacked else shape)
    if stacked:
      found.setdefault(match.path, []).append(tensor)
    else:
      found[match.path] = tensor
  whole = lambda leaf: Stack(tuple(leaf)) if isinstance(leaf, list) else leaf
  return unflatten({path: whole(leaf) for path, leaf in found.items()})


def _converted(match: Match, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
  read = lambda: match.transform.forward(tensor.read(), shape)
  return Tensor(shape, tensor.dtype, read)


def import_weights(
  rules: Sequence[Rule], source: Mapping[str, np.ndarray], target: Mapping[str, Any]
) -> dict[str, Any]:
  """As `import_tensors` from arrays to arrays of the target's dtypes, at once."""
  lazy = {key: tensors.of_array(source[key]) for key in source}
  flat, wanted = flatten(import_tensors(rules, lazy, target)), flatten(target)
  filled = {path: np.asarray(flat[path], leaf.dtype) for path, leaf in wanted.items()}
  return unflatten(filled)


def export_tensors(
  rules: Sequence[Rule], params: Mapping[str, Any]
) -> dict[str, Tensor]:
  """Published tensors by key, converted when they are read.

  Args:
    rules: the table.
    params: tree of arrays, `Tensor` or `Stack`.

  Raises:
    ValueError: lists the parameters that no rule covers.
  """
  flat = flatten(params)
  uncovered = sorted(set(flat) - {rule.path for rule in rules})
  if uncovered:
    raise ValueError(
      f"every parameter needs a rule to be exported, got none for {uncovered}; export"
      " with the table of this model"
    )
  return {
    match.key: _exported(match, tensors.layer_of(flat[match.path], match.layer))
    for match, _ in _places(rules, flat)
  }


def _exported(match: Match, tensor: Tensor) -> Tensor:
  read = lambda: np.asarray(match.transform.inverse(tensor.read()), order="C")
  return Tensor(_source_shape(match.transform, tensor.shape), tensor.dtype, read)


def export_weights(
  rules: Sequence[Rule], params: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
  """As `export_tensors`, but yields (published key, array), one at a time."""
  for key, tensor in export_tensors(rules, params).items():
    yield key, tensor.read()


def without(
  source: Mapping[str, Tensor], optional: Iterable[str]
) -> tuple[dict[str, Tensor], list[str]]:
  """Leaves out keys that match a named pattern, such as "*.rotary_emb.inv_freq".

  Returns:
    The tensors that are left, and the keys left out.
  """
  patterns = tuple(optional)
  dropped = [k for k in source if any(fnmatch.fnmatchcase(k, p) for p in patterns)]
  return {k: t for k, t in source.items() if k not in set(dropped)}, dropped


def shape_of(source: Mapping[str, Tensor], key: str, num_axes: int) -> tuple[int, ...]:
  """Shape of a tensor that tells a model's sizes.

  Raises:
    ValueError: it is missing or has another number of axes.
  """
  found = source[key].shape if key in source else None
  if found is None or len(found) != num_axes or 0 in found:
    got = "none" if found is None else f"one of shape {list(found)}"
    raise ValueError(
      f"expected a tensor {key} with {num_axes} axes, got {got} among {len(source)}"
      f" keys such as {sorted(source)[:3]}; give weights of this kind"
    )
  return found


def count_layers(source: Iterable[str], prefix: str) -> int:
  """How many different layers have keys of `prefix` and a number."""
  rest = (key.removeprefix(prefix) for key in source if key.startswith(prefix))
  return len({name.split(".")[0] for name in rest if name.split(".")[0].isdecimal()})
