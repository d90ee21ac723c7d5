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

Counting = Literal["one_to_one", "plain"]

# Residual of an inlier, as in the released pair-matching demo, in pixels of
# photographs at most REFERENCE_SIDE large, so that a large photograph and its
# reduction get the same answer.
THRESHOLD = 20.0
REFERENCE_SIDE = 1024

# Fewer inliers are no match; measured on training photographs, see README.md.
MIN_INLIERS = 15


class Index(Protocol):
  """What `delf_jax.index` opens."""

  def search(
    self,
    queries: np.ndarray,
    k: int,
    *,
    exclude: tuple[int, int] | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns distances and rows [m, k] of the nearest descriptors."""


@dataclasses.dataclass(frozen=True)
class Database:
  """An index and what its rows mean.

  Attributes:
    index: over the descriptors of all photographs.
    paths: of the photographs.
    sizes: [p, 2] (height, width) of the upright originals.
    offsets: [p + 1], rows offsets[i] to offsets[i + 1] are of photograph i.
    locations: [n, 2] (y, x) of every row, in original pixels.
  """

  index: Index
  paths: Sequence[str]
  sizes: np.ndarray
  offsets: np.ndarray
  locations: np.ndarray


@dataclasses.dataclass(frozen=True)
class Match:
  """One candidate photograph after verification.

  Attributes:
    path: of the photograph.
    score: inliers, as `counting` counts them; 0 when nothing was verified.
    votes: query features that have a neighbour in the photograph.
    transform: [2, 3] affine, (y, x, 1) of the query -> (y, x) of the
      photograph, both in original pixels.
    query_locations: [i, 2] (y, x) of the inlier matches in the query.
    image_locations: [i, 2] (y, x) of the same in the photograph.
    residuals: [i] distance to the transform, pixels of the reference size.
  """

  path: str
  score: int
  votes: int
  transform: np.ndarray
  query_locations: np.ndarray
  image_locations: np.ndarray
  residuals: np.ndarray


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A photograph with enough votes to be verified.

  Attributes:
    image: its number in the database.
    votes: see `Match`.
    features: [m] query features of its putative matches.
    rows: [m] index rows of the same.
  """

  image: int
  votes: int
  features: np.ndarray
  rows: np.ndarray


def vote(
  rows: np.ndarray, offsets: np.ndarray, *, candidates: int
) -> list[Candidate]:
  """Aggregates neighbours per photograph, one vote a query feature.

  Args:
    rows: [m, k] index rows of every query feature's neighbours; -1 is none.
    offsets: see `Database`.
    candidates: how many photographs to keep.

  Returns:
    the photographs with the most votes, most first; among equals, the first
    in the database.
  """
  features, columns = np.nonzero(rows >= 0)
  rows = rows[features, columns]
  images = np.searchsorted(offsets, rows, side="right") - 1
  pairs = np.unique(images * np.int64(len(rows) + 1) + features)
  voted, votes = np.unique(pairs // (len(rows) + 1), return_counts=True)
  best = np.lexsort([voted, -votes])[:candidates]
  order = np.argsort(images, kind="stable")
  starts = np.searchsorted(images[order], voted[best], side="left")
  ends = np.searchsorted(images[order], voted[best], side="right")
  return [
    Candidate(
      image=int(voted[b]),
      votes=int(votes[b]),
      features=features[order[start:end]],
      rows=rows[order[start:end]],
    )
    for b, start, end in zip(best, starts, ends, strict=True)
  ]


def count_inliers(
  features: np.ndarray, locations: np.ndarray, *, counting: Counting
) -> int:
  """Counts inlier matches.

  Args:
    features: [i] query features of the inliers.
    locations: [i, 2] where they lie in the photograph.
    counting: "plain" counts matches; "one_to_one" counts distinct query
      features or distinct locations, whichever are fewer, so that repeated
      patterns and doubled keypoints do not inflate the score.
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
  threshold: float = THRESHOLD,
  counting: Counting = "one_to_one",
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
    threshold: largest residual of an inlier, in pixels of photographs reduced
      to `REFERENCE_SIDE` (smaller ones are not enlarged).
    counting: see `count_inliers`.
    leave_out: a photograph that must not be found: the query itself.
    seed: of RANSAC.

  Returns:
    every candidate, the best score first; equal scores by votes, then by place
    in the database. Which scores mean a match is the caller's decision.
  """
  exclude = None
  if leave_out is not None:
    start, stop = database.offsets[leave_out : leave_out + 2]
    exclude = (int(start), int(stop))
  _, rows = database.index.search(
    query.descriptors, neighbours, exclude=exclude
  )
  found = vote(rows, database.offsets, candidates=candidates)
  shrink = _to_reference(size)
  shrinks = [_to_reference(database.sizes[c.image]) for c in found]
  results = ransac.verify(
    [
      (
        query.locations[c.features] * shrink,
        database.locations[c.rows] * by,
      )
      for c, by in zip(found, shrinks, strict=True)
    ],
    threshold=threshold,
    seed=seed,
  )
  matches = []
  for c, by, result in zip(found, shrinks, results, strict=True):
    inliers = result.inliers
    locations = database.locations[c.rows[inliers]]
    matches.append(
      Match(
        path=database.paths[c.image],
        score=count_inliers(c.features[inliers], locations, counting=counting),
        votes=c.votes,
        transform=_from_reference(result.transform, shrink, by),
        query_locations=query.locations[c.features[inliers]],
        image_locations=locations,
        residuals=result.residuals[inliers],
      )
    )
  order = sorted(
    range(len(matches)),
    key=lambda i: (-matches[i].score, -matches[i].votes, found[i].image),
  )
  return [matches[i] for i in order]


def _to_reference(size: Sequence[int]) -> np.float32:
  return np.float32(min(1.0, REFERENCE_SIDE / max(size)))


def _from_reference(
  transform: np.ndarray, source: np.float32, target: np.float32
) -> np.ndarray:
  """Turns a transform between reduced photographs into one of originals."""
  return np.column_stack(
    [transform[:, :2] * (source / target), transform[:, 2] / target]
  ).astype(np.float32)
