"""Words of a query -> the photographs that are worth verifying.

What `voting` is for nearest neighbours, for a bag of words: photographs in the
order of their cosines, and pairs of features with the same word as putative
matches (Philbin et al., CVPR 2007, section 4).
"""

import dataclasses

import numpy as np

from delf_jax import voting
from delf_jax.index import PhotographIndex

# Photographs of a ranking, at most.
LONGEST = 10_000
# The descriptors of so many, the first ones, are the background of the query's.
_BACKGROUND = 16


@dataclasses.dataclass(frozen=True)
class Ranking:
  """Photographs by how much alike their words are to those of a query.

  Attributes:
    images: [r] their numbers in the database, best first.
    cosines: [r] of the same.
    words: [m, s] of the query's features.
  """

  images: np.ndarray
  cosines: np.ndarray
  words: np.ndarray

  def candidates(self, count: int) -> list[voting.Candidate]:
    """Returns the first photographs, not matched yet."""
    none = np.zeros(0, np.int64)
    return [
      voting.Candidate(int(image), none, none, none.astype(np.float32))
      for image in self.images[:count]
    ]


def rank(
  query_descriptors: np.ndarray,
  index: PhotographIndex,
  *,
  leave_out: int | None = None,
) -> Ranking:
  """Ranks the photographs of a database.

  Args:
    query_descriptors: [m, d].
    index: over the photographs.
    leave_out: a photograph that must not be found.
  """
  words, weights = index.describe(query_descriptors)
  images, cosines = index.rank(words, weights, leave_out=leave_out)
  return Ranking(images[:LONGEST], cosines[:LONGEST], words)


def farthest(
  query_descriptors: np.ndarray,
  images: np.ndarray,
  descriptors: np.ndarray,
  offsets: np.ndarray,
  neighbours: int,
) -> np.ndarray:
  """Returns how far each query feature's last neighbour is: [m]; 0 if none.

  What `voting.farthest` knows from a search of all descriptors, among those of
  the first photographs of a ranking.

  Args:
    query_descriptors: [m, d].
    images: [r] of the ranking.
    descriptors: [n, d] of every row of the database.
    offsets: [p + 1], rows offsets[i] to offsets[i + 1] are of photograph i.
    neighbours: which neighbour is the last one.
  """
  rows = np.concatenate(
    [np.zeros(0, np.int64)]
    + [np.arange(*offsets[i : i + 2]) for i in np.sort(images[:_BACKGROUND])]
  )
  return _distance_of_last(query_descriptors, descriptors[rows], neighbours)


def candidate(
  query_descriptors: np.ndarray,
  index: PhotographIndex,
  descriptors: np.ndarray,
  words: np.ndarray,
  image: int,
) -> voting.Candidate:
  """Matches features that have the same word.

  A query feature has one putative match: of the features with its word the one
  whose descriptor is nearest, as with `voting.vote`.

  Args:
    query_descriptors: [m, d].
    index: over the photographs.
    descriptors: [n, d] of every row of the database.
    words: [m, s] of the query's features.
    image: the photograph.
  """
  features, rows = index.same_words(words, image)
  asked, places = np.unique(rows, return_inverse=True)
  theirs = descriptors[asked][places]
  distances = np.sqrt(
    np.square(query_descriptors[features] - theirs).sum(
      axis=1, dtype=np.float32
    )
  )
  order = np.lexsort([rows, distances, features])
  _, first = np.unique(features[order], return_index=True)
  kept = order[first]
  return voting.Candidate(image, features[kept], rows[kept], distances[kept])


def _distance_of_last(
  queries: np.ndarray, descriptors: np.ndarray, neighbours: int
) -> np.ndarray:
  """[m] float32, from each query to its k-th nearest; 0 if there are none."""
  last = min(neighbours, len(descriptors)) - 1
  if last < 0:
    return np.zeros(len(queries), np.float32)
  squares = np.square(queries).sum(axis=1)[:, None] - 2 * (
    queries @ descriptors.T
  )
  squares += np.square(descriptors).sum(axis=1)
  squares.partition(last, axis=1)
  return np.sqrt(np.maximum(squares[:, last], 0)).astype(np.float32)
