"""The graph index: a walk over a graph of near neighbours.

Every distinct descriptor is a vertex, joined to near ones in several
directions. A search enters at the leaves of a tree of hyperplanes where the
query falls, and always goes on from the nearest vertex that it has not left
yet, until that is clearly farther than the k-th nearest found. It looks at a
few hundred of any number of descriptors and finds most of the nearest.

The neighbours come from `exact` for small sets and from pynndescent's
NN-descent for large ones (Dong, Moses and Li, "Efficient k-nearest neighbor
graph construction for generic similarity measures", WWW 2011). The walk is
compiled here rather than taken from pynndescent, and of pynndescent only its
public `neighbor_graph` is used. So an opened index needs nothing that
pynndescent keeps to itself, and a program that searches loads neither it nor
what it compiles (the first search of a process takes 0.3 s, and 3 s once on a
machine, instead of up to a minute); a query's answer does not depend on the
other queries of the call; excluded rows cost no neighbours; and threads share
the work without changing a bit of the result.
"""

import concurrent.futures
import functools
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from delf_jax.index import directory, exact, graph_kernels

_KIND = "graph"
_LEAF = 16  # at most so many vertices in a leaf
_NARROWEST = 10  # the nearest that a walk keeps, however few are asked for
_PIECE = 256  # queries or vertices that a thread takes at a time


class GraphIndex:
  """Nearest neighbours by walking a graph.

  Attributes:
    threads: that build and search; all usable cores by default. The results do
      not depend on it.
    nbytes: what the index holds in memory.
  """

  def __init__(
    self,
    arrays: Mapping[str, np.ndarray],
    *,
    epsilon: float,
    leaves: int,
    built_with: Mapping[str, Any],
    threads: int | None = None,
  ):
    """Use `build`."""
    self._arrays = {name: _frozen(array) for name, array in arrays.items()}
    self._epsilon = epsilon
    self._leaves = leaves
    self._built_with = dict(built_with)
    self.threads = threads or exact.usable_cores()

  @property
  def nbytes(self) -> int:
    return sum(array.nbytes for array in self._arrays.values())

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
      distances [m, k] float32, Euclidean, ascending, and rows [m, k] int32;
      equal distances in the order of rows. Where fewer than k rows are left
      the tail is (inf, -1). The distance of a row is that of `exact`, to the
      bit; queries whose walk found fewer than k are answered by `exact`.

    Raises:
      InputError: if a query is not finite or has another dimension.
    """
    vertices, members = self._arrays["vertices"], self._arrays["members"]
    n, d = len(members), vertices.shape[1]
    queries = _frozen(exact.checked(queries, name="query", dimension=d))
    start, stop = exact.checked_range(k, exclude, n)
    distances = np.full((len(queries), k), np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int32)
    wanted = min(k, n - (stop - start))
    if wanted == 0:
      return distances, rows
    width = min(max(k, _NARROWEST), n)

    def walk(first: int, last: int) -> None:
      graph_kernels.walk(
        queries[first:last],
        vertices,
        self._arrays["edge_start"],
        self._arrays["edges"],
        self._arrays["member_start"],
        members,
        self._arrays["normals"],
        self._arrays["offsets"],
        self._leaves,
        1 + self._epsilon,
        width,
        start,
        stop,
        distances[first:last],
        rows[first:last],
      )

    _in_threads(walk, len(queries), self.threads)
    short = np.flatnonzero(rows[:, wanted - 1] < 0)
    if len(short):
      distances[short], rows[short] = self._exact.search(
        queries[short], k, exclude=exclude
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
      parameters={
        "epsilon": self._epsilon,
        "leaves": self._leaves,
        "built_with": self._built_with,
      },
      arrays=self._arrays,
      provenance=provenance or {},
    )

  @functools.cached_property
  def _exact(self) -> exact.ExactIndex:
    # A second copy of the descriptors, made only when a walk falls short.
    vertices, members = self._arrays["vertices"], self._arrays["members"]
    descriptors = np.empty((len(members), vertices.shape[1]), np.float32)
    descriptors[members] = np.repeat(
      vertices, np.diff(self._arrays["member_start"]), axis=0
    )
    return exact.build(descriptors)


def build(
  descriptors: np.ndarray,
  *,
  seed: int = 0,
  n_neighbors: int = 30,
  epsilon: float = 0.2,
  leaves: int = 4,
  exact_up_to: int = 1 << 16,
  threads: int | None = None,
) -> GraphIndex:
  """Builds a graph index.

  The same descriptors and seed give the same bits, in any process and with any
  number of threads.

  Args:
    descriptors: [n, d]; n may be 0.
    seed: of the tree and of NN-descent.
    n_neighbors: near ones that each vertex is joined to, before joins that
      others make needless are dropped.
    epsilon: a search goes on while the nearest vertex ahead is, in squared
      distance, within 1 + epsilon of the k-th nearest found: more finds more,
      and takes longer.
    leaves: of the tree, from which a search starts.
    exact_up_to: so many distinct descriptors get their true nearest
      neighbours; beyond, NN-descent finds most of them in less time. It
      compiles for about 20 s in every process.
    threads: that build and search; all usable cores by default.

  Raises:
    InputError: if a descriptor is not finite.
  """
  if n_neighbors < 1 or epsilon < 0 or not 1 <= leaves <= graph_kernels.WIDEST:
    raise ValueError(f"{n_neighbors=}, {epsilon=}, {leaves=}")
  threads = threads or exact.usable_cores()
  descriptors = exact.checked(descriptors, name="descriptor")
  first, vertex_of = _distinct(descriptors)
  order, normals, offsets = _plant(descriptors[first], seed, threads)
  vertices = descriptors[first[order]]
  rank = np.empty(len(order), np.int32)
  rank[order] = np.arange(len(order), dtype=np.int32)
  vertex_of = rank[vertex_of]
  if len(vertices) <= max(exact_up_to, 2 * n_neighbors):
    method = "exact"
    neighbours = exact.build(vertices).search(vertices, n_neighbors + 1)[1]
  else:
    neighbours, method = _descend(vertices, n_neighbors, seed)
  edge_start, edges = _join(vertices, neighbours, threads)
  return GraphIndex(
    {
      "vertices": vertices,
      "edge_start": edge_start,
      "edges": edges,
      "member_start": _starts(vertex_of, len(vertices)).astype(np.int32),
      "members": np.argsort(vertex_of, kind="stable").astype(np.int32),
      "normals": normals,
      "offsets": offsets,
    },
    epsilon=epsilon,
    leaves=leaves,
    built_with={
      "seed": seed,
      "n_neighbors": n_neighbors,
      "neighbours": method,
    },
    threads=threads,
  )


def restore(
  parameters: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
  *,
  verify: bool = True,
) -> GraphIndex:
  """Makes the index that was saved; see `delf_jax.index.open_index`.

  Raises:
    ValueError: if the arrays do not fit together; a search would read what is
      not theirs.
  """
  index = GraphIndex(
    arrays,
    epsilon=float(parameters["epsilon"]),
    leaves=int(parameters["leaves"]),
    built_with=dict(parameters["built_with"]),
  )
  _check_shapes(arrays)
  if not (index._epsilon >= 0 and 1 <= index._leaves <= graph_kernels.WIDEST):
    raise ValueError("a parameter is out of range")
  if verify:
    _check_contents(arrays)
  return index


def _check_shapes(arrays: Mapping[str, np.ndarray]) -> None:
  dtypes = {
    "vertices": np.float32,
    "edge_start": np.int64,
    "edges": np.int32,
    "member_start": np.int32,
    "members": np.int32,
    "normals": np.float32,
    "offsets": np.float32,
  }
  count, d = arrays["vertices"].shape
  nodes = len(arrays["offsets"])
  shapes = {
    "edge_start": (count + 1,),
    "edges": (arrays["edges"].size,),
    "member_start": (count + 1,),
    "members": (arrays["members"].size,),
    "normals": (nodes, d),
    "offsets": (nodes,),
  }
  if (
    any(arrays[name].dtype != dtype for name, dtype in dtypes.items())
    or any(arrays[name].shape != shape for name, shape in shapes.items())
    or nodes & (nodes + 1)
  ):
    raise ValueError("its arrays do not fit together")


def _check_contents(arrays: Mapping[str, np.ndarray]) -> None:
  count, n = len(arrays["vertices"]), len(arrays["members"])

  def climbs(starts: np.ndarray, end: int) -> bool:
    return starts[0] == 0 and starts[-1] == end and (np.diff(starts) >= 0).all()

  edges, members = arrays["edges"], arrays["members"]
  if not (
    climbs(arrays["edge_start"], len(edges))
    and climbs(arrays["member_start"], n)
    and (edges >= 0).all()
    and (edges < count).all()
    and np.array_equal(np.sort(members), np.arange(n))
    and np.isfinite(arrays["vertices"]).all()
  ):
    raise ValueError("its graph leads nowhere")


def _distinct(descriptors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The first row of each distinct descriptor, and [n] which one a row has.

  A descriptor that occurs often would otherwise be joined to its copies alone.
  """
  n, d = descriptors.shape
  whole = descriptors.view(np.dtype((np.void, 4 * d))).reshape(n)
  _, first, inverse = np.unique(whole, return_index=True, return_inverse=True)
  return first, inverse.reshape(n)


def _plant(
  points: np.ndarray, seed: int, threads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Plants a balanced tree of hyperplanes.

  Every node halves its points at the median of their projections on their
  direction of largest variance, estimated from a sample. Node i has the
  children 2 i + 1 and 2 i + 2; the positions [a, b) of a node become [a, m)
  and [m, b) with m = (a + b) // 2, so they need not be stored.

  Returns:
    order [n]: the points leaf by leaf; normals [nodes, d] and offsets [nodes]:
    a point with normal . x + offset < 0 belongs to the first child.
  """
  n, d = points.shape
  depth = (max(1, -(-n // _LEAF)) - 1).bit_length()
  generator = np.random.default_rng(seed)
  order = np.arange(n)
  normals = generator.standard_normal(((1 << depth) - 1, d), np.float32)
  offsets = np.empty(len(normals), np.float32)
  projections = np.empty(n, np.float32)
  bounds = np.array([0, n])
  for level in range(depth):
    nodes = slice((1 << level) - 1, (2 << level) - 1)
    _in_threads(
      functools.partial(
        graph_kernels.project,
        points,
        order,
        bounds,
        normals[nodes],
        projections,
      ),
      1 << level,
      threads,
    )
    # Sorted within each node; equal projections stay in order.
    node_of = np.repeat(np.arange(1 << level), np.diff(bounds))
    sorting = np.lexsort((projections, node_of))
    order = order[sorting]
    middles = (bounds[:-1] + bounds[1:]) // 2
    offsets[nodes] = -projections[sorting[middles]]
    bounds = np.append(np.stack([bounds[:-1], middles], 1).ravel(), n)
  return order, normals, offsets


def _descend(
  vertices: np.ndarray, n_neighbors: int, seed: int
) -> tuple[np.ndarray, str]:
  """[n, n_neighbors + 1] near vertices of each by NN-descent, and by whose."""
  import pynndescent  # seconds to load, and small sets do without

  with warnings.catch_warnings():
    # Where it finds too few, the graph has fewer edges; a search that comes
    # to its end for want of edges is answered by `exact`.
    warnings.filterwarnings(
      "ignore", "Failed to correctly find n_neighbors", UserWarning
    )
    descent = pynndescent.NNDescent(
      vertices,
      metric="euclidean",
      n_neighbors=n_neighbors + 1,
      random_state=seed,
      # The result depends on the number of threads, and is no slower to get
      # with one: pynndescent's threads wait for each other most of the time.
      n_jobs=1,
    )
    neighbours, _ = descent.neighbor_graph
  return neighbours, f"pynndescent {pynndescent.__version__}"


def _join(
  vertices: np.ndarray, neighbours: np.ndarray, threads: int
) -> tuple[np.ndarray, np.ndarray]:
  """Makes the graph that is walked.

  Of each vertex's neighbours those are kept that are nearer to it than to any
  kept one (relative neighbourhoods: one edge a direction); edges lead both
  ways; each vertex keeps its shortest, half as many again as it had neighbours.

  Returns:
    edge_start [n + 1] int64, edges int32: the vertices that v is joined to are
    edges[edge_start[v] : edge_start[v + 1]].
  """
  n, width = neighbours.shape
  kept = np.empty((n, width), np.int32)
  squares = np.empty((n, width), np.float32)
  _in_threads(
    functools.partial(
      graph_kernels.prune,
      vertices,
      np.ascontiguousarray(neighbours, np.int32),
      kept,
      squares,
    ),
    n,
    threads,
  )
  there = kept >= 0
  source = np.repeat(np.arange(n), there.sum(axis=1))
  target = kept[there].astype(np.int64)
  # Both ways, each once; int64, for n * n is large.
  pairs, unique = np.unique(
    np.concatenate([source * n + target, target * n + source]),
    return_index=True,
  )
  lengths = np.tile(squares[there], 2)[unique]
  source, target = np.divmod(pairs, max(n, 1))
  by_length = np.lexsort((target, lengths, source))
  source, target = source[by_length], target[by_length]
  place = np.arange(len(source)) - _starts(source, n)[source]
  short = place < width * 3 // 2
  return _starts(source[short], n), target[short].astype(np.int32)


def _starts(owners: np.ndarray, count: int) -> np.ndarray:
  """[count + 1] int64, where each owner's items start once they are sorted."""
  starts = np.zeros(count + 1, np.int64)
  np.cumsum(np.bincount(owners, minlength=count), out=starts[1:])
  return starts


def _frozen(array: np.ndarray) -> np.ndarray:
  # Compiled functions are made for read-only arrays, which mapped ones are.
  array = np.ascontiguousarray(array).view()
  array.flags.writeable = False
  return array


def _in_threads(
  work: Callable[[int, int], None], count: int, threads: int
) -> None:
  """Calls work(first, last) for parts of range(count), several at a time."""
  size = min(_PIECE, max(8, -(-count // threads)))
  starts = range(0, count, size)
  stops = [min(start + size, count) for start in starts]
  if threads == 1 or len(starts) < 2:
    for start, stop in zip(starts, stops, strict=True):
      work(start, stop)
    return
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    list(pool.map(work, starts, stops))
