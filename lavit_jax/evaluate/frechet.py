"""The Frechet distance between two sets of feature vectors."""

import numpy as np
import scipy.linalg


def distance(first: np.ndarray, second: np.ndarray) -> float:
  """Distance of the normal distributions fitted to two sets (the formula of FID).

  |m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2)), in float64.

  Args:
    first: float[N, D] features of one set, N >= 2.
    second: float[M, D] features of the other.

  Returns:
    At least 0; 0 for equal means and covariances.
  """
  if len(first) < 2 or len(second) < 2:
    raise ValueError(
      f"expected at least 2 pictures on each side of a Frechet distance, got"
      f" {len(first)} and {len(second)}; evaluate more"
    )
  first, second = (np.asarray(x, np.float64) for x in (first, second))
  gap = first.mean(0) - second.mean(0)
  covariances = [np.atleast_2d(np.cov(x, rowvar=False)) for x in (first, second)]
  # The product of two covariances has the spectrum of a positive semidefinite matrix;
  # by way of one symmetric root no complex rounding appears.
  root = _root(covariances[0])
  middle = np.linalg.eigvalsh(root @ covariances[1] @ root)
  shared = np.sqrt(np.clip(middle, 0, None)).sum()
  total = sum(np.trace(c) for c in covariances)
  return float(max(gap @ gap + total - 2 * shared, 0.0))


def _root(matrix: np.ndarray) -> np.ndarray:
  values, vectors = scipy.linalg.eigh(matrix)
  return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
