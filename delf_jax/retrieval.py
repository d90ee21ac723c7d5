"""Votes -> candidates -> geometric verification -> ranking, or nothing.

Section 5.1 of the paper: the nearest index descriptors of every query
descriptor are aggregated per photograph, the best photographs are verified by
RANSAC, and the number of inliers is the score.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from delf_jax.features.local_features import LocalFeatures
from delf_jax.geometry import ransac
from delf_jax.index import Index

Counting = Literal["one_to_one", "plain"]
Transforms = Literal["plausible", "any"]
Votes = Literal["count", "distance", "bursts", "distance_bursts"]

# Residual of an inlier, as in the released pair-matching demo, in pixels of
# photographs at most REFERENCE_SIDE large, so that a large photograph and its
# reduction get the same answer.
THRESHOLD = 20.0
REFERENCE_SIDE = 1024

# Options of RANSAC that refuse no transform.
UNBOUNDED = {"min_span": 0.0, "max_stretch": np.inf, "mirrored": True}

# What `accept` asks for, chosen on training and synthetic photographs: inliers,
# and their surplus over chance in standard deviations.
MIN_INLIERS = 12
MIN_SURPLUS = 8.0


class Locations(Protocol):
  """An array, or something that is read by rows."""

  def __getitem__(self, rows: np.ndarray) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Database:
  """An index and what its rows mean.

  Attributes:
    index: over the descriptors of all photographs.
    paths: of the photographs.
    sizes: [p, 2] (height, width) of the upright originals.
    offsets: [p + 1], rows offsets[i] to offsets[i + 1] are of photograph i.
    locations: [n, 2] (y, x) of every row, in original pixels; or what gives
      [m, 2] for rows [m].
  """

  index: Index
  paths: Sequence[str]
  sizes: np.ndarray
  offsets: np.ndarray
  locations: Locations


@dataclasses.dataclass(frozen=True)
class Match:
  """One candidate photograph after verification.

  Attributes:
    path: of the photograph.
    score: inliers, as `counting` counts them; 0 when nothing was verified.
    transform: [2, 3] affine, (y, x, 1) of the query -> (y, x) of the
      photograph, both in original pixels.
    query_locations: [m, 2] (y, x) of the putative matches in the query.
    image_locations: [m, 2] (y, x) of the same in the photograph.
    inliers: [m] bool, which of them the transform explains.
    residuals: [m] how far it misses them, pixels of the photograph.
    reach: the largest residual of an inlier, pixels of the photograph.
  """

  path: str
  score: int
  transform: np.ndarray
  query_locations: np.ndarray
  image_locations: np.ndarray
  inliers: np.ndarray
  residuals: np.ndarray
  reach: float

  @property
  def votes(self) -> int:
    """Query features that have a neighbour in the photograph."""
    return len(self.inliers)

  def expected_by_chance(self) -> float:
    """Inliers the transform would have if the matches were shuffled.

    Few, for features spread over both photographs; many, where the transform
    maps everything onto a patch on which the features crowd.
    """
    linear, offset = self.transform[:, :2], self.transform[:, 2]
    mapped = self.query_locations @ linear.T + offset
    apart = mapped[:, None, :] - self.image_locations[None, :, :]
    hits = np.sum(apart**2, axis=-1) <= self.reach**2
    return float(hits.sum() / max(self.votes, 1))


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A photograph with enough votes to be verified.

  Attributes:
    image: its number in the database.
    features: [m] query features of its putative matches, ascending.
    rows: [m] index rows of the same.
  """

  image: int
  features: np.ndarray
  rows: np.ndarray


def vote(
  rows: np.ndarray,
  distances: np.ndarray,
  offsets: np.ndarray,
  *,
  candidates: int,
  votes: Votes = "distance_bursts",
) -> list[Candidate]:
  """Aggregates neighbours per photograph, one vote a query feature.

  A query feature gives a photograph one putative match: its nearest neighbour
  there. More would let a repeated pattern vote for itself.

  Args:
    rows: [m, k] index rows of every query feature's neighbours, nearest first;
      -1 is none.
    distances: [m, k] of the same.
    offsets: see `Database`.
    candidates: how many photographs to keep.
    votes: what a vote weighs. "count": one. "distance": 1 - (d / d_k)^2, with
      d_k the distance of the query feature's last neighbour, so that the
      nearest of many about equally far weigh little. "bursts": 1 / sqrt(b)
      where b query features vote for the same index row (Jégou et al., "On
      the burstiness of visual elements", CVPR 2009). "distance_bursts": both.

  Returns:
    the photographs with the most votes, most first; among equals, the first
    in the database.
  """
  features, columns = np.nonzero(rows >= 0)
  rows, distances = rows[features, columns], distances[features, columns]
  farthest = np.zeros(features.max(initial=-1) + 1, np.float32)
  np.maximum.at(farthest, features, distances)
  images = np.searchsorted(offsets, rows, side="right") - 1
  # Sorted by photograph, then feature; of equal pairs the nearest comes first.
  stride = np.int64(features.max(initial=0) + 1)
  _, kept = np.unique(images * stride + features, return_index=True)
  features, rows, images = features[kept], rows[kept], images[kept]
  weights = np.ones(len(rows))
  if votes.startswith("distance"):
    far = np.maximum(farthest[features], np.finfo(np.float32).tiny)
    weights *= 1 - (distances[kept] / far) ** 2
  if votes.endswith("bursts"):
    _, place, burst = np.unique(rows, return_inverse=True, return_counts=True)
    weights /= np.sqrt(burst[place])
  voted, starts = np.unique(images, return_index=True)
  if not len(voted):
    return []
  best = np.lexsort([voted, -np.add.reduceat(weights, starts)])[:candidates]
  stops = np.append(starts[1:], len(images))
  return [
    Candidate(
      image=int(voted[b]),
      features=features[starts[b] : stops[b]],
      rows=rows[starts[b] : stops[b]],
    )
    for b in best
  ]


def count_inliers(
  features: np.ndarray, locations: np.ndarray, *, counting: Counting
) -> int:
  """Counts inlier matches.

  Args:
    features: [i] query features of the inliers.
    locations: [i, 2] where they lie in the photograph.
    counting: "plain" counts matches; "one_to_one" counts distinct query
      features or distinct locations, whichever are fewer, so that many query
      features on one place do not inflate the score.
  """
  if counting == "plain":
    return len(features)
  return min(len(np.unique(features)), len(np.unique(locations, axis=0)))


def search(
  query: LocalFeatures,
  size: tuple[int, int],
  database: Database,
  *,
  neighbours: int = 16,
  candidates: int = 100,
  votes: Votes = "distance_bursts",
  threshold: float = THRESHOLD,
  counting: Counting = "one_to_one",
  transforms: Transforms = "plausible",
  leave_out: int | None = None,
  seed: int = 0,
) -> list[Match]:
  """Finds the photographs that show the same place as a query.

  Args:
    query: its features (compact).
    size: (height, width) of the query, in the pixels of its locations.
    database: where to look.
    neighbours: nearest index descriptors of a query descriptor (the paper's
      K).
    candidates: photographs to verify.
    votes: see `vote`.
    threshold: largest residual of an inlier, in pixels of photographs reduced
      to `REFERENCE_SIDE` (smaller ones are not enlarged).
    counting: see `count_inliers`.
    transforms: "plausible" refuses collapses, mirror images and extreme
      stretches (the defaults of `ransac.ransac`), "any" takes every affine
      transform, as the released systems do.
    leave_out: a photograph that must not be found: the query itself.
    seed: of RANSAC.

  Returns:
    every candidate, the best score first; equal scores by votes, then by place
    in the database. `accept` says which of them are matches.
  """
  exclude = None
  if leave_out is not None:
    start, stop = database.offsets[leave_out : leave_out + 2]
    exclude = (int(start), int(stop))
  distances, rows = database.index.search(
    query.descriptors, neighbours, exclude=exclude
  )
  found = vote(
    rows, distances, database.offsets, candidates=candidates, votes=votes
  )
  places = [database.locations[c.rows] for c in found]
  shrink = _to_reference(size)
  shrinks = [_to_reference(database.sizes[c.image]) for c in found]
  results = ransac.verify(
    [
      (
        query.locations[c.features] * shrink,
        locations * by,
      )
      for c, by, locations in zip(found, shrinks, places, strict=True)
    ],
    threshold=threshold,
    seed=seed,
    **({} if transforms == "plausible" else UNBOUNDED),
  )
  matches = []
  for c, by, locations, result in zip(
    found, shrinks, places, results, strict=True
  ):
    inliers = result.inliers
    matches.append(
      Match(
        path=database.paths[c.image],
        score=count_inliers(
          c.features[inliers], locations[inliers], counting=counting
        ),
        transform=_from_reference(result.transform, shrink, by),
        query_locations=query.locations[c.features],
        image_locations=locations,
        inliers=inliers,
        residuals=result.residuals / by,
        reach=threshold / float(by),
      )
    )
  order = sorted(
    range(len(matches)),
    key=lambda i: (-matches[i].score, -matches[i].votes, found[i].image),
  )
  return [matches[i] for i in order]


def accept(
  matches: Sequence[Match], *, min_inliers: int = MIN_INLIERS
) -> list[Match]:
  """Returns the candidates that show the same place, as far as can be told.

  A match has enough inliers, and clearly more than shuffled matches would
  give its transform: in a collection of twenty photographs every one of them
  gets hundreds of votes, and dozens of inliers by chance.

  Args:
    matches: from `search`.
    min_inliers: fewer are no match.
  """
  accepted = []
  for match in matches:
    if match.score >= min_inliers:
      chance = match.expected_by_chance()
      if match.score - chance >= MIN_SURPLUS * np.sqrt(chance + 1):
        accepted.append(match)
  return accepted


def _to_reference(size: Sequence[int]) -> np.float32:
  return np.float32(min(1.0, REFERENCE_SIDE / max(size)))


def _from_reference(
  transform: np.ndarray, source: np.float32, target: np.float32
) -> np.ndarray:
  """Turns a transform between reduced photographs into one of originals."""
  return np.column_stack(
    [transform[:, :2] * (source / target), transform[:, 2] / target]
  ).astype(np.float32)
