"""FAISS behind our interface, for those who pip install 'delf_jax[faiss]'.

Any index that `faiss.index_factory` can make, with Euclidean distances. The
default is a full comparison for small sets, lists of whole descriptors for
larger ones, and lists of 8-bit descriptors beyond some million.

What is saved is what FAISS wrote. The checksums of the directory say that it is
what was saved, not that it is harmless: FAISS reads it in C++, which was not
made for files that are meant to deceive. Open only what you trust.
"""

import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from delf_jax.errors import InputError
from delf_jax.index import directory, exact

_KIND = "faiss"
_FLAT_UP_TO = 1 << 16  # descriptors; more are put in lists
_WHOLE_UP_TO = 1 << 22  # descriptors; the lists of more hold codes
_SPARE = 32  # neighbours beyond k, for excluded ones
_ONLY_DIRECT = (1 << 31) - 1  # queries at once


class FaissIndex:
  """Nearest neighbours by FAISS.

  Attributes:
    threads: that build and search; all usable cores by default. The results do
      not depend on it.
    nbytes: what FAISS writes, which is about what it holds in memory.
  """

  def __init__(
    self,
    index: Any,
    *,
    built_with: Mapping[str, Any],
    threads: int | None = None,
  ):
    """Use `build`."""
    self._index = index
    self._built_with = dict(built_with)
    self.threads = threads or exact.usable_cores()

  @functools.cached_property
  def nbytes(self) -> int:
    return self._written().nbytes

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
      exclude: rows [start, stop) are left out.

    Returns:
      distances [m, k] float32, Euclidean as FAISS measures them, to its codes
      where it keeps codes, ascending; and rows [m, k] int32; equal distances in
      the order of rows. Where fewer than k rows are left the tail is
      (inf, -1). Queries for which FAISS finds fewer are answered by `exact`.

    Raises:
      InputError: if a query is not finite or has another dimension.
    """
    n = self._index.ntotal
    queries = exact.checked(queries, name="query", dimension=self._index.d)
    start, stop = exact.checked_range(k, exclude, n)
    distances = np.full((len(queries), k), np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int32)
    span = stop - start
    wanted = min(k, n - span)
    if wanted == 0:
      return distances, rows
    left = np.arange(len(queries))
    # Excluded rows are found and dropped; seldom are there many of them.
    for count in sorted({k + min(span, _SPARE), k + span}):
      if len(left):
        distances[left], rows[left] = self._ask(
          queries[left], k, min(count, n), start, stop
        )
        left = left[rows[left, wanted - 1] < 0]
    if len(left):
      distances[left], rows[left] = self._exact.search(
        queries[left], k, exclude=exclude
      )
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
      parameters={"built_with": self._built_with},
      arrays={"written": self._written()},
      provenance=provenance or {},
    )

  def _written(self) -> np.ndarray:
    return _faiss().serialize_index(self._index)

  def _ask(
    self, queries: np.ndarray, k: int, count: int, start: int, stop: int
  ) -> tuple[np.ndarray, np.ndarray]:
    _faiss().omp_set_num_threads(self.threads)
    squares, rows = self._index.search(queries, count)
    rows = np.where((rows >= start) & (rows < stop), -1, rows)
    distances = np.sqrt(np.maximum(squares, 0))
    distances = np.where(rows < 0, np.float32(np.inf), distances)
    order = np.lexsort((rows, distances), axis=-1)[:, :k]
    near = np.full((len(queries), k), np.inf, np.float32)
    near_rows = np.full((len(queries), k), -1, np.int32)
    width = order.shape[1]
    near[:, :width] = np.take_along_axis(distances, order, axis=1)
    near_rows[:, :width] = np.take_along_axis(rows, order, axis=1)
    return near, near_rows

  @functools.cached_property
  def _exact(self) -> exact.ExactIndex:
    # A second copy of the descriptors, made only when FAISS falls short.
    return exact.build(self._index.reconstruct_n(0, self._index.ntotal))


def build(
  descriptors: np.ndarray,
  *,
  seed: int = 0,
  factory: str | None = None,
  settings: str | None = None,
  threads: int | None = None,
) -> FaissIndex:
  """Builds an index of FAISS.

  The same descriptors and seed give the same bits on one machine.

  Args:
    descriptors: [n, d]; n may be 0.
    seed: of k-means, product quantisers and the levels of HNSW.
    factory: for `faiss.index_factory`, such as "HNSW32" or
      "IVF4096,PQ20x4fs,Refine(SQ8)"; chosen by n when None.
    settings: for searches, as `faiss.ParameterSpace` reads them, such as
      "efSearch=64" or "nprobe=32,k_factor_rf=8".
    threads: that build and search; all usable cores by default.

  Raises:
    InputError: if FAISS is not installed, a descriptor is not finite, or FAISS
      refuses the factory or the settings.
  """
  faiss = _faiss()
  threads = threads or exact.usable_cores()
  descriptors = exact.checked(descriptors, name="descriptor")
  n, d = descriptors.shape
  if factory is None:
    factory, chosen = _default(n, d)
    settings = chosen if settings is None else settings
  settings = settings or ""
  try:
    index = faiss.index_factory(d, factory, faiss.METRIC_L2)
    _sow(index, seed)
    # Threads race to add to a graph.
    faiss.omp_set_num_threads(1 if "HNSW" in factory else threads)
    if n:
      index.train(descriptors)
      index.add(descriptors)
    if settings:
      faiss.ParameterSpace().set_index_parameters(index, settings)
  except (AssertionError, RuntimeError) as error:
    reason = str(error).rpartition(": ")[2] or "no reason given"
    raise InputError(
      f"FAISS cannot index {n} descriptors as {factory!r} with settings "
      f"{settings!r} ({reason}); give another factory or other settings"
    ) from error
  return FaissIndex(
    index,
    built_with={
      "seed": seed,
      "factory": factory,
      "settings": settings,
      "faiss": faiss.__version__,
      "n": n,
      "d": d,
    },
    threads=threads,
  )


def restore(
  parameters: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
  *,
  verify: bool = True,
) -> FaissIndex:
  """Makes the index that was saved; see `delf_jax.index.open_index`.

  Raises:
    InputError: if FAISS is not installed.
    ValueError: if FAISS cannot read it, or it is not what was built.
  """
  del verify  # FAISS looks at what it looks at
  faiss = _faiss()
  built_with = dict(parameters["built_with"])
  written = arrays["written"]
  if written.dtype != np.uint8 or written.ndim != 1:
    raise ValueError("what FAISS wrote is no row of bytes")
  try:
    index = faiss.deserialize_index(written)
  except RuntimeError as error:
    raise ValueError(f"FAISS cannot read it: {error}") from error
  if (
    [index.ntotal, index.d] != [built_with["n"], built_with["d"]]
    or index.metric_type != faiss.METRIC_L2
    or (index.ntotal and not index.is_trained)
  ):
    raise ValueError("FAISS read another index than the one that was built")
  return FaissIndex(index, built_with=built_with)


@functools.cache
def _faiss() -> Any:
  try:
    import faiss
  except ImportError as error:
    raise InputError(
      "FAISS is not installed; pip install 'delf_jax[faiss]', or choose "
      "another kind of index"
    ) from error
  # FAISS compares many queries at once by matrix products, which round
  # otherwise than for a few: an answer would depend on its company.
  faiss.cvar.distance_compute_blas_threshold = _ONLY_DIRECT
  return faiss


def _default(n: int, d: int) -> tuple[str, str]:
  """The factory and settings for n descriptors of d dimensions."""
  if n <= _FLAT_UP_TO:
    return "Flat", ""
  lists = 1 << round(np.log2(4 * n**0.5))
  if n <= _WHOLE_UP_TO:
    return f"IVF{lists},Flat", "nprobe=32"
  return f"IVF{lists},SQ8", "nprobe=64"


def _sow(index: Any, seed: int) -> None:
  """Seeds what is random in an index, and keeps k-means from complaining."""
  faiss = _faiss()
  inner = faiss.downcast_index(getattr(index, "base_index", index))
  lists = faiss.try_extract_index_ivf(index)
  parts = [inner]
  if lists is not None:
    parts.append(faiss.downcast_index(lists))
    lists.cp.seed = seed
    lists.cp.min_points_per_centroid = 1
  for part in parts:
    if hasattr(part, "pq"):
      part.pq.cp.seed = seed
      part.pq.cp.min_points_per_centroid = 1
    if hasattr(part, "hnsw"):
      part.hnsw.rng = faiss.RandomGenerator(seed)
