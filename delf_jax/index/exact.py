"""The exact index: every query is compared with every descriptor, in JAX.

A search finds candidates with matrix products, |x|^2 - 2 q.x, which is fast but
loses digits when q and x are close. It then measures the candidates anew, as
|q - x|, and proves that nothing else can be as near: the rounding error of a
product is bounded, so whatever was not a candidate is farther than a known
distance. Where the proof fails (many descriptors are about equally far), every
row within the bound is measured. So the answer is a function of the query and
the descriptors alone, to the bit: not of the device, of how the work was
divided, or of what else was asked in the same call.
"""

import concurrent.futures
import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from delf_jax.errors import InputError
from delf_jax.index import directory

_KIND = "exact"
_SPARE = 8  # candidates beyond k, so that the proof seldom fails
_SIZES = (16, 64, 256)  # queries in a program, so that few are compiled
_LARGEST = 1e17  # the sum of squares of larger numbers may not fit float32


class ExactIndex:
  """Nearest neighbours by comparing with all.

  Attributes:
    descriptors: [n, d] float32, read-only.
    nbytes: what the index holds in memory.
  """

  def __init__(
    self,
    descriptors: np.ndarray,
    *,
    chunk: int,
    memory: int,
    device: jax.Device | None,
    approximate: bool | None,
  ):
    """Use `build`."""
    n, d = descriptors.shape
    device = device or jax.local_devices()[0]
    self._approximate = (
      device.platform == "tpu" if approximate is None else approximate
    )
    # Small tiles of scores stay in the cache of a CPU; anything else is kept
    # busy by large ones only.
    rows = chunk or (1 << 12 if device.platform == "cpu" else 1 << 16)
    self._block = _block_size(n)
    rows = -(-min(rows, max(n, 1)) // self._block) * self._block
    count = -(-n // rows)
    tiles = np.zeros((count * rows, d), np.float32)
    norms = np.full(count * rows, np.inf, np.float32)  # inf: not a descriptor
    largest = 0.0
    for part in _parts(n, rows):
      tiles[part] = descriptors[part]
      squares = np.square(tiles[part], dtype=np.float64).sum(axis=1)
      norms[part] = squares
      largest = max(largest, float(squares.max()))
    self._memory = memory
    self._programs = usable_cores() if device.platform == "cpu" else 2
    self._largest = np.sqrt(largest)
    self._device = device
    self._norms = jax.device_put(norms.reshape(count, rows), device)
    self._tiles = jax.device_put(tiles.reshape(count, rows, d), device)
    if device.platform == "cpu":
      # One copy serves both: this is a view of what JAX holds.
      descriptors = np.asarray(self._tiles).reshape(-1, d)[:n]
    self.descriptors = descriptors.view()
    self.descriptors.flags.writeable = False

  @property
  def nbytes(self) -> int:
    held = self._tiles.nbytes + self._norms.nbytes
    return held + (self._device.platform != "cpu") * self.descriptors.nbytes

  def search(
    self,
    queries: np.ndarray,
    k: int,
    *,
    exclude: tuple[int, int] | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Finds the k nearest descriptors of each query.

    Args:
      queries: [m, d].
      k: at least 1.
      exclude: rows [start, stop) are left out.

    Returns:
      distances [m, k] float32, Euclidean, ascending, and rows [m, k] int32;
      equal distances in the order of rows. Where fewer than k rows are left
      the tail is (inf, -1).

    Raises:
      InputError: if a query is not finite or has another dimension.
    """
    n, d = self.descriptors.shape
    queries = checked(queries, name="query", dimension=d)
    start, stop = checked_range(k, exclude, n)
    distances = np.full((len(queries), k), np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int32)
    if n == 0:
      return distances, rows
    count = -(-(k + _SPARE) // _SPARE) * _SPARE
    size = self._query_count(len(queries), count)

    def answer(part: slice) -> None:
      asked = queries[part]
      found = _candidates(
        self._padded(asked, size),
        self._tiles,
        self._norms,
        start,
        stop,
        block=self._block,
        count=count,
        approximate=self._approximate,
      )
      scores, candidates, rest = (np.asarray(a)[: len(asked)] for a in found)
      candidates = np.where(np.isfinite(scores), candidates, -1)
      near, near_rows = rank(asked, self.descriptors, candidates, k)
      # Rows that are no candidates score at least as much as the last one, or
      # as the rest. A last one of inf says that there are none.
      last = np.minimum(scores[:, -1], rest).astype(np.float64)
      if scores.shape[1] == self._norms.size:
        last[:] = np.inf
      norms = np.square(asked, dtype=np.float64).sum(axis=1)
      error = self._score_error(norms)
      # The factor spans the rounding of a distance to float32.
      reach = np.square(near[:, -1].astype(np.float64) * (1 + 2.0**-22))
      unproven = np.flatnonzero(
        np.isfinite(last) & ~(reach < last + norms - error)
      )
      if len(unproven):
        limits = (reach - norms + error)[unproven]
        near[unproven], near_rows[unproven] = self._measure_within(
          asked[unproven], limits, k, start, stop
        )
      distances[part], rows[part] = near, near_rows

    # Several programs side by side keep the cores busier than one wide one,
    # and any device while the answers of another are sorted here.
    with concurrent.futures.ThreadPoolExecutor(self._programs) as pool:
      list(pool.map(answer, _parts(len(queries), size)))
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
      parameters={},
      arrays={"descriptors": self.descriptors},
      provenance=provenance or {},
    )

  def _query_count(self, m: int, count: int) -> int:
    """How many queries a program takes: one of few sizes, within memory."""
    blocks = self._norms.size // self._block
    each = 4 * (
      self._norms.shape[1]
      + blocks
      + min(count, blocks) * self._block * (self.descriptors.shape[1] + 1)
    )
    few, some, many = _SIZES
    size = few if m <= few else some if m <= 2 * some * self._programs else many
    while size > 1 and self._programs * size * each > self._memory:
      size //= 2
    return size

  def _padded(self, queries: np.ndarray, size: int) -> jax.Array:
    padded = np.zeros((size, queries.shape[1]), np.float32)
    padded[: len(queries)] = queries
    return jax.device_put(padded, self._device)

  def _score_error(self, norms: np.ndarray) -> np.ndarray:
    """Bounds how far a score can be off, for queries of given squared norms.

    A sum of d float32 products, in any order, is off by at most about
    d 2^-24 |q| |x|; the norm and the difference add a few roundings. The bound
    is doubled. The last term is for numbers that are flushed to zero.
    """
    d = self.descriptors.shape[1]
    size = self._largest * (self._largest + 2 * np.sqrt(norms))
    return 2 * (d + 4) * 2.0**-24 * size + d * 1e-36

  def _measure_within(
    self,
    queries: np.ndarray,
    limits: np.ndarray,
    k: int,
    start: int,
    stop: int,
  ) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of all rows whose scores are within each query's limit."""
    n = len(self.descriptors)
    near = np.full((len(queries), k), np.inf, np.float32)
    near_rows = np.full((len(queries), k), -1, np.int32)
    size = max(1, min(_SIZES[0], self._memory // (4 * self._norms.size)))
    for part in _parts(len(queries), size):
      found = _scores(
        self._padded(queries[part], size),
        self._tiles,
        self._norms,
        start,
        stop,
      )
      for i, scores in zip(
        range(part.start, part.stop), np.asarray(found), strict=False
      ):
        # Rounded up, for the scores are float32.
        limit = np.nextafter(np.float32(limits[i]), np.float32(np.inf))
        rows = np.flatnonzero(scores[:n] <= limit).astype(np.int32)
        for piece in _parts(len(rows), 1 << 16):
          both = np.concatenate([near_rows[i], rows[piece]])
          near[i], near_rows[i] = (
            a[0]
            for a in rank(queries[i, None], self.descriptors, both[None], k)
          )
    return near, near_rows


def build(
  descriptors: np.ndarray,
  *,
  chunk: int = 0,
  memory: int = 1 << 28,
  device: jax.Device | None = None,
  approximate: bool | None = None,
) -> ExactIndex:
  """Builds an exact index.

  Args:
    descriptors: [n, d]; n may be 0.
    chunk: descriptors that are compared at a time; 0 chooses by the device.
    memory: bytes of intermediate results that a search may take.
    device: where the descriptors live; the first one by default.
    approximate: find candidates by `jax.lax.approx_min_k`, which TPUs have
      hardware for and is the default there. The answer stays exact: what it
      missed is bounded like everything else.

  Raises:
    InputError: if a descriptor is not finite.
  """
  return ExactIndex(
    checked(descriptors, name="descriptor"),
    chunk=chunk,
    memory=memory,
    device=device,
    approximate=approximate,
  )


def restore(
  parameters: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
  *,
  verify: bool = True,
) -> ExactIndex:
  """Makes the index that was saved; see `delf_jax.index.open_index`."""
  del parameters, verify  # it has none, and `build` looks at every number
  if arrays["descriptors"].dtype != np.float32:
    raise ValueError("the descriptors are not float32")
  return build(arrays["descriptors"])


def rank(
  queries: np.ndarray, descriptors: np.ndarray, rows: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """Measures candidates and sorts them by (distance, row).

  A distance is |q - x| in double precision, its squares added in the order of
  the dimensions, rounded to float32: so it depends on nothing but q and x.

  Args:
    queries: [m, d] float32.
    descriptors: [n, d] float32.
    rows: [m, c], a query's candidates, none of them twice; -1 is none.
    k: how many to keep.

  Returns:
    distances [m, k] float32 and rows [m, k] int32; (inf, -1) after the last.
  """
  m, c = rows.shape
  distances = np.full((m, c), np.inf, np.float32)
  # In parts that stay in a cache.
  for part in _parts(m, max(1, (1 << 17) // max(1, c * queries.shape[1]))):
    near = descriptors[rows[part]].astype(np.float64)
    near -= queries[part, None]
    squares = np.zeros(rows[part].shape)
    for difference in np.moveaxis(near, -1, 0):
      squares += np.square(difference)
    distances[part] = np.where(rows[part] < 0, np.inf, np.sqrt(squares))
  # Missing ones after candidates at any distance.
  keys = np.where(rows < 0, np.iinfo(np.int64).max, rows.astype(np.int64))
  order = np.lexsort((keys, distances), axis=-1)[:, :k]
  near = np.full((m, k), np.inf, np.float32)
  near_rows = np.full((m, k), -1, np.int32)
  near[:, : order.shape[1]] = np.take_along_axis(distances, order, axis=1)
  near_rows[:, : order.shape[1]] = np.take_along_axis(rows, order, axis=1)
  return near, near_rows


def checked(
  vectors: np.ndarray, *, name: str, dimension: int | None = None
) -> np.ndarray:
  """Returns [n, d] float32, contiguous, after looking at every number.

  Raises:
    InputError: if one is not finite, or the dimension is not the given one.
  """
  vectors = np.asarray(vectors)
  if vectors.ndim != 2 or not vectors.shape[1]:
    raise ValueError(f"{name}s must be [n, d], not {vectors.shape}")
  if dimension is not None and vectors.shape[1] != dimension:
    raise InputError(
      f"the {name} has {vectors.shape[1]} dimensions and the index {dimension};"
      " extract both with the same features"
    )
  vectors = np.ascontiguousarray(vectors, np.float32)
  for part in _parts(len(vectors), 1 << 16):
    # Not a number is not less either.
    good = (np.abs(vectors[part]) < _LARGEST).all(axis=1)
    if not good.all():
      row = part.start + int(np.argmin(good))
      raise InputError(
        f"{name} {row} holds a number that is not finite or too large; extract "
        "its photograph again"
      )
  return vectors


def checked_range(
  k: int, exclude: tuple[int, int] | None, n: int
) -> tuple[int, int]:
  """Returns the excluded rows as a range within [0, n)."""
  if k < 1:
    raise ValueError(f"k must be at least 1, not {k}")
  start, stop = exclude or (0, 0)
  if not 0 <= start <= stop:
    raise ValueError(f"exclude must be a range of rows, not {exclude}")
  return min(start, n), min(stop, n)


def _block_size(n: int) -> int:
  """How many rows share a best score.

  Selecting blocks costs time with n / block, looking into them with block; the
  two were measured to be equal at about this size.
  """
  return 1 << round(np.log2(max(8.0, np.sqrt(n / 1000))))


def usable_cores() -> int:
  """How many cores this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _parts(count: int, size: int) -> Iterator[slice]:
  for start in range(0, count, size):
    yield slice(start, min(start + size, count))


def _masked(norms: jax.Array, start: int, stop: int) -> jax.Array:
  rows = jnp.arange(norms.size).reshape(norms.shape)
  return jnp.where((rows >= start) & (rows < stop), jnp.inf, norms)


def _score(queries: jax.Array, tile: jax.Array, norms: jax.Array) -> jax.Array:
  products = jnp.einsum(
    "md,rd->mr", queries, tile, precision=jax.lax.Precision.HIGHEST
  )
  return norms[None, :] - 2 * products


@jax.jit
def _scores(
  queries: jax.Array, tiles: jax.Array, norms: jax.Array, start: int, stop: int
) -> jax.Array:
  """[m, n + padding] squared distances, less each query's squared norm."""
  scores = _score(
    queries,
    tiles.reshape(-1, tiles.shape[-1]),
    _masked(norms, start, stop).reshape(-1),
  )
  return scores


@functools.partial(jax.jit, static_argnames=("block", "count", "approximate"))
def _candidates(
  queries: jax.Array,
  tiles: jax.Array,
  norms: jax.Array,
  start: int,
  stop: int,
  *,
  block: int,
  count: int,
  approximate: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The lowest scores and their rows, [m, count] or as many as there are.

  In two steps, for a selection from n columns takes longer than their scores:
  the blocks with the lowest scores hold all the lowest scores, and their
  scores are computed once more. If the blocks are chosen approximately, most
  of the lowest scores are found.

  Returns:
    scores, rows, and [m] the lowest score in the blocks that were not chosen
    (inf where the choice is exact: then none is lower than the last).
  """
  m, d = queries.shape
  norms = _masked(norms, start, stop)

  def lowest(_: None, tile: tuple[jax.Array, jax.Array]):
    scores = _score(queries, *tile)
    return None, scores.reshape(m, -1, block).min(axis=-1)

  _, minima = jax.lax.scan(lowest, None, (tiles, norms))
  minima = jnp.moveaxis(minima, 0, 1).reshape(m, -1)
  choose = jax.lax.approx_max_k if approximate else jax.lax.top_k
  _, blocks = choose(-minima, min(count, minima.shape[1]))
  rest = jnp.full(m, jnp.inf)
  if approximate:
    taken = jax.vmap(lambda line, places: line.at[places].set(jnp.inf))
    rest = taken(minima, blocks).min(axis=1)
  members = tiles.reshape(-1, block, d)[blocks]  # [m, b, block, d]
  products = jnp.einsum(
    "md,mbrd->mbr", queries, members, precision=jax.lax.Precision.HIGHEST
  )
  scores = norms.reshape(-1, block)[blocks] - 2 * products
  rows = blocks[:, :, None] * block + jnp.arange(block)[None, None, :]
  scores, rows = scores.reshape(m, -1), rows.reshape(m, -1)
  scores, chosen = jax.lax.top_k(-scores, min(count, scores.shape[1]))
  return -scores, jnp.take_along_axis(rows, chosen, axis=1), rest
