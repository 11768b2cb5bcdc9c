"""Weight exchange by table: each row ties a published key to a path of our tree.

A table row is `Rule(source key, our path, transform)`. A key with `{i}` exists once
per layer and fills axis 0 of our stacked parameter. The same table runs both ways;
importing fails unless every source key is used and every parameter is filled.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from einops import rearrange


@dataclasses.dataclass(frozen=True)
class Transform:
  """How a published array becomes ours, and back.

  Attributes:
    forward: (source array, our shape) -> our array.
    inverse: our array -> source array.
  """

  forward: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
  inverse: Callable[[np.ndarray], np.ndarray]


def _transposed(array, shape):
  return array.T.reshape(shape)


def _reshaped(array, shape):
  return array.reshape(shape)


def _patches_forward(kernel, shape):
  return rearrange(kernel, "d c p q -> (p q c) d").reshape(shape)


def _patches_inverse(kernel):
  side = round((kernel.shape[0] // 3) ** 0.5)
  return rearrange(kernel, "(p q c) d -> d c p q", p=side, q=side, c=3)


# The same array on both sides.
same = Transform(_reshaped, lambda array: array)
# A vector there, split here into heads (or anything): biases.
vector = Transform(_reshaped, lambda array: array.reshape(-1))
# Leading axes of size 1 there: position tables and single tokens.
batched = Transform(_reshaped, lambda array: array[None])
token = Transform(_reshaped, lambda array: array[None, None])
# (outputs, inputs) there; here inputs first, outputs split, e.g. (D, 3, N, H).
linear = Transform(_transposed, lambda array: array.reshape(array.shape[0], -1).T)
# (outputs, inputs) there; here inputs split, outputs last, e.g. (N, H, D).
linear_from_heads = Transform(
  _transposed, lambda array: array.reshape(-1, array.shape[-1]).T
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
  shapes = {}
  for match, shape in _places(rules, flatten(target)):
    # A broadcast scalar takes the shape's way through the inverse without memory.
    nothing = np.broadcast_to(np.float32(0), shape)
    shapes[match.key] = match.transform.inverse(nothing).shape
  return shapes


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
    if tuple(expected[key]) != tuple(shapes[key])
  ]
  if unused or missing or wrong:
    raise ValueError(
      "the weights must fill the model exactly; use the variant they were made for."
      f" Unused keys: {unused}. Missing for the model: {missing}. Other shapes: {wrong}"
    )
  return matches


def import_weights(
  rules: Sequence[Rule], source: Mapping[str, np.ndarray], target: Mapping[str, Any]
) -> dict[str, Any]:
  """Converts published weights to our tree.

  Args:
    rules: the table.
    source: arrays by published key.
    target: abstract parameter tree to fill (shapes and dtypes).

  Returns:
    The tree of numpy arrays.

  Raises:
    ValueError: lists unused keys, unfilled parameters and differing shapes.
  """
  shapes = {key: source[key].shape for key in source}
  flat = flatten(target)
  filled = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in flat.items()}
  for match in match_keys(rules, shapes, target):
    place = filled[match.path]
    place = place if match.layer is None else place[match.layer]
    place[...] = match.transform.forward(np.asarray(source[match.key]), place.shape)
  return unflatten(filled)


def export_weights(
  rules: Sequence[Rule], params: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields (published key, array) for every parameter, one array at a time.

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
  for match, _ in _places(rules, flat):
    leaf = flat[match.path]
    leaf = np.asarray(leaf if match.layer is None else leaf[match.layer])
    yield match.key, np.ascontiguousarray(match.transform.inverse(leaf))
