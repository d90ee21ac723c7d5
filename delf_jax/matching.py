"""Which feature of one photograph looks like which of another.

Direct matching of two feature sets, for a candidate or a pair of photographs,
and the choice of one match a place among many.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Feature sets are padded to this size or twice, four times as many and so on:
# another shape is another compilation.
MIN_BUCKET = 256


def match(
  query_descriptors: np.ndarray,
  image_descriptors: np.ndarray,
  *,
  mutual: bool = True,
  max_ratio: float | None = None,
  max_distance: float | None = None,
  image_locations: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Matches the descriptors of a query with those of one photograph.

  Each query feature is matched with its nearest descriptor; of equally near
  ones with the first. The result is that of the two feature sets alone.

  Args:
    query_descriptors: [m, d] float32.
    image_descriptors: [n, d] float32.
    mutual: keep a match only if no other query feature is nearer to the same
      descriptor; of equally near ones the first is kept.
    max_ratio: keep a match only if its distance is at most this part of the
      distance to the next descriptor (Lowe, "Distinctive image features from
      scale-invariant keypoints", IJCV 2004, section 7.1).
    max_distance: keep a match only if its distance is at most this.
    image_locations: [n, 2] where the descriptors lie. With them the "next"
      descriptor of `max_ratio` is the nearest at another location: several
      levels of a pyramid look at the same place and see much the same.

  Returns:
    features [k] of the query, ascending; rows [k] of the photograph; and their
    distances [k] float32, Euclidean.

  Raises:
    ValueError: if the descriptors differ in dimension.
  """
  m, n = len(query_descriptors), len(image_descriptors)
  if query_descriptors.shape[1] != image_descriptors.shape[1]:
    raise ValueError(
      f"descriptors of {query_descriptors.shape[1]} and of "
      f"{image_descriptors.shape[1]} dimensions cannot be matched"
    )
  if not m or not n:
    none = np.zeros(0, np.int64)
    return none, none, np.zeros(0, np.float32)
  closeness = np.asarray(
    _closeness(_padded(query_descriptors), _padded(image_descriptors))
  )[:m, :n]
  features = np.arange(m)
  rows = closeness.argmax(axis=1)
  kept = np.ones(m, bool)
  if mutual:
    nearest = closeness[features, rows]
    candidates = np.flatnonzero(nearest == closeness.max(axis=0)[rows])
    _, first = np.unique(rows[candidates], return_index=True)
    kept[:] = False
    kept[candidates[first]] = True
  distances = _distances(query_descriptors, image_descriptors[rows])
  if max_distance is not None:
    kept &= distances <= max_distance
  if max_ratio is not None:
    asked = np.flatnonzero(kept)
    others = closeness[asked]
    if image_locations is None:
      others[np.arange(len(asked)), rows[asked]] = -np.inf
    else:
      place = places(image_locations)
      others[place[None, :] == place[rows[asked], None]] = -np.inf
    # Where nothing else is left, nothing else is as near.
    second = others.argmax(axis=1)
    alone = others[np.arange(len(asked)), second] == -np.inf
    next_distances = _distances(
      query_descriptors[asked], image_descriptors[second]
    )
    kept[asked] = alone | (distances[asked] <= max_ratio * next_distances)
  features = np.flatnonzero(kept)
  return features, rows[features], distances[features]


def one_to_one(
  sources: np.ndarray, targets: np.ndarray, distances: np.ndarray
) -> np.ndarray:
  """Chooses matches so that no source and no target is used twice.

  The nearest match is taken, then the nearest of those that share nothing with
  it, and so on; of equally near ones the first. A repeated pattern, or many
  query features that have no better place to go, count once.

  Args:
    sources: [k] integers, what a match occupies in the query: the number of a
      feature, or of its place.
    targets: [k] the same in the photograph.
    distances: [k] smaller is better.

  Returns:
    [k] bool, the matches that are kept.
  """
  kept = np.zeros(len(distances), bool)
  left = np.argsort(distances, kind="stable")
  while len(left):
    # Best of its source and best of its target: nothing can displace it.
    first = np.zeros((2, len(left)), bool)
    for row, sides in enumerate((sources, targets)):
      first[row, np.unique(sides[left], return_index=True)[1]] = True
    taken = left[first.all(axis=0)]
    kept[taken] = True
    free = ~np.isin(sources[left], sources[taken])
    free &= ~np.isin(targets[left], targets[taken])
    left = left[free]
  return kept


def places(locations: np.ndarray) -> np.ndarray:
  """Numbers locations [n, 2] float32 so that equal ones have equal numbers."""
  # A pair of float32 as one number sorts ten times as fast as rows do. Adding
  # zero makes -0.0 the same as 0.0.
  pairs = np.ascontiguousarray(locations, np.float32) + np.float32(0)
  return np.unique(pairs.view(np.uint64)[:, 0], return_inverse=True)[1]


def _padded(descriptors: np.ndarray) -> np.ndarray:
  """Adds zero rows up to the next bucket: few shapes, few compilations."""
  size = MIN_BUCKET
  while size < len(descriptors):
    size *= 2
  padded = np.zeros((size, descriptors.shape[1]), np.float32)
  padded[: len(descriptors)] = descriptors
  return padded


@jax.jit
def _closeness(query: jax.Array, image: jax.Array) -> jax.Array:
  """[m, n] minus half the squared distances."""
  halves = [0.5 * jnp.sum(jnp.square(side), axis=1) for side in (query, image)]
  products = jnp.einsum(
    "md,nd->mn", query, image, precision=jax.lax.Precision.HIGHEST
  )
  return products - halves[0][:, None] - halves[1][None, :]


def _distances(some: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Distances [k] between the rows of [k, d] and [k, d]."""
  return np.sqrt(np.square(some - others).sum(axis=1, dtype=np.float32))
