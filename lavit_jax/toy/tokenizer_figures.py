"""Figures of the visual tokenizer on held-out toy pictures.

Selection is the default sampled one. "The mixture" is the test split, scenes with every
sixth picture a digit, as in training; patches of objects are known for scenes only.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats
from sklearn import metrics

from lavit_jax.evaluate.figures import figure, mean
from lavit_jax.toy import scenes, world
from lavit_jax.toy.patch_reading import Reading

SEEN_CHANCE = 1 / len(world.SEEN)
CELL_CHANCE = 1 / world.CELLS**2


@dataclasses.dataclass(frozen=True)
class Truth:
  """What is known of N pictures.

  Attributes:
    objects: bool[N, P] patches that an object covers; False for digits.
    count: int[N] objects of a scene, -1 for a digit.
    truths: the records' own truths.
  """

  objects: np.ndarray
  count: np.ndarray
  truths: Sequence[dict]

  @property
  def scene(self) -> np.ndarray:
    """bool[N] which pictures are drawn scenes."""
    return self.count >= 0

  @property
  def single(self) -> np.ndarray:
    """int[S] positions of the scenes with one object."""
    return np.flatnonzero(self.count == 1)


def truth_of(records: Sequence[dict]) -> Truth:
  """Collects the truth of prepared toy records."""
  blank = bytes([scenes.UNLABELLED]) * scenes.GRID**2
  shapes = [r.get("labels", {}).get("shape", blank) for r in records]
  labels = np.stack([np.frombuffer(shape, np.uint8) for shape in shapes])
  truths = [record["truth"] for record in records]
  count = [len(truth["objects"]) if "objects" in truth else -1 for truth in truths]
  return Truth(labels != scenes.UNLABELLED, np.array(count), truths)


def selection(keep: np.ndarray, log_probs: np.ndarray, truth: Truth) -> dict[str, dict]:
  """Figures of the selector.

  Args:
    keep: bool[N, P].
    log_probs: float32[N, P] log-probability of keeping.
    truth: of the N pictures.

  Returns:
    kept_share, kept_vs_objects_spearman and keep_vs_mask_auroc.
  """
  scene, kept = truth.scene, keep.sum(1)
  numbers = range(world.MAX_OBJECTS + 1)
  by_count = {str(k): mean(kept[truth.count == k]) for k in numbers}
  by_count = {k: v for k, v in by_count.items() if v == v}
  varied = len(set(kept[scene])) > 1 and len(set(truth.count[scene])) > 1
  rank = np.nan
  if varied:
    rank = stats.spearmanr(kept[scene], truth.count[scene]).statistic
  mask = truth.objects[scene].ravel()
  area = np.nan
  if 0 < mask.sum() < mask.size:
    area = metrics.roc_auc_score(mask, log_probs[scene].ravel())
  coin, n = "a fair coin per patch", int(scene.sum())
  share = figure(
    keep.mean(),
    0.5,
    len(keep),
    "pictures of the mixture",
    coin,
    scenes=mean(keep[scene].mean(1)),
    digits=mean(keep[~scene].mean(1)) if (~scene).any() else None,
  )
  return {
    "kept_share": share,
    "kept_vs_objects_spearman": figure(
      rank, 0.0, n, "scenes", coin, kept_by_objects=by_count
    ),
    "keep_vs_mask_auroc": figure(area, 0.5, n, "scenes", coin),
  }


def codes(found: np.ndarray, keep: np.ndarray, num_codes: int) -> dict[str, dict]:
  """Figures of the codebook over the mixture.

  Args:
    found: int[N, P] codes, those of kept patches count.
    keep: bool[N, P].
    num_codes: K.

  Returns:
    codes_used (share of K) and code_perplexity.
  """
  counts = np.bincount(found[keep], minlength=num_codes)
  share = counts[counts > 0] / max(counts.sum(), 1)
  perplexity = np.exp(-(share * np.log(share)).sum())
  n, of, collapse = counts.sum(), "kept patches", "one code for every patch"
  extra = dict(num_codes=num_codes)
  used = (counts > 0).mean()
  return {
    "codes_used": figure(used, 1 / num_codes, n, of, collapse, **extra),
    "code_perplexity": figure(perplexity, 1.0, n, of, collapse, **extra),
  }


def reconstruction(cosines: Mapping[str, np.ndarray], truth: Truth) -> dict[str, dict]:
  """Cosine of reconstructed features, overall and on the patches of objects.

  Args:
    cosines: float[N, P] with true features, of "own" codes, of the "constant_mean"
      feature, of the mean feature of object patches, "object_mean", and of a
      "random_mask" with as many patches kept in each picture.
    truth: of the N pictures.

  Returns:
    reconstruction_cosine and object_patch_cosine, each beside both baselines.
  """
  result = {}
  everywhere = np.ones_like(truth.objects)
  for name, chosen, of, baseline in (
    ("reconstruction_cosine", everywhere, "patches of the mixture", "constant_mean"),
    ("object_patch_cosine", truth.objects, "patches that objects cover", "object_mean"),
  ):
    values = {kind: mean(cosine[chosen]) for kind, cosine in cosines.items()}
    result[name] = figure(
      values["own"],
      values[baseline],
      chosen.sum(),
      of,
      f"the mean feature of these {of.split()[0]} everywhere",
      random_mask=values["random_mask"],
    )
  return result


def reading_hits(
  reading: Reading, expected: Sequence[tuple[str, str, int]]
) -> dict[str, np.ndarray]:
  """Compares a reading with the (color, shape, cell) of the one object expected.

  Returns:
    bool[N] for each of "color", "shape", "both" and "cell".
  """
  found = [reading.names(row) for row in range(len(expected))]
  hits = {
    name: np.array([f[i] == e[i] for f, e in zip(found, expected)], bool)
    for i, name in enumerate(("color", "shape", "cell"))
  }
  return hits | {"both": hits["color"] & hits["shape"]}


def single_objects(truth: Truth) -> list[tuple[str, str, int]]:
  """(color, shape, cell) of the scenes with one object."""
  objects = [truth.truths[i]["objects"][0] for i in truth.single]
  return [(o["color"], o["shape"], world.CELLS * o["row"] + o["col"]) for o in objects]


def reconstructed(rebuilt: Reading, true: Reading, truth: Truth) -> dict[str, dict]:
  """Reads single-object scenes from their reconstructed patch grid.

  Args:
    rebuilt: reading of the S reconstructions.
    true: reading of the S true feature grids, the upper bound.
    truth: of all pictures.

  Returns:
    reconstructed_cell and reconstructed_feature_color_shape.
  """
  expected = single_objects(truth)
  hits, bound = reading_hits(rebuilt, expected), reading_hits(true, expected)
  n, of = len(expected), "scenes with one object"
  return {
    "reconstructed_cell": figure(
      mean(hits["cell"]),
      CELL_CHANCE,
      n,
      of,
      "one of 9 cells",
      true_features=mean(bound["cell"]),
    ),
    "reconstructed_feature_color_shape": figure(
      mean(hits["both"]),
      SEEN_CHANCE,
      n,
      of,
      f"one of {len(world.SEEN)} pairs",
      true_features=mean(bound["both"]),
    ),
  }
