"""What speaks for a match, as numbers, and the probability they add up to.

The number of inliers is DELF's score (section 5.1 of the paper), but thirty
inliers of a thousand features say less than thirty of a hundred, thirty on one
window less than thirty all over a facade, and thirty that shuffled matches
would have had as well say nothing. A logistic regression on logarithms of such
counts weighs them. None depends on the size of a photograph or on the pixels of
the threshold, and all but the similarity are the same whatever distances a kind
of descriptor has. How much each says does depend on the features: with
hand-crafted ones nearness decides, with learned ones, of which many views of
one place are all near, the inliers do. So there is a calibration for either
kind, and one for any other, in all of which similarity weighs nothing. A
network is judged best by a calibration of its own.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from delf_jax import matching, voting
from delf_jax.errors import InputError

FORMAT = "delf_jax calibration"
VERSION = 2

# The shipped calibration of a kind of feature; any other has "any". How each
# was fitted is written in it.
SHIPPED = {
  "rootsift": "handcrafted",
  "sift": "handcrafted",
  "surf": "handcrafted",
  "surf_upright": "handcrafted",
  "congas": "handcrafted",
  "congas_raw": "handcrafted",
  "delf": "learned",
}
OTHERWISE = "any"

# A photograph is divided into so many cells along its longer side.
CELLS = 16

# Turned or stretched by more than this says no more against a match.
MAX_TURN = np.pi / 2
MAX_LOG_STRETCH = np.log(4.0)

# Outliers that are added to those of a match, and how near they are: a match
# may have few.
PRIOR = 5
PRIOR_NEARNESS = 0.1

# A query of fewer features counts as one of so many: five inliers of a hundred
# are no better than five.
MIN_FEATURES = 300

# The power of a cosine in the similarity. Of those from 2 to 16, three to six
# told strangers from held-out places about equally well, others worse.
SIMILARITY_POWER = 4

# Scales of matched features that miss the transform's by less than this, in
# natural logarithms, speak for it: right matches miss it by 0.2 to 0.4 in the
# mean, chance by 0.7 to 0.9.
SCALE_MISS = 0.4

NAMES = (
  "inliers",
  "inlier_share",
  "matches",
  "nearness",
  "contrast",
  "likeness",
  "chance",
  "tightness",
  "scale_agreement",
  "cells",
  "turn",
  "stretch",
  "similarity",
)


class VerifiedMatch(Protocol):
  """What `evidence` reads of a match: see `retrieval.Match`."""

  transform: np.ndarray
  query_locations: np.ndarray
  image_locations: np.ndarray
  distances: np.ndarray
  farthest: np.ndarray
  scale_ratios: np.ndarray
  inliers: np.ndarray
  residuals: np.ndarray
  reach: float
  query_size: tuple[int, int]
  image_size: tuple[int, int]
  query_features: int


@dataclasses.dataclass(frozen=True)
class Calibration:
  """A logistic regression on evidence.

  Attributes:
    mean: [f] subtracted from the evidence,
    scale: [f] by which it is then divided,
    weights: [f] with which it is then added up,
    bias: what is added to the sum: log odds.
    provenance: what it was fitted on.
  """

  mean: tuple[float, ...]
  scale: tuple[float, ...]
  weights: tuple[float, ...]
  bias: float
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __str__(self) -> str:
    """A short name that changes with every number."""
    numbers = repr((self.mean, self.scale, self.weights, self.bias))
    digest = hashlib.sha256(numbers.encode()).hexdigest()[:12]
    return f"calibration {digest}"


def evidence(match: VerifiedMatch) -> np.ndarray:
  """Describes a verified candidate.

  Matches that share a place in one of the photographs count once, the nearest
  of them, so that neither repeated patterns nor levels of a pyramid inflate
  anything.

  Args:
    match: verified by RANSAC. Its transform is [3, 3]; locations, residuals
      and reach are in pixels.

  Returns:
    [f] float64, finite, in the order of `NAMES`; zeros without inliers.

    inliers: log(1 + n).
    inlier_share: log(1 + 1000 n / features of the query, MIN_FEATURES or
      more).
    matches: log(1 + m): photographs of one place have more in common than
      one plane of it.
    nearness: log(1 + sum of 1 - (d / d_K)^2 over the inliers), d the distance
      of the descriptors and d_K that of the query feature's background.
    contrast: nearness, times how far outliers are from being near: the
      negative logarithm of their mean 1 - (d / d_K)^2, less one. Where
      outliers are near as well, nearness says little: of 40 dimensions less
      than of 128.
    likeness: the negative of that factor.
    chance: log(1 + the inliers that shuffled matches would have).
    tightness: by how many standard deviations the mean squared residual lies
      below half the largest, where those of chance lie; its signed square
      root.
    cells: log(1 + cells with inliers), of the photograph that has fewer.
    turn: the angle of the transform, radians, at most MAX_TURN.
    stretch: the logarithm of how much more it stretches one way than another.
    similarity: log(1 + sum of cos^4 over the inliers), cos the cosine of
      descriptors of unit length, or 0 where it is negative. A stranger whose
      like the index lacks has a far background, and all its matches are near
      compared with that; this is not fooled.
  """
  place = _one_to_one(match)
  inliers = place[match.inliers[place]]
  n, m = len(inliers), len(place)
  if not n:
    return np.zeros(len(NAMES))
  nearness = voting.closeness(match.distances, match.farthest)
  near = np.log1p(nearness[inliers].sum())
  contrast = _contrast(nearness[place[~match.inliers[place]]])
  squared = (match.residuals[inliers] / match.reach) ** 2
  # The mean of n uniform numbers has the variance 1 / (12 n).
  tightness = (0.5 - float(np.mean(squared))) * np.sqrt(12 * n)
  turn, stretch = _plausibility(match.transform)
  return np.array(
    [
      np.log1p(n),
      np.log1p(1000 * n / max(match.query_features, MIN_FEATURES)),
      np.log1p(m),
      near,
      near * contrast,
      -contrast,
      np.log1p(_chance(match, place)),
      np.sign(tightness) * np.sqrt(abs(tightness)),
      _scale_agreement(match, place),
      np.log1p(
        min(
          _cells(match.query_locations[inliers], match.query_size),
          _cells(match.image_locations[inliers], match.image_size),
        )
      ),
      turn,
      stretch,
      np.log1p(similarity(match.distances[inliers]).sum()),
    ]
  )


def similarity(distances: np.ndarray) -> np.ndarray:
  """What the nearness of two descriptors counts, whatever else is near them.

  Args:
    distances: [...] between descriptors of unit length.

  Returns:
    [...] their cosine to the power of `SIMILARITY_POWER`; 0 if it is negative.
  """
  cosines = 1 - np.square(np.asarray(distances, np.float64)) / 2
  return np.maximum(cosines, 0.0) ** SIMILARITY_POWER


def probability(
  evidence: np.ndarray, calibration: Calibration | None = None
) -> np.ndarray:
  """Returns how probably matches show the same place, [...] from 0 to 1.

  Args:
    evidence: [..., f] of `evidence`.
    calibration: by default `shipped()`.

  Returns:
    [...] float64; 0 where there are no inliers.
  """
  given = shipped() if calibration is None else calibration
  evidence = np.asarray(evidence, np.float64)
  if evidence.shape[-1] != len(given.weights):
    raise ValueError(
      f"{evidence.shape[-1]} pieces of evidence for a calibration of "
      f"{len(given.weights)}"
    )
  # Added up one after the other: the bits do not depend on the batch.
  log_odds = np.full(evidence.shape[:-1], given.bias)
  for i, (mean, scale, weight) in enumerate(
    zip(given.mean, given.scale, given.weights, strict=True)
  ):
    log_odds = log_odds + (evidence[..., i] - mean) * (weight / scale)
  odds = np.exp(-np.abs(log_odds))
  found = np.where(log_odds >= 0, 1 / (1 + odds), odds / (1 + odds))
  return np.where(evidence[..., 0] > 0, found, 0.0)


@functools.cache
def shipped(kind: str = "") -> Calibration:
  """Returns the calibration that comes with the package.

  Args:
    kind: of the features, as the settings of a store name it.
  """
  name = SHIPPED.get(kind, OTHERWISE)
  return read_calibration(
    Path(__file__).parent / "calibrations" / f"{name}.json"
  )


def write_calibration(
  calibration: Calibration, path: str | os.PathLike[str]
) -> None:
  """Writes a calibration as JSON."""
  content = {
    "format": FORMAT,
    "version": VERSION,
    "names": NAMES,
    **dataclasses.asdict(calibration),
  }
  with open(path, "w") as file:
    file.write(json.dumps(content, indent=1) + "\n")


def read_calibration(path: str | os.PathLike[str]) -> Calibration:
  """Reads what `write_calibration` wrote, or an earlier version.

  Evidence that the file does not name weighs nothing.

  Raises:
    InputError: if the file cannot be read or is no calibration of this
      evidence.
  """
  name = os.fspath(path)
  try:
    with open(path, "rb") as file:
      content = json.loads(file.read())
  except OSError as error:
    raise InputError(
      f"calibration {name!r} cannot be read: {error.strerror or error}"
    ) from error
  except (ValueError, RecursionError) as error:
    raise InputError(f"calibration {name!r} is not JSON: {error}") from error
  if not isinstance(content, dict) or content.get("format") != FORMAT:
    raise InputError(
      f"{name!r} is no calibration; python -m delf_jax.calibrate writes one"
    )
  names = content.get("names")
  if (
    content.get("version") != VERSION
    or not isinstance(names, list)
    or names != [known for known in NAMES if known in names]
  ):
    raise InputError(
      f"calibration {name!r} weighs other evidence than this version; fit it "
      f"again with python -m delf_jax.calibrate"
    )
  try:
    lists = [
      tuple(float(value) for value in content[key])
      for key in ("mean", "scale", "weights")
    ]
    bias = float(content["bias"])
  except (KeyError, TypeError, ValueError) as error:
    raise InputError(f"calibration {name!r} is damaged: {error!r}") from error
  numbers = np.array([*np.concatenate(lists), bias])
  if (
    any(len(values) != len(names) for values in lists)
    or not np.isfinite(numbers).all()
    or min(lists[1]) <= 0
  ):
    raise InputError(
      f"calibration {name!r} is damaged: it needs {len(names)} finite means, "
      f"positive scales and weights"
    )
  filled = (
    tuple(
      dict(zip(names, values, strict=True)).get(known, default)
      for known in NAMES
    )
    for values, default in zip(lists, (0.0, 1.0, 0.0), strict=True)
  )
  return Calibration(*filled, bias, content.get("provenance") or {})


def _one_to_one(match):
  """Returns which matches count: the nearest of those that share a place."""
  far = np.maximum(match.farthest, np.finfo(np.float32).tiny)
  return np.flatnonzero(
    matching.one_to_one(
      matching.places(match.query_locations),
      matching.places(match.image_locations),
      match.distances / far,
    )
  )


def _chance(match, place):
  """The inliers that the transform would have if matches were shuffled."""
  mapped = (
    np.column_stack([match.query_locations[place], np.ones(len(place))])
    @ np.asarray(match.transform, np.float64).T
  )
  depth = mapped[:, 2:]
  depth = np.where(depth > 0, depth, np.nan)  # behind the horizon: no inlier
  apart = (mapped[:, :2] / depth)[:, None] - match.image_locations[place][None]
  hits = np.sum(apart**2, axis=-1) <= match.reach**2
  return float(hits.sum() / len(place))


def _scale_agreement(match, place):
  """How well features' scales agree with the transform, as in `evidence`."""
  ratios = np.asarray(match.scale_ratios, np.float64)[place]
  inside = match.inliers[place]
  # Imported features may have no scales, or zeros in their place.
  if not (np.isfinite(ratios) & (ratios > 0)).all() or not np.ptp(ratios):
    return 0.0
  transform = np.asarray(match.transform, np.float64)
  # How much longer a short line at each inlier becomes, in the mean of all
  # directions: the root of the Jacobian's determinant.
  depth = match.query_locations[place[inside]] @ transform[2, :2]
  depth = np.abs(depth + transform[2, 2])
  grown = np.sqrt(abs(np.linalg.det(transform)) / np.maximum(depth, 1e-9) ** 3)
  missed = np.abs(np.log(ratios[inside] / np.maximum(grown, 1e-9)))
  agreement = (SCALE_MISS - float(missed.mean())) * np.sqrt(inside.sum())
  return np.sign(agreement) * np.sqrt(abs(agreement))


def _contrast(outliers):
  """How far outliers of a nearness [m] are from being near, not negative."""
  mean = (outliers.sum() + PRIOR * PRIOR_NEARNESS) / (len(outliers) + PRIOR)
  return max(-np.log(mean) - 1, 0.0)


def _cells(points, size):
  """Counts the cells of a photograph that hold points."""
  side = max(size) / CELLS
  rows, columns = np.floor(np.asarray(points).T / side).astype(np.int64)
  return len(np.unique((rows << 32) + columns))


def _plausibility(transform):
  """The turn and the stretch of a transform [3, 3], as in `evidence`."""
  # Its length does not matter here, and may be infinite of a homography.
  linear = np.asarray(transform, np.float64)[:2, :2] * np.sign(transform[2, 2])
  turn = abs(
    np.arctan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1])
  )
  large, small = np.linalg.svd(linear, compute_uv=False)
  stretch = np.log(large / small) if small > 0 else np.inf
  return min(turn, MAX_TURN), min(stretch, MAX_LOG_STRETCH)
