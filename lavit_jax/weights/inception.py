"""The Inception file of pytorch-fid and torch-fidelity, read for the FID.

`pt_inception-2015-12-05-6726825d.pth`, or the same tensors as safetensors. Our side is
the parameter tree of `models.inception.Inception`; the classifier is left out.
"""

import os
from typing import Any

from lavit_jax.models import inception
from lavit_jax.weights import files, parity, rules
from lavit_jax.weights.part import abstract_params, shape
from lavit_jax.weights.rules import Rule
from lavit_jax.weights.stable_diffusion import convolution

OPTIONAL = ("*.num_batches_tracked", "fc.*", "AuxLogits.*")
_NORM = {
  "weight": "scale",
  "bias": "bias",
  "running_mean": "mean",
  "running_var": "variance",
}


def table() -> list[Rule]:
  """Every convolution with its normalization."""
  found = []
  for path in inception.convolutions():
    source = path.replace("/", ".")
    found.append(Rule(f"{source}.conv.weight", f"{path}/kernel", convolution))
    found += [Rule(f"{source}.bn.{a}", f"{path}/{b}") for a, b in _NORM.items()]
  return found


def read(path: str | os.PathLike) -> dict[str, Any]:
  """The parameters float32 of a file.

  Raises:
    ValueError: it is none of this network; all that differs is listed.
  """
  source, _ = rules.without(files.open_file(path), OPTIONAL)
  size = inception.SIDE
  target = abstract_params(inception.Inception(), shape(1, size, size, 3))
  return parity.whole(rules.import_tensors(table(), source, target))
