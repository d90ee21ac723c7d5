"""The KD-tree: the paper's small-scale index (section 5.1).

Every dimension is uniformly quantised to 8 bits. One tree over all descriptors
halves them at the median of the dimension of largest variance until a leaf
holds a few. A search goes to the leaf nearest to the query, then to the next
nearest, until it has visited T leaves or no leaf can hold anything nearer
(best-bin-first: Beis and Lowe, "Shape indexing using approximate
nearest-neighbour search in high-dimensional spaces", CVPR 1997; Arya and
Mount, "Algorithms for fast vector quantization", DCC 1993).

How near a leaf is, is how near the smallest box is that holds its descriptors.
The cell that the cuts make is bounded on few of its sides in 40 dimensions; at
the same number of visited descriptors the boxes miss half as many neighbours,
or fewer. Boxes are kept as codes too, and sixteen of them lie in one box of the
next level, so there are no pointers: every place in the tree is reckoned from
the number of descriptors.

The query is not quantised. A distance is that between the query and what the
codes stand for, or, where `originals` are kept, the descriptor itself. Memory,
for n descriptors of d dimensions in leaves of s: n (d + 4) bytes for codes and
rows, 2.1 n d / s for the boxes, and 4 n d for the originals.
"""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from delf_jax.index import directory, exact, kd_tree_kernels
from delf_jax.index.threads import frozen, in_threads

_KIND = "kd_tree"
_FANOUT = kd_tree_kernels.FANOUT
_RANGES = (np.inf, 6.0, 5.0, 4.5, 4.0, 3.5, 3.0)  # standard deviations
_SAMPLE = 1 << 16  # descriptors that the quantiser's range is tried on
_MOST = 1 << 20  # leaves to visit, or descriptors of one


class KDTreeIndex:
  """Nearest neighbours among the descriptors of the nearest leaves.

  Attributes:
    leaves: that a search visits, T in the paper; may be changed.
    threads: that build and search; all usable cores by default. The results do
      not depend on it.
    nbytes: what the index holds in memory.
  """

  def __init__(
    self,
    arrays: Mapping[str, np.ndarray],
    *,
    leaves: int,
    leaf_size: int,
    built_with: Mapping[str, Any],
    threads: int | None = None,
  ):
    """Use `build`."""
    self._arrays = {name: frozen(array) for name, array in arrays.items()}
    self._leaf_size = leaf_size
    self._built_with = dict(built_with)
    self.leaves = leaves
    self.threads = threads or exact.usable_cores()

  @property
  def nbytes(self) -> int:
    return sum(array.nbytes for array in self._arrays.values())

  def decoded(self) -> np.ndarray:
    """What the codes stand for: [n, d] float32, by row."""
    arrays = self._arrays
    numbers = arrays["codes"].astype(np.float32)
    numbers = numbers * arrays["step"] + arrays["low"]
    by_row = np.empty_like(numbers)
    by_row[arrays["rows"]] = numbers
    return by_row

  def search(
    self,
    queries: np.ndarray,
    k: int,
    *,
    exclude: tuple[int, int] | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Finds k near descriptors of each query, most of them the nearest.

    Args:
      queries: [m, d].
      k: at least 1.
      exclude: rows [start, stop) are left out; a leaf counts as visited all
        the same.

    Returns:
      distances [m, k] float32, Euclidean, ascending, and rows [m, k] int32;
      equal distances in the order of rows. Where fewer than k rows are left
      the tail is (inf, -1). The distance of a row is what `exact` says of the
      query and the row of `decoded()`, or of the descriptor itself where the
      originals are kept.

    Raises:
      InputError: if a query is not finite or has another dimension.
    """
    arrays = self._arrays
    n, d = arrays["codes"].shape
    queries = frozen(exact.checked(queries, name="query", dimension=d))
    start, stop = exact.checked_range(k, exclude, n)
    distances = np.full((len(queries), k), np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int32)
    there = n - (stop - start)
    if there == 0:
      return distances, rows
    # With the originals at hand some more candidates are measured.
    width = k + (k // 2 + 8) * (len(arrays["originals"]) > 0)
    width = min(width, there)
    level_starts = _level_starts(n, self._leaf_size)

    def look(first: int, last: int) -> None:
      kd_tree_kernels.search(
        queries[first:last],
        arrays["codes"],
        arrays["low"],
        arrays["step"],
        arrays["originals"],
        arrays["rows"],
        arrays["boxes"],
        level_starts,
        self._leaf_size,
        self.leaves,
        width,
        min(k, there),
        start,
        stop,
        distances[first:last],
        rows[first:last],
      )

    in_threads(look, len(queries), self.threads)
    return distances, rows

  def save(
    self,
    path: str | os.PathLike,
    *,
    provenance: Mapping[str, Any] | None = None,
  ) -> None:
    """Saves to an index directory; see `directory.write`."""
    directory.write(
      path,
      kind=_KIND,
      parameters={
        "leaves": self.leaves,
        "leaf_size": self._leaf_size,
        "built_with": self._built_with,
      },
      arrays=self._arrays,
      provenance=provenance or {},
    )


def build(
  descriptors: np.ndarray,
  *,
  seed: int = 0,
  leaves: int = 1280,
  leaf_size: int = 6,
  originals: bool = False,
  threads: int | None = None,
) -> KDTreeIndex:
  """Builds a KD-tree.

  The same descriptors and seed give the same bits, with any number of threads.

  Args:
    descriptors: [n, d]; n may be 0.
    seed: of the sample on which the range of the quantiser is tried.
    leaves: that a search visits: T, in the paper 1280, 5000, 10000 or 15000.
      At most leaves * leaf_size descriptors are compared with a query; FLANN's
      `checks` counts these descriptors, for its leaves hold one.
    leaf_size: descriptors of a leaf; all leaves are full but the last. Fewer
      find more at the same number of descriptors, and take more memory.
    originals: also keep the descriptors as they are, 4 d bytes each, to
      measure what was found: neighbours that are nearly as near as each other
      are then told apart.
    threads: that build and search; all usable cores by default.

  Raises:
    InputError: if a descriptor is not finite.
  """
  if not (0 < leaves <= _MOST and 0 < leaf_size <= _MOST):
    raise ValueError(f"{leaves=}, {leaf_size=}")
  threads = threads or exact.usable_cores()
  descriptors = exact.checked(descriptors, name="descriptor")
  low, step = _range(descriptors, seed)
  codes = _encode(descriptors, low, step)
  order = _plant(codes, step, leaf_size, threads)
  codes = codes[order]
  return KDTreeIndex(
    {
      "codes": codes,
      "rows": order,
      "boxes": _boxes(codes, leaf_size),
      "low": low,
      "step": step,
      "originals": descriptors if originals else descriptors[:0],
    },
    leaves=leaves,
    leaf_size=leaf_size,
    built_with={"seed": seed},
    threads=threads,
  )


def restore(
  parameters: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
  *,
  verify: bool = True,
) -> KDTreeIndex:
  """Makes the index that was saved; see `delf_jax.index.open_index`.

  Raises:
    ValueError: if the arrays do not fit together; a search would read what is
      not theirs.
  """
  index = KDTreeIndex(
    arrays,
    leaves=int(parameters["leaves"]),
    leaf_size=int(parameters["leaf_size"]),
    built_with=dict(parameters["built_with"]),
  )
  if not (0 < index.leaves <= _MOST and 0 < index._leaf_size <= _MOST):
    raise ValueError("a parameter is out of range")
  _check_shapes(arrays, index._leaf_size)
  if verify:
    _check_contents(arrays, index._leaf_size)
  return index


def _check_shapes(arrays: Mapping[str, np.ndarray], leaf_size: int) -> None:
  n, d = arrays["codes"].shape
  kept = len(arrays["originals"])
  expected = {
    "codes": (np.uint8, (n, d)),
    "rows": (np.int32, (n,)),
    "boxes": (np.uint8, (_level_starts(n, leaf_size)[-1], 2, d)),
    "low": (np.float32, (d,)),
    "step": (np.float32, (d,)),
    "originals": (np.float32, (kept, d)),
  }
  if (
    d == 0
    or kept not in (0, n)
    or any(
      arrays[name].dtype != dtype or arrays[name].shape != shape
      for name, (dtype, shape) in expected.items()
    )
  ):
    raise ValueError("its arrays do not fit together")


def _check_contents(arrays: Mapping[str, np.ndarray], leaf_size: int) -> None:
  codes, rows = arrays["codes"], arrays["rows"]
  if not (
    np.array_equal(np.sort(rows), np.arange(len(rows)))
    and np.array_equal(_boxes(codes, leaf_size), arrays["boxes"])
    and np.isfinite(arrays["low"]).all()
    and np.isfinite(arrays["step"]).all()
    and (arrays["step"] > 0).all()
    and np.isfinite(arrays["originals"]).all()
  ):
    raise ValueError("its tree does not hold what it says")


def _range(descriptors: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Learns the quantiser: a code c of a dimension stands for c * step + low.

  Of some ranges around a dimension's mean, the widest of which holds
  everything, the one with the least squared error on a sample is taken: a few
  far numbers should not coarsen the steps of all others.

  Returns:
    low [d] and step [d], float32.
  """
  n, d = descriptors.shape
  if n == 0:
    return np.zeros(d, np.float32), np.ones(d, np.float32)
  sample = descriptors
  if n > _SAMPLE:
    chosen = np.random.default_rng(seed).choice(n, _SAMPLE, replace=False)
    sample = descriptors[np.sort(chosen)]
  least, most = descriptors.min(axis=0), descriptors.max(axis=0)
  mean = sample.mean(axis=0, dtype=np.float64)
  deviation = np.maximum(sample.std(axis=0, dtype=np.float64), 1e-300)
  low, step = np.empty((2, d), np.float32)
  smallest = np.full(d, np.inf)
  for factor in _RANGES:
    tried_low = np.maximum(least, mean - factor * deviation)
    tried_high = np.minimum(most, mean + factor * deviation)
    tried_step = ((tried_high - tried_low) / 255).astype(np.float32)
    tried_low = tried_low.astype(np.float32)
    # A constant dimension has one code, whatever its step.
    tried_step[~(tried_step >= np.finfo(np.float32).tiny)] = 1
    codes = _encode(sample, tried_low, tried_step)
    error = codes * tried_step + tried_low - sample.astype(np.float64)
    error = np.square(error).sum(axis=0)
    better = error < smallest
    low[better], step[better] = tried_low[better], tried_step[better]
    smallest[better] = error[better]
  return low, step


def _encode(
  descriptors: np.ndarray, low: np.ndarray, step: np.ndarray
) -> np.ndarray:
  """[n, d] uint8, the nearest codes."""
  codes = np.empty(descriptors.shape, np.uint8)
  for start in range(0, len(descriptors), _SAMPLE):
    part = slice(start, start + _SAMPLE)
    numbers = (descriptors[part].astype(np.float64) - low) / step
    codes[part] = np.clip(np.rint(numbers), 0, 255)
  return codes


def _plant(
  codes: np.ndarray, step: np.ndarray, leaf_size: int, threads: int
) -> np.ndarray:
  """[n] int32, the rows leaf by leaf, each leaf's rows ascending.

  A node of some leaves is cut between two of them: in the middle, as nearly as
  whole boxes of the level below allow.
  """
  n = len(codes)
  order = np.arange(n, dtype=np.int32)
  weights = np.square(step.astype(np.float64))
  nodes = np.array([[0, -(-n // leaf_size)]])
  while True:
    nodes = nodes[nodes[:, 1] - nodes[:, 0] > 1]
    if not len(nodes):
      return order
    size = nodes[:, 1] - nodes[:, 0]
    unit = np.ones(len(nodes), np.int64)
    while (grow := unit * _FANOUT < size).any():
      unit[grow] *= _FANOUT
    middles = nodes[:, 0] + (size + unit) // (2 * unit) * unit
    starts, stops = nodes.T
    bounds = [
      np.minimum(leaf * leaf_size, n) for leaf in (starts, middles, stops)
    ]

    def split(first: int, last: int, bounds: list[np.ndarray] = bounds) -> None:
      kd_tree_kernels.split(codes, weights, order, *bounds, first, last)

    in_threads(split, len(nodes), threads)
    nodes = np.stack([starts, middles, middles, stops], 1).reshape(-1, 2)


def _level_starts(n: int, leaf_size: int) -> np.ndarray:
  """[levels + 1], where each level's boxes start; the leaves' come first."""
  counts = [-(-n // leaf_size)]
  while counts[-1] > _FANOUT:
    counts.append(-(-counts[-1] // _FANOUT))
  return np.cumsum([0, *counts])


def _boxes(codes: np.ndarray, leaf_size: int) -> np.ndarray:
  """[boxes, 2, d] uint8: the least and the greatest codes in each."""
  n, d = codes.shape
  starts = _level_starts(n, leaf_size)
  boxes = np.empty((starts[-1], 2, d), np.uint8)
  below, held = np.stack([codes, codes], 1), leaf_size
  for start, stop in zip(starts[:-1], starts[1:], strict=True):
    if start == stop:
      break
    firsts = np.arange(0, len(below), held)
    boxes[start:stop, 0] = np.minimum.reduceat(below[:, 0], firsts)
    boxes[start:stop, 1] = np.maximum.reduceat(below[:, 1], firsts)
    below, held = boxes[start:stop], _FANOUT
  return boxes
