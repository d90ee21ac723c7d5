"""Neighbours in the index -> the photographs that are worth verifying."""

import dataclasses
from typing import Literal

import numpy as np

Votes = Literal["count", "distance", "bursts", "distance_bursts"]


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A photograph to be verified, with its putative matches.

  Attributes:
    image: its number in the database.
    features: [m] query features of its putative matches, ascending.
    rows: [m] index rows of the same.
    distances: [m] between the descriptors of the same.
  """

  image: int
  features: np.ndarray
  rows: np.ndarray
  distances: np.ndarray


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
    offsets: [p + 1], rows offsets[i] to offsets[i + 1] are of photograph i.
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
  far = farthest(rows, distances)
  features, columns = np.nonzero(rows >= 0)
  rows, distances = rows[features, columns], distances[features, columns]
  images = np.searchsorted(offsets, rows, side="right") - 1
  # Sorted by photograph, then feature; of equal pairs the nearest comes first.
  stride = np.int64(features.max(initial=0) + 1)
  _, kept = np.unique(images * stride + features, return_index=True)
  features, rows, images = features[kept], rows[kept], images[kept]
  distances = distances[kept]
  weights = np.ones(len(rows))
  if votes.startswith("distance"):
    weights *= closeness(distances, far[features])
  if votes.endswith("bursts"):
    _, place, burst = np.unique(rows, return_inverse=True, return_counts=True)
    weights /= np.sqrt(burst[place])
  voted, starts = np.unique(images, return_index=True)
  if not len(voted):
    return []
  best = np.lexsort([voted, -np.add.reduceat(weights, starts)])[:candidates]
  stops = np.append(starts[1:], len(images))
  return [
    Candidate(int(voted[b]), features[part], rows[part], distances[part])
    for b, part in ((b, slice(starts[b], stops[b])) for b in best)
  ]


def farthest(rows: np.ndarray, distances: np.ndarray) -> np.ndarray:
  """Returns how far each query feature's last neighbour is: [m]; 0 if none.

  Args:
    rows: [m, k] of the neighbours; -1 is none.
    distances: [m, k] of the same.
  """
  return np.where(rows >= 0, distances, 0).max(axis=1, initial=0)


def closeness(distances: np.ndarray, background: np.ndarray) -> np.ndarray:
  """Returns 1 - (d / b)^2: how much nearer than its background a match is.

  Free of the scale of distances, which differs from feature to feature and
  from network to network.

  Args:
    distances: [m] of the matches.
    background: [m] what `farthest` says of their query features.

  Returns:
    [m] from 0, for what is as far as the background or farther, to 1.
  """
  background = np.maximum(background, np.finfo(np.float32).tiny)
  return 1 - np.square(np.minimum(distances / background, 1))
