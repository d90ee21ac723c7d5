"""How well features of two views of one thing agree, where the truth is known.

Repeatability and matching score are those of Mikolajczyk et al. ("A comparison
of affine region detectors", IJCV 2005) with distances in place of overlaps of
ellipses; mean matching accuracy is that of Dusmanu et al. (D2-Net, CVPR 2019).
Points are (y, x) in pixels; the truth is a homography.
"""

from typing import NamedTuple

import numpy as np

TOLERANCE = 3.0
SCALE_TOLERANCE = 2**0.5
THRESHOLDS = tuple(range(1, 11))


class Side(NamedTuple):
  """The features of one view.

  Attributes:
    locations: [n, 2] (y, x).
    scales: [n], positive.
    shown: [h, w] bool, where the view shows what the homography holds for.
  """

  locations: np.ndarray
  scales: np.ndarray
  shown: np.ndarray


class Agreement(NamedTuple):
  """What `compare` found.

  Attributes:
    common: of the features of either view that lie in what both show, the
      smaller number.
    repeatability: how many of them have a counterpart, as a share.
    matching_score: how many of them are matched with the right feature.
    accuracies: of the matches of such features, the shares that are right
      within each threshold; zeros where there are none.
  """

  common: int
  repeatability: float
  matching_score: float
  accuracies: tuple[float, ...]


def project(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Maps [n, 2] points; those that go to infinity or beyond become NaN."""
  mapped = np.c_[points, np.ones(len(points))] @ np.asarray(homography).T
  depth = np.where(mapped[:, 2:] > 0, mapped[:, 2:], np.nan)
  return mapped[:, :2] / depth


def stretches(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
  """How many times as long things are on the other side, at [n, 2] points.

  The root of how much areas grow.
  """
  step = 0.5
  down, across = (
    project(homography, points + step * shift)
    - project(homography, points - step * shift)
    for shift in np.eye(2)[:, None]
  )
  area = down[:, 0] * across[:, 1] - down[:, 1] * across[:, 0]
  return np.sqrt(np.abs(area))


def lie_in(points: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Tells which [n, 2] points lie in a [h, w] mask; NaN lies nowhere."""
  near = np.rint(np.nan_to_num(points, nan=-9, posinf=-9, neginf=-9))
  inside = ((near >= 0) & (near < mask.shape)).all(1)
  near = np.where(inside[:, None], near, 0).astype(int)
  return inside & mask[near[:, 0], near[:, 1]]


def compare(
  first: Side,
  second: Side,
  matches: tuple[np.ndarray, np.ndarray],
  homography: np.ndarray,
  *,
  tolerance: float = TOLERANCE,
  scale_tolerance: float = SCALE_TOLERANCE,
  thresholds: tuple[float, ...] = THRESHOLDS,
) -> Agreement | None:
  """Compares the features of two views.

  Args:
    first: features of the first view.
    second: of the second.
    matches: rows of the first and of the second, [m] each.
    homography: [3, 3] from (y, x, 1) of the first to that of the second.
    tolerance: in pixels of the second view, for counterparts and for the
      matching score.
    scale_tolerance: counterparts differ in scale by this factor at most.
    thresholds: in pixels, for accuracies.

  Returns:
    shares of the smaller number of features that could agree; None if a view
    has none. Counterparts are each other's nearest.
  """
  mapped = project(homography, first.locations)
  back = project(np.linalg.inv(homography), second.locations)
  ours = lie_in(first.locations, first.shown) & lie_in(mapped, second.shown)
  theirs = lie_in(second.locations, second.shown) & lie_in(back, first.shown)
  common = int(min(ours.sum(), theirs.sum()))
  if not common:
    return None
  scales = first.scales * stretches(homography, first.locations)
  apart = np.linalg.norm(
    mapped[ours][:, None] - second.locations[theirs][None], axis=-1
  )
  ratios = np.log(scales[ours][:, None] / second.scales[theirs][None])
  near = (apart <= tolerance) & (np.abs(ratios) <= np.log(scale_tolerance))
  apart = np.where(near, apart, np.inf)
  nearest = apart.argmin(1)
  mutual = apart.argmin(0)[nearest] == np.arange(len(apart))
  repeated = np.sum(mutual & np.isfinite(apart.min(1)))
  rows, columns = matches
  kept = ours[rows]
  errors = np.linalg.norm(
    mapped[rows[kept]] - second.locations[columns[kept]], axis=1
  )
  return Agreement(
    common=common,
    repeatability=float(repeated / common),
    matching_score=float(np.sum(errors <= tolerance) / common),
    accuracies=tuple(
      float(np.mean(errors <= t)) if len(errors) else 0.0 for t in thresholds
    ),
  )
