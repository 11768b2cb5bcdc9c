"""Length against content: what each way of selecting patches spends, and on what.

keep bool[N, P] by selection, cosines float[N, P] -> kept tokens by number of objects,
object patches kept, cosine on them
"""

from collections.abc import Mapping

import numpy as np

from lavit_jax.evaluate.figures import figure, mean, number
from lavit_jax.toy import world
from lavit_jax.toy.tokenizer_figures import Truth

SELECTOR = "selector"  # LaVIT's own, sampled selection among the others


def by_objects(values: np.ndarray, truth: Truth) -> dict[str, dict[str, float]]:
  """Mean and deviation of a value per picture, by number of objects in the scene.

  Args:
    values: float[N].
    truth: of the N pictures.

  Returns:
    {"mean", "deviation"} by number of objects, those that occur.
  """
  chosen = {k: values[truth.count == k] for k in range(world.MAX_OBJECTS + 1)}
  return {
    str(count): {"mean": float(found.mean()), "deviation": float(found.std())}
    for count, found in chosen.items()
    if len(found)
  }


def object_patches_kept(
  masks: Mapping[str, np.ndarray], cosines: Mapping[str, np.ndarray], truth: Truth
) -> dict[str, dict]:
  """The figure object_patches_kept, with what belongs to each way of selecting.

  Args:
    masks: bool[N, P] by selection, of about equal mean; one is `SELECTOR`.
    cosines: float[N, P] of reconstructed with true features, by selection.
    truth: of the N pictures.
  """
  selections = {}
  for name, keep in masks.items():
    selections[name] = {
      "kept_share": number(keep.mean()),
      "object_patches_kept": number(mean(keep[truth.objects])),
      "object_patch_cosine": number(mean(cosines[name][truth.objects])),
      "cosine": number(mean(cosines[name].ravel())),
      "kept_by_objects": by_objects(keep.sum(1), truth),
    }
  own = masks[SELECTOR]
  result = figure(
    mean(own[truth.objects]),
    own.mean(),
    truth.objects.sum(),
    "patches that objects cover",
    "as many patches at random",
    selections=selections,
  )
  return {"object_patches_kept": result}
