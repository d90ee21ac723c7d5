"""Product quantisers for the residuals of an inverted file, each word its own.

A residual, a descriptor less the word that it is nearest to, is rotated and cut
into sub-vectors, and each of these is replaced by the number of the nearest of
a few centroids (Jegou, Douze and Schmid, "Product quantization for nearest
neighbor search", PAMI 2011). How well that works depends on the rotation and
the centroids. Here every word may have its own of both (Kalantidis and
Avrithis, "Locally optimized product quantization for approximate nearest
neighbor search", CVPR 2014), as in section 5.2 of the DELF paper: around one
word the descriptors vary in other directions than around another.
"""

import dataclasses

import numpy as np

from delf_jax.index import inverted_file_kernels as kernels
from delf_jax.index.threads import in_threads

ROTATIONS = ("local", "global", "none")
CODEBOOKS = ("local", "global")
BITS = (4, 5, 8)

_ROUNDS = 20  # of k-means, for all words together
_LOCAL_ROUNDS = 8  # and from there on for one
_LARGEST = 1 << 16  # residuals that the common codebooks are fitted to
_PIECE = 1 << 14  # residuals that a thread takes at a time


@dataclasses.dataclass(frozen=True)
class Quantiser:
  """What residuals are rotated by and replaced with.

  With d dimensions, M sub-vectors of v dimensions (D = M v >= d; what is beyond
  d is zero) and K centroids:

  Attributes:
    rotation_of: [words] int32, which rotation each word has; 0 is the one that
      words have in common.
    rotations: [r, d, D] float32; a residual x becomes x @ rotation.
    codebook_of: [words] int32, which codebook each word has; 0 is the common
      one.
    codebooks: [c, M, v, K] float32.
  """

  rotation_of: np.ndarray
  rotations: np.ndarray
  codebook_of: np.ndarray
  codebooks: np.ndarray


def train(
  sample: np.ndarray,
  words: np.ndarray,
  centres: np.ndarray,
  *,
  subvectors: int,
  bits: int,
  rotation: str,
  codebooks: str,
  seed: int,
  threads: int,
) -> Quantiser:
  """Fits rotations and codebooks to the residuals of a sample.

  A word's rotation is that of the principal components of its residuals, whose
  variances are divided evenly among the sub-vectors; the covariance is drawn
  towards that of all residuals as if d of them were the word's own, and words
  with fewer than d take the common one. Its centroids start from those common
  to all words; words with fewer than 4 K residuals take these.

  Args:
    sample: [n, d] float32.
    words: [n], the word of each.
    centres: [w, d] float32, the words.
    subvectors: M.
    bits: of a code; K = 2**bits.
    rotation: "local", "global" (one for all words) or "none".
    codebooks: "local" or "global".
    seed: of the k-means.
    threads: that share the work; they do not change the result.
  """
  count, d = centres.shape
  width = -(-d // subvectors)
  order = np.argsort(words, kind="stable")
  sizes = np.bincount(words, minlength=count)
  starts = np.concatenate([[0], np.cumsum(sizes)])

  identity = np.eye(d, subvectors * width, dtype=np.float32)[None]
  rotation_of = np.zeros(count, np.int32)
  rotations = identity
  if rotation != "none" and len(sample):
    residuals = _rotated(
      sample, order, words, centres, rotation_of, identity, threads
    )
    own_axes = np.ascontiguousarray(residuals[:, :d])
    products = np.zeros((count, d, d))
    in_threads(
      lambda first, last: kernels.covariances(
        own_axes, starts, products, first, last
      ),
      count,
      threads,
      piece=64,
    )
    common = products.sum(axis=0) / len(sample)
    rotations = principal(common[None], subvectors)
    own = np.flatnonzero(sizes >= d)
    if rotation == "local" and len(own):
      covariances = products[own] + d * common
      covariances /= (sizes[own] + d)[:, None, None]
      rotations = np.concatenate(
        [rotations, principal(covariances, subvectors)]
      )
      rotation_of[own] = 1 + np.arange(len(own))
    del residuals, own_axes, products

  residuals = _rotated(
    sample, order, words, centres, rotation_of, rotations, threads
  )
  books = _common_codebooks(residuals, subvectors, bits, seed, threads)
  codebook_of = np.zeros(count, np.int32)
  own = np.flatnonzero(sizes >= 4 << bits)
  if codebooks == "local" and len(own):
    books = np.repeat(books, 1 + len(own), axis=0)
    codebook_of[own] = 1 + np.arange(len(own))
    # The residuals of words without a codebook of their own lie between.
    bounds = np.stack([starts[own], starts[own + 1]], axis=1)
    in_threads(
      lambda first, last: kernels.fit(
        residuals, bounds, books[1:], _LOCAL_ROUNDS, 1.0, first, last
      ),
      len(own),
      threads,
      piece=8,
    )
  return Quantiser(rotation_of, rotations, codebook_of, books)


def principal(covariances: np.ndarray, subvectors: int) -> np.ndarray:
  """Rotations to principal components, divided among sub-vectors.

  Args:
    covariances: [r, d, d].
    subvectors: M.

  Returns:
    [r, d, D] float32.
  """
  count, d, _ = covariances.shape
  size = -(-d // subvectors) * subvectors
  variances = np.zeros((count, size))
  vectors = np.zeros((count, d, size))
  variances[:, :d], vectors[:, :, :d] = np.linalg.eigh(covariances)
  order = balance(variances, subvectors)
  return np.ascontiguousarray(
    np.take_along_axis(vectors, order[:, None, :], axis=2), np.float32
  )


def balance(variances: np.ndarray, subvectors: int) -> np.ndarray:
  """Divides dimensions among sub-vectors so that none varies more than others.

  The larger variances come first, each to the sub-vector whose variances have
  the smallest product so far and that is not full ("eigenvalue allocation": Ge
  et al., "Optimized product quantization", PAMI 2014, section 3.3).

  Args:
    variances: [r, D].
    subvectors: M, a divisor of D.

  Returns:
    [r, D] the dimensions, sub-vector after sub-vector.
  """
  count, size = variances.shape
  width = size // subvectors
  # In units of a millionth of the largest, so that every factor exceeds 1.
  largest = np.maximum(variances.max(axis=1, keepdims=True), 1e-300)
  logs = np.log(np.maximum(variances / largest, 1e-6) * 1e6) + 1e-3
  order = np.zeros((count, subvectors, width), np.int64)
  products = np.zeros((count, subvectors))
  filled = np.zeros((count, subvectors), np.int64)
  each = np.arange(count)
  for dimension in np.argsort(-variances, axis=1, kind="stable").T:
    part = np.where(filled < width, products, np.inf).argmin(axis=1)
    order[each, part, filled[each, part]] = dimension
    products[each, part] += logs[each, dimension]
    filled[each, part] += 1
  return order.reshape(count, size)


def _rotated(
  sample: np.ndarray,
  order: np.ndarray,
  words: np.ndarray,
  centres: np.ndarray,
  rotation_of: np.ndarray,
  rotations: np.ndarray,
  threads: int,
) -> np.ndarray:
  """[n, D] rotated residuals, word after word."""
  residuals = np.empty((len(sample), rotations.shape[2]), np.float32)
  in_threads(
    lambda first, last: kernels.rotate(
      sample,
      order,
      words,
      centres,
      rotation_of,
      rotations,
      residuals,
      first,
      last,
    ),
    len(sample),
    threads,
    piece=_PIECE,
  )
  return residuals


def _common_codebooks(
  residuals: np.ndarray, subvectors: int, bits: int, seed: int, threads: int
) -> np.ndarray:
  """[1, M, v, K] centroids for all words."""
  n, size = residuals.shape
  width = size // subvectors
  books = np.zeros((1, subvectors, width, 1 << bits), np.float32)
  if n == 0:
    return books
  generator = np.random.default_rng([seed, 1])
  some = residuals
  if n > _LARGEST:
    some = residuals[np.sort(generator.choice(n, _LARGEST, replace=False))]
  first = some[generator.choice(len(some), 1 << bits, replace=n < 1 << bits)]
  books[0] = first.T.reshape(subvectors, width, 1 << bits)
  # A sub-vector is to k-means what a word is to `fit`.
  in_threads(
    lambda first, last: kernels.fit_parts(some, books[0], _ROUNDS, first, last),
    subvectors,
    threads,
    piece=1,
  )
  return books
