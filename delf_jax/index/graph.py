"""The graph index: a walk over a graph of near neighbours.

Every distinct descriptor is a vertex, joined to near ones in several
directions. A search enters at the leaves of a tree of hyperplanes where the
query falls, and always goes on from the nearest vertices that it has not left
yet, until these are clearly farther than the k-th nearest found. It looks at a
few hundred of any number of descriptors and finds most of the nearest.

The neighbours of large sets come from pynndescent's NN-descent (Dong, Moses and
Li, "Efficient k-nearest neighbor graph construction for generic similarity
measures", WWW 2011). It compiles for 17 s in every process, because
pynndescent's parallel functions are not kept on disk; so small sets are built
with the walk itself (`builder="walk"`): a coarse graph joins what falls
together in the leaves of several random trees, a walk on it, from every vertex,
finds better neighbours, and a walk among those better ones still. That takes
less time and half the memory at any size (`tests/benchmarks/index.py`).

Searching is compiled here and kept on disk (about 10 s once on a machine), so a
process that opens an index answers within a second, and needs nothing that
pynndescent keeps to itself. A query's answer depends neither on the other
queries of the call nor on threads, and excluded rows cost no neighbours.
"""

import functools
import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from delf_jax.errors import InputError
from delf_jax.index import (
  directory,
  exact,
  graph_build_kernels,
  graph_kernels,
)
from delf_jax.index.threads import frozen, in_threads

PRECISIONS = ("float32", "float16", "int8")
BUILDERS = ("pynndescent", "walk")

_KIND = "graph"
_LEAF = 32  # at most so many vertices in a leaf of the tree of a search
_ROUNDS = 4  # of the power iteration: directions of large variance part best
_NARROWEST = 10  # the nearest that a walk keeps, however few are asked for
_FEW = 64  # queries are sooner answered than a thread is started
_PART = 1 << 16  # vertices that are converted at a time

# Up to so many vertices are not worth what pynndescent compiles.
_MOST_WALKED = 1 << 16
# For the coarse graph. One round of the power iteration leaves enough chance
# in the hyperplanes for the trees to differ.
_TREES = 8
_TREE_LEAF = 128
_TREE_ROUNDS = 1
_COARSE = 24  # neighbours of a vertex
# For the walks that better it: where they start and how far they look.
_WALKS = 2
_WALK_LEAVES = 2
_WALK_EPSILON = 0.1
# Vertices keep 7 neighbours on average and have 10 to 14 edges.
_MOST_KEPT = 16
_MOST_EDGES = graph_kernels.MOST_EDGES


class GraphIndex:
  """Nearest neighbours by walking a graph.

  Attributes:
    threads: that build and search; all usable cores by default. The results do
      not depend on it.
    epsilon: how far a search looks; see `build`.
    precision: of the stored descriptors.
    descriptors: [n, d] float32, as they are stored; made at every call.
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
    self._arrays = {name: frozen(array) for name, array in arrays.items()}
    self._graph = _walked(self._arrays)
    self.epsilon = epsilon
    self._leaves = leaves
    self._built_with = dict(built_with)
    self.threads = threads or exact.usable_cores()

  def __len__(self) -> int:
    return len(self._arrays["members"])

  @property
  def nbytes(self) -> int:
    return sum(array.nbytes for array in self._arrays.values())

  @property
  def precision(self) -> str:
    return self._arrays["vertices"].dtype.name

  @property
  def descriptors(self) -> np.ndarray:
    vertices, members = self._arrays["vertices"], self._arrays["members"]
    decoded = vertices.astype(np.float32)
    if self.precision == "int8":
      decoded = self._arrays["centre"] + decoded * self._arrays["steps"]
    owners = np.arange(len(vertices))
    if len(self._arrays["member_start"]):
      owners = np.repeat(owners, np.diff(self._arrays["member_start"]))
    descriptors = np.empty((len(members), vertices.shape[1]), np.float32)
    descriptors[members] = decoded[owners]
    return descriptors

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
      the tail is (inf, -1). The distance of a row is that of an `exact` index
      of `descriptors`, to the bit; queries whose walk found fewer than k are
      answered by one.

    Raises:
      InputError: if a query is not finite or has another dimension.
    """
    vertices, members = self._arrays["vertices"], self._arrays["members"]
    n, d = len(members), vertices.shape[1]
    queries = frozen(exact.checked(queries, name="query", dimension=d))
    start, stop = exact.checked_range(k, exclude, n)
    wanted = min(k, n - (stop - start))
    if wanted == 0 or len(queries) == 0:
      return (
        np.full((len(queries), k), np.inf, np.float32),
        np.full((len(queries), k), -1, np.int32),
      )
    distances = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int32)
    width = min(max(k, _NARROWEST), n)

    def walk(first: int, last: int) -> None:
      graph_kernels.walk(
        queries[first:last],
        *self._graph,
        self._leaves,
        1 + self.epsilon,
        width,
        start,
        stop,
        distances[first:last],
        rows[first:last],
      )

    in_threads(walk, len(queries), self.threads, least=_FEW)
    if rows[:, wanted - 1].min() < 0:
      short = np.flatnonzero(rows[:, wanted - 1] < 0)
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
    parameters, arrays = self.saved()
    directory.write(
      path,
      kind=_KIND,
      parameters=parameters,
      arrays=arrays,
      provenance=provenance or {},
    )

  def saved(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Returns the parameters and arrays that `restore` takes."""
    parameters = {
      "epsilon": self.epsilon,
      "leaves": self._leaves,
      "built_with": self._built_with,
    }
    return parameters, dict(self._arrays)

  @functools.cached_property
  def _exact(self) -> exact.ExactIndex:
    # A second copy of the descriptors, made only when a walk falls short.
    return exact.build(self.descriptors)


def build(
  descriptors: np.ndarray,
  *,
  seed: int = 0,
  precision: str | None = None,
  builder: str | None = None,
  n_neighbors: int = 30,
  epsilon: float = 0.2,
  leaves: int = 2,
  threads: int | None = None,
) -> GraphIndex:
  """Builds a graph index.

  The same descriptors and seed give the same bits, in any process and with any
  number of threads.

  Args:
    descriptors: [n, d]; n may be 0.
    seed: of the trees, and of NN-descent.
    precision: of the descriptors that are kept: "float32"; "float16", up to
      65,504; or "int8", 255 steps between the least and the largest number of
      each dimension. By default "float16" where that loses nothing, as with a
      store's descriptors, and else "float32". Neighbours are found before
      anything is rounded.
    builder: what finds the neighbours: "pynndescent", the default for more
      than 65,536 distinct descriptors, or "walk".
    n_neighbors: near ones that each vertex is joined to, before joins that
      others make needless are dropped.
    epsilon: a search goes on while the nearest vertex ahead is, in squared
      distance, within 1 + epsilon of the k-th nearest found: more finds more,
      and takes longer.
    leaves: of the tree, from which a search starts.
    threads: that build and search; all usable cores by default.

  Raises:
    InputError: if a descriptor is not finite, or too large for the precision.
  """
  if n_neighbors < 1 or epsilon < 0 or not 1 <= leaves <= graph_kernels.WIDEST:
    raise ValueError(f"{n_neighbors=}, {epsilon=}, {leaves=}")
  if precision not in (None, *PRECISIONS):
    raise InputError(
      f"{precision!r} is no precision; expected {', '.join(PRECISIONS)}"
    )
  if builder not in (None, *BUILDERS):
    raise InputError(
      f"{builder!r} is no builder; expected {', '.join(BUILDERS)}"
    )
  threads = threads or exact.usable_cores()
  descriptors = exact.checked(descriptors, name="descriptor")
  generator = np.random.default_rng(seed)
  same = _same(descriptors, threads)
  order, _, normals, offsets = _plant(
    descriptors,
    np.flatnonzero(same == np.arange(len(same))),
    leaf=_LEAF,
    rounds=_ROUNDS,
    generator=generator,
    threads=threads,
  )
  # Vertices are numbered leaf by leaf: near ones lie together in memory.
  vertices = descriptors[order]
  rank = np.empty(len(descriptors), np.int32)
  rank[order] = np.arange(len(order), dtype=np.int32)
  member_start, members = _group(rank[same], len(order))
  del order, rank, same
  tree = {"normals": normals, "offsets": offsets}
  if builder is None:
    builder = "walk" if len(vertices) <= _MOST_WALKED else "pynndescent"
  # NN-descent needs more vertices than it finds neighbours.
  if builder == "pynndescent" and len(vertices) > 2 * n_neighbors:
    edge_start, edges = _descend(vertices, n_neighbors, seed, threads)
  else:
    edge_start, edges = _join(vertices, generator, threads)
    for _ in range(_WALKS):
      edge_start, edges = _rejoin(
        {"edge_start": edge_start, "edges": edges, **tree},
        vertices,
        n_neighbors,
        threads,
      )
  precision = precision or _lossless(vertices)
  vertices, centre, steps = _encoded(vertices, precision)
  return GraphIndex(
    {
      "vertices": vertices,
      "centre": centre,
      "steps": steps,
      "edge_start": edge_start,
      "edges": edges,
      "member_start": member_start,
      "members": members,
      **tree,
    },
    epsilon=epsilon,
    leaves=leaves,
    built_with={"seed": seed, "n_neighbors": n_neighbors, "builder": builder},
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
  if not (index.epsilon >= 0 and 1 <= index._leaves <= graph_kernels.WIDEST):
    raise ValueError("a parameter is out of range")
  if verify:
    _check_contents(arrays)
  return index


def _check_shapes(arrays: Mapping[str, np.ndarray]) -> None:
  dtypes = {
    "vertices": PRECISIONS,
    "centre": ["float32"],
    "steps": ["float32"],
    "edge_start": ["uint32", "int64"],
    "edges": ["int32"],
    "member_start": ["int32"],
    "members": ["int32"],
    "normals": ["float32"],
    "offsets": ["float32"],
  }
  count, d = arrays["vertices"].shape
  n, nodes = arrays["members"].size, arrays["offsets"].size
  shapes = {
    "centre": (d,),
    "steps": (d,),
    "edge_start": (count + 1,),
    "edges": (arrays["edges"].size,),
    "member_start": (0,) if n == count else (count + 1,),
    "members": (n,),
    "normals": (nodes, d),
    "offsets": (nodes,),
  }
  if (
    any(arrays[name].dtype.name not in dtypes[name] for name in dtypes)
    or any(arrays[name].shape != shape for name, shape in shapes.items())
    or nodes & (nodes + 1)
  ):
    raise ValueError("its arrays do not fit together")


def _check_contents(arrays: Mapping[str, np.ndarray]) -> None:
  count, n = len(arrays["vertices"]), len(arrays["members"])

  def climbs(starts: np.ndarray, end: int) -> bool:
    return (
      starts[0] == 0 and starts[-1] == end and (starts[1:] >= starts[:-1]).all()
    )

  edges, members = arrays["edges"], arrays["members"]
  if not (
    climbs(arrays["edge_start"], len(edges))
    and (n == count or climbs(arrays["member_start"], n))
    and (edges >= 0).all()
    and (edges < count).all()
    and np.array_equal(np.sort(members), np.arange(n))
    and all(
      np.isfinite(arrays[name]).all()
      for name in ["vertices", "centre", "steps"]
    )
  ):
    raise ValueError("its graph leads nowhere")


def _walked(arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
  """An index's arrays, in the order of `graph_kernels.walk`."""
  vertices = arrays["vertices"]
  if vertices.dtype == np.float16:  # which numba has not
    vertices = frozen(vertices.view(np.int16))
  names = [
    "centre",
    "steps",
    "edge_start",
    "edges",
    "member_start",
    "members",
    "normals",
    "offsets",
  ]
  return vertices, *(arrays[name] for name in names)


def _same(descriptors: np.ndarray, threads: int) -> np.ndarray:
  """[n] the first row that holds the same descriptor as each row.

  A descriptor that occurs often would otherwise be joined to its copies alone.
  """
  words = frozen(descriptors).view(np.uint32)
  hashes = np.empty(len(words), np.uint64)
  in_threads(
    functools.partial(graph_build_kernels.hash_rows, words, hashes),
    len(words),
    threads,
  )
  same = np.empty(len(words), np.int64)
  graph_build_kernels.find_copies(
    words, hashes, np.argsort(hashes, kind="stable"), same
  )
  return same


def _group(vertex_of: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
  """The rows of each vertex, members[member_start[v] : member_start[v + 1]].

  Where every vertex has one row nothing needs to say where they start.
  """
  members = np.argsort(vertex_of, kind="stable").astype(np.int32)
  if count == len(vertex_of):
    return np.empty(0, np.int32), members
  sizes = np.bincount(vertex_of, minlength=count)
  return _starts(sizes).astype(np.int32), members


def _plant(
  points: np.ndarray,
  order: np.ndarray,
  *,
  leaf: int,
  rounds: int,
  generator: np.random.Generator,
  threads: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Plants a balanced tree of hyperplanes over some points.

  Every node halves its points at the median of their projections on a
  direction: a random one, turned to those of large variance (of a sample) by
  rounds of power iteration. Node i has the children 2 i + 1 and 2 i + 2; the
  positions [a, b) of a node become [a, m) and [m, b) with m = (a + b) // 2, so
  they need not be stored.

  Returns:
    order: the points leaf by leaf; bounds [leaves + 1] of the leaves in it;
    normals [nodes, d] and offsets [nodes]: a point with normal . x + offset < 0
    belongs to the first child.
  """
  n, d = len(order), points.shape[1]
  depth = (max(1, -(-n // leaf)) - 1).bit_length()
  order = order.copy()
  normals = generator.standard_normal(((1 << depth) - 1, d), np.float32)
  offsets = np.empty(len(normals), np.float32)
  projections = np.empty(n, np.float32)
  bounds = np.array([0, n])
  for level in range(depth):
    nodes = slice((1 << level) - 1, (2 << level) - 1)
    in_threads(
      functools.partial(
        graph_build_kernels.split,
        frozen(points),
        order,
        bounds,
        rounds,
        normals[nodes],
        offsets[nodes],
        projections,
      ),
      1 << level,
      threads,
    )
    middles = (bounds[:-1] + bounds[1:]) // 2
    bounds = np.append(np.stack([bounds[:-1], middles], 1).ravel(), n)
  return order, bounds, normals, offsets


def _join(
  vertices: np.ndarray, generator: np.random.Generator, threads: int
) -> tuple[np.ndarray, np.ndarray]:
  """Joins vertices that fall together in random trees; returns as `_link`."""
  n = len(vertices)
  near = np.full((n, _COARSE), -1, np.int32)
  squares = np.full((n, _COARSE), np.inf, np.float32)
  for _ in range(_TREES):
    order, bounds, _, _ = _plant(
      vertices,
      np.arange(n),
      leaf=_TREE_LEAF,
      rounds=_TREE_ROUNDS,
      generator=generator,
      threads=threads,
    )
    in_threads(
      functools.partial(
        graph_build_kernels.join, vertices, order, bounds, near, squares
      ),
      len(bounds) - 1,
      threads,
    )
  del squares
  kept = np.empty((n, _MOST_KEPT), np.int32)
  in_threads(
    lambda first, last: graph_build_kernels.prune(
      vertices, near[first:last], kept, first, last
    ),
    n,
    threads,
  )
  return _link(vertices, kept, threads)


def _descend(
  vertices: np.ndarray, n_neighbors: int, seed: int, threads: int
) -> tuple[np.ndarray, np.ndarray]:
  """Joins vertices to what NN-descent finds; returns as `_link`."""
  import pynndescent  # seconds to load, and small sets do without

  with warnings.catch_warnings():
    # Where it finds too few, the graph has fewer edges; a search that comes
    # to its end for want of edges is answered by `exact`.
    warnings.filterwarnings(
      "ignore", "Failed to correctly find n_neighbors", UserWarning
    )
    near, _ = pynndescent.NNDescent(
      vertices,
      metric="euclidean",
      n_neighbors=n_neighbors + 1,
      random_state=seed,
      # The result depends on the number of threads, and is no slower to get
      # with one: pynndescent's threads wait for each other most of the time.
      n_jobs=1,
    ).neighbor_graph
  near = np.ascontiguousarray(near, np.int32)
  kept = np.empty((len(vertices), _MOST_KEPT), np.int32)
  in_threads(
    lambda first, last: graph_build_kernels.prune(
      vertices, near[first:last], kept, first, last
    ),
    len(vertices),
    threads,
  )
  return _link(vertices, kept, threads)


def _rejoin(
  graph: Mapping[str, np.ndarray],
  vertices: np.ndarray,
  n_neighbors: int,
  threads: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Joins each vertex to what a walk on a graph finds; returns as `_link`."""
  n, d = vertices.shape
  width = min(n_neighbors + 1, n)  # it finds itself as well
  nothing = np.zeros(d, np.float32)
  arrays = {
    **graph,
    "vertices": vertices,
    "centre": nothing,
    "steps": nothing,
    "member_start": np.empty(0, np.int32),
    "members": np.arange(n, dtype=np.int32),
  }
  arrays = {name: frozen(array) for name, array in arrays.items()}
  walked = _walked(arrays)
  kept = np.empty((n, _MOST_KEPT), np.int32)

  def rejoin(first: int, last: int) -> None:
    distances = np.empty((last - first, width), np.float32)
    near = np.empty((last - first, width), np.int32)
    graph_kernels.walk(
      arrays["vertices"][first:last],
      *walked,
      _WALK_LEAVES,
      1 + _WALK_EPSILON,
      width,
      0,
      0,
      distances,
      near,
    )
    graph_build_kernels.prune(vertices, near, kept, first, last)

  in_threads(rejoin, n, threads)
  return _link(vertices, kept, threads)


def _link(
  vertices: np.ndarray, kept: np.ndarray, threads: int
) -> tuple[np.ndarray, np.ndarray]:
  """Makes the graph that is walked.

  Of each vertex's neighbours those were kept that are nearer to it than to any
  kept one (relative neighbourhoods: one edge a direction). Edges lead both
  ways; each vertex keeps its shortest.

  Returns:
    edge_start [n + 1], edges int32: the vertices that v is joined to are
    edges[edge_start[v] : edge_start[v + 1]].
  """
  n = len(kept)
  start = np.zeros(n + 1, np.int64)
  sources = np.empty(np.count_nonzero(kept >= 0), np.int32)
  graph_build_kernels.reverse(kept, start, sources)
  counts = np.empty(n, np.int64)
  in_threads(
    functools.partial(
      graph_build_kernels.count_edges, kept, start, sources, _MOST_EDGES, counts
    ),
    n,
    threads,
  )
  edge_start = _starts(counts)
  if edge_start[-1] <= np.iinfo(np.uint32).max:
    edge_start = edge_start.astype(np.uint32)
  edges = np.empty(edge_start[-1], np.int32)
  in_threads(
    functools.partial(
      graph_build_kernels.link,
      vertices,
      kept,
      start,
      sources,
      _MOST_EDGES,
      edge_start,
      edges,
    ),
    n,
    threads,
  )
  return edge_start, edges


def _lossless(vertices: np.ndarray) -> str:
  """The least precision of floats that holds every number as it is."""
  with np.errstate(over="ignore"):
    for part in _parts(len(vertices)):
      halves = vertices[part].astype(np.float16)
      if not np.array_equal(halves.astype(np.float32), vertices[part]):
        return "float32"
  return "float16"


def _encoded(
  vertices: np.ndarray, precision: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Vertices as they are stored, and centre, steps: see `graph_kernels.walk`.

  Raises:
    InputError: if a number is too large for the precision.
  """
  n, d = vertices.shape
  centre, steps = np.zeros(d, np.float32), np.zeros(d, np.float32)
  if precision == "float32" or n == 0:
    return vertices.astype(precision, copy=False), centre, steps
  low, high = vertices.min(axis=0), vertices.max(axis=0)
  if precision == "float16":
    largest = float(max(-low.min(), high.max()))
    if largest > float(np.finfo(np.float16).max):
      raise InputError(
        f"a descriptor holds {largest:g}, too large for float16; choose the "
        "precision float32 or int8"
      )
    steps[:] = graph_kernels.HALF_STEP
    return vertices.astype(np.float16), centre, steps
  centre = (low + high) / 2
  steps = (high - low) / 254
  codes = np.empty((n, d), np.int8)
  # Where all numbers of a dimension are equal there is no step.
  divisors = np.where(steps > 0, steps, 1)
  for part in _parts(n):
    scaled = np.rint((vertices[part] - centre) / divisors)
    codes[part] = np.clip(scaled, -127, 127)
  return codes, centre, steps


def _starts(sizes: np.ndarray) -> np.ndarray:
  """[count + 1] int64, where each of some lists starts in all of them."""
  starts = np.zeros(len(sizes) + 1, np.int64)
  np.cumsum(sizes, out=starts[1:])
  return starts


def _parts(count: int) -> list[slice]:
  return [slice(start, start + _PART) for start in range(0, count, _PART)]
