"""Whitening of global descriptors; that by PCA is `reduction.fit(whiten=True)`.

Every kind is a `Reduction`: L2, a mean taken off, a projection, L2.
"""

import numpy as np

from delf_jax.features.reduction import Reduction, l2_normalise

# Put on the diagonal of a covariance that has no inverse, as a share of its
# mean variance, and then ten times as much, until it has.
_SMALLEST_SHARE = 1e-8


def learn(
  descriptors: np.ndarray,
  queries: np.ndarray,
  positives: np.ndarray,
  *,
  dim: int = 0,
) -> Reduction:
  """Learns the whitening of siaMAC, from pairs that match.

  Radenovic et al. (ECCV 2016) after Mikolajczyk and Matas: what differs
  between the photographs of a pair is made white by the inverse of the Cholesky
  factor of its covariance; then the directions that vary most over all
  photographs come first.

  Args:
    descriptors: [n, c] of training photographs, normalised or not.
    queries: [p] rows, one photograph of every pair; the mean is theirs.
    positives: [p] rows, the other one.
    dim: directions to keep; 0 for all.

  Raises:
    ValueError: if there is no pair, or `dim` is larger than c.
  """
  channels = descriptors.shape[1]
  if not len(queries) or len(queries) != len(positives) or dim > channels:
    raise ValueError(
      f"cannot learn {dim or channels} of {channels} dimensions from "
      f"{len(queries)} queries and {len(positives)} positives"
    )
  unit = np.asarray(l2_normalise(np.asarray(descriptors)), np.float64)
  mean = unit[queries].mean(axis=0)
  apart = unit[queries] - unit[positives]
  inverse = np.linalg.inv(_cholesky(apart.T @ apart / len(apart)))
  white = (unit - mean) @ inverse.T
  _, directions = np.linalg.eigh(white.T @ white)
  rotation = directions[:, ::-1][:, : dim or channels].T
  return Reduction(
    mean=np.asarray(mean, np.float32),
    components=np.asarray(rotation @ inverse, np.float32),
    deviations=np.ones(len(rotation), np.float32),
  )


def _cholesky(covariance: np.ndarray) -> np.ndarray:
  """Returns the lower factor, of a covariance made definite if it is not."""
  share = 0.0
  scale = np.trace(covariance) / len(covariance) or 1.0
  while True:
    try:
      return np.linalg.cholesky(
        covariance + share * scale * np.eye(len(covariance))
      )
    except np.linalg.LinAlgError:
      share = 10 * share or _SMALLEST_SHARE


def as_layer(reduction: Reduction) -> dict[str, np.ndarray]:
  """Writes a projection as the fully connected layer that goes on learning.

  DIR's layer starts as the PCA of its regions.

  Returns:
    "kernel" [c, d] and "bias" [d], float32, of `flax.linen.Dense`.
  """
  components = np.asarray(reduction.components, np.float64)
  kernel = (components / np.asarray(reduction.deviations)[:, None]).T
  bias = -np.asarray(reduction.mean, np.float64) @ kernel
  return {
    "kernel": np.asarray(kernel, np.float32),
    "bias": np.asarray(bias, np.float32),
  }
