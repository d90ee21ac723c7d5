"""The part of a photograph's features that a learned score chooses."""

from collections.abc import Sequence

import numpy as np

from delf_jax.errors import InputError
from delf_jax.features.local_features import LocalFeatures

# What a score may look at besides the descriptor.
GEOMETRY = ("log_scale", "log_score")
# What features are sorted by: the learned score, or that times the detector's.
SCORES = ("attention", "product")

_LEAST = 1e-12


def check(geometry: Sequence[str], score: str) -> None:
  """Refuses what there is not.

  Raises:
    InputError: naming it.
  """
  unknown = [name for name in geometry if name not in GEOMETRY]
  if unknown:
    raise InputError(
      f"unknown geometry {unknown[0]!r}; expected any of {', '.join(GEOMETRY)}"
    )
  if score not in SCORES:
    raise InputError(
      f"features that a detector found cannot be selected by {score!r}; "
      f"expected {' or '.join(SCORES)}"
    )


def inputs(features: LocalFeatures, geometry: Sequence[str]) -> np.ndarray:
  """Returns what a score is worked out from.

  Args:
    features: of one photograph, n of d dimensions, compact.
    geometry: names in `GEOMETRY`, in any order.

  Returns:
    [n, d + len(geometry)] float32: the descriptor, then natural logarithms of
    the scale and of the detector's response.
  """
  found = {"log_scale": features.scales, "log_score": features.scores}
  columns = [
    np.log(np.maximum(found[name], _LEAST))[:, None] for name in geometry
  ]
  return np.concatenate([features.descriptors, *columns], 1, dtype=np.float32)


def select(
  features: LocalFeatures, scores: np.ndarray, max_features: int
) -> LocalFeatures:
  """Keeps the features that score highest.

  Args:
    features: of one photograph, n, compact.
    scores: [n]; of equal ones the earlier feature comes first.
    max_features: how many to keep at most.

  Returns:
    them in descending order of score, with these scores.
  """
  kept = np.argsort(-scores, kind="stable")[:max_features]
  return LocalFeatures(
    locations=features.locations[kept],
    scales=features.scales[kept],
    scores=scores[kept].astype(np.float32),
    descriptors=features.descriptors[kept],
    mask=features.mask[kept],
  )
