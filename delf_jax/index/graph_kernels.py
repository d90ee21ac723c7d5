"""What the graph index runs for every query, compiled by numba.

Kept apart from `graph`, which says what the arrays mean. Everything here works
on parts of them, so that threads can share the work, and is compiled once and
kept on disk for the next process.
"""

import functools

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic, overload

from delf_jax.index.compiled import compiled
from delf_jax.index.nearest_kernels import insert

WIDEST = 64  # nodes of the tree that a search can come back to
_LINE = 64  # bytes that memory is read by
_LISTS = 4  # of edges that are followed at a time: memory answers them together
MOST_EDGES = 48  # of a vertex
_BATCH = _LISTS * MOST_EDGES  # vertices that are measured at a time
HALF_STEP = np.float32(2.0**112)  # see `_difference`

# Sums may be added up in any order, which the vector units need; infinities
# keep their meaning.
_FAST = {"reassoc", "contract", "nsz"}


fast = functools.partial(compiled, fastmath=_FAST)
inlined = functools.partial(fast, inline="always")


@intrinsic
def _fetch(_, array, place):
  """Asks for the memory of array.ravel()[place], and does not wait for it."""

  def generate(context, builder, signature, arguments):
    array = context.make_array(signature.args[0])(
      context, builder, arguments[0]
    )
    byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
    builder.call(
      builder.module.declare_intrinsic(
        "llvm.prefetch",
        (byte,),
        ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag]),
      ),
      [
        builder.bitcast(builder.gep(array.data, arguments[1:]), byte),
        *(flag(value) for value in (0, 3, 1)),  # read; keep close; no code
      ],
    )
    return context.get_dummy_value()

  return numba.void(array, numba.intp), generate


def _scaled(code, step):
  """The number that a code stands for; numba makes one for each type."""


@overload(_scaled)
def _scale(code, step):
  if code == numba.float32:
    return lambda code, step: code
  if code == numba.int8:
    return lambda code, step: np.float32(code) * step
  # The bits of a float16, spread to those of a float32. As exponents of the
  # one are biased by 15 and of the other by 127, a step is 2^(127 - 15).
  return lambda code, step: (
    np.int32((np.int32(code) << 13) & -0x70002000).view(np.float32) * step
  )


@inlined
def _square(x, points, row, steps):
  total = np.float32(0)
  for i in range(x.shape[0]):
    difference = x[i] - _scaled(points[row, i], steps[i])
    total += difference * difference
  return total


@fast
def dot(x, y):
  total = np.float32(0)
  for i in range(x.shape[0]):
    total += x[i] * y[i]
  return total


@compiled
def _push(keys, values, size, key, value):
  """Adds to a heap of a size whose root has the smallest key."""
  place = size
  while place > 0:
    parent = (place - 1) >> 1
    if keys[parent] <= key:
      break
    keys[place] = keys[parent]
    values[place] = values[parent]
    place = parent
  keys[place] = key
  values[place] = value


@compiled
def _pop(keys, values, size):
  """Takes the root off; the heap then has the size less one."""
  size -= 1
  key, value = keys[size], values[size]
  place = 0
  while True:
    child = 2 * place + 1
    if child >= size:
      break
    if child + 1 < size and keys[child + 1] < keys[child]:
      child += 1
    if key <= keys[child]:
      break
    keys[place] = keys[child]
    values[place] = values[child]
    place = child
  keys[place] = key
  values[place] = value


@compiled
def _replace(keys, vertices, rows, key, vertex, row):
  """Puts something nearer in the place of the root, the farthest of a heap."""
  size = keys.shape[0]
  place = 0
  while True:
    child = 2 * place + 1
    if child >= size:
      break
    if child + 1 < size and keys[child + 1] > keys[child]:
      child += 1
    if key >= keys[child]:
      break
    keys[place] = keys[child]
    vertices[place] = vertices[child]
    rows[place] = rows[child]
    place = child
  keys[place] = key
  vertices[place] = vertex
  rows[place] = row


@compiled
def _measure(query, points, centre, steps, vertices, rows, distances, nearest):
  """Sorts what was found by (distance, row), measured as `exact.rank` does."""
  count = 0
  for i in range(rows.shape[0]):
    row = rows[i]
    if row < 0:
      continue
    total = 0.0
    for j in range(query.shape[0]):
      stored = centre[j] + _scaled(points[vertices[i], j], steps[j])
      difference = np.float64(stored) - np.float64(query[j])
      total += difference * difference
    distance = np.float32(np.sqrt(total))
    count = insert(distances, nearest, count, distance, row)
  distances[count:] = np.inf
  nearest[count:] = -1


@fast
def walk(
  queries,
  points,
  centre,
  steps,
  edge_start,
  edges,
  member_start,
  members,
  normals,
  offsets,
  leaves,
  reach,
  width,
  start,
  stop,
  distances,
  nearest,
):
  """Searches for some queries; see `GraphIndex.search`.

  Args:
    points: [n, d] float32, int8, or the bits of float16 as int16.
    centre, steps: [d]; a vertex lies at centre + steps x points.
    member_start: empty where every vertex has one member.
    reach: how much farther, squared, than the farthest of the nearest to go on.
    width: of how many nearest to keep track.
    start, stop: rows to leave out of the answer; the walk passes over them.
    distances, nearest: [m, k] for the answers; (inf, -1) after the last.
  """
  n, d = points.shape
  line = _LINE // points.itemsize
  inner = offsets.shape[0]
  alone = member_start.shape[0] == 0
  reach = np.float32(reach)
  far = np.float32(np.inf)
  local = np.empty(d, np.float32)
  seen = np.zeros(n // 8 + 1, np.uint8)
  visited = np.empty(n, np.uint32)
  # Vertices whose own edges were not followed yet, the nearest first.
  ahead_keys = np.empty(n, np.float32)
  ahead = np.empty(n, np.uint32)
  # The nearest found, the farthest of them first.
  best_keys = np.empty(width, np.float32)
  best_vertices = np.empty(width, np.uint32)
  best_rows = np.empty(width, np.int32)
  # Nodes of the tree that were passed by, and how near the query is to them.
  margins = np.empty(WIDEST, np.float32)
  nodes = np.empty((WIDEST, 3), np.int64)
  fresh = np.empty(_BATCH, np.uint32)
  squares = np.empty(_BATCH, np.float32)
  for number in range(queries.shape[0]):
    query = queries[number]
    for i in range(d):
      local[i] = query[i] - centre[i]
    count_visited = 0
    count_ahead = 0
    bound = far
    best_keys[:] = far
    best_rows[:] = -1
    leaves_left = leaves
    count_nodes = 1
    margins[0] = 0
    nodes[0, 0] = 0
    nodes[0, 1] = 0
    nodes[0, 2] = n
    while True:
      # Where to look next: a leaf of the tree, or the neighbours of vertices.
      in_tree = leaves_left > 0 and count_nodes > 0
      if not in_tree and (count_ahead == 0 or ahead_keys[0] > bound):
        break
      count = 0
      for _ in range(1 if in_tree else _LISTS):
        if in_tree:
          leaves_left -= 1
          nearest_node = 0
          for i in range(1, count_nodes):
            if margins[i] < margins[nearest_node]:
              nearest_node = i
          margin = margins[nearest_node]
          node, a, b = nodes[nearest_node]
          count_nodes -= 1
          margins[nearest_node] = margins[count_nodes]
          nodes[nearest_node] = nodes[count_nodes]
          while node < inner:
            side = dot(query, normals[node]) + offsets[node]
            middle = (a + b) >> 1
            if leaves_left > 0 and count_nodes < WIDEST:
              margins[count_nodes] = max(margin, abs(side))
              if side < 0:
                nodes[count_nodes, 0] = 2 * node + 2
                nodes[count_nodes, 1] = middle
                nodes[count_nodes, 2] = b
              else:
                nodes[count_nodes, 0] = 2 * node + 1
                nodes[count_nodes, 1] = a
                nodes[count_nodes, 2] = middle
              count_nodes += 1
            if side < 0:
              node = 2 * node + 1
              b = middle
            else:
              node = 2 * node + 2
              a = middle
        else:
          if count_ahead == 0 or ahead_keys[0] > bound:
            break
          vertex = ahead[0]
          _pop(ahead_keys, ahead, count_ahead)
          count_ahead -= 1
          a = np.int64(edge_start[vertex])
          b = np.int64(edge_start[vertex + 1])
        # What is needed next is on its way before any of it is waited for.
        while a < b and count < _BATCH:
          other = np.uint32(a) if in_tree else np.uint32(edges[a])
          a += 1
          mark = np.uint8(1 << (other & 7))
          if seen[other >> 3] & mark:
            continue
          seen[other >> 3] |= mark
          visited[count_visited] = other
          count_visited += 1
          fresh[count] = other
          count += 1
          place = np.int64(other) * d
          for i in range(0, d, line):
            _fetch(points, place + i)
          _fetch(points, place + d - 1)
          _fetch(edge_start, np.int64(other))
      for j in range(count):
        squares[j] = _square(local, points, fresh[j], steps)
      for j in range(count):
        key = squares[j]
        if key > bound:
          continue
        other = fresh[j]
        edge = np.int64(edge_start[other])
        _fetch(edges, edge)
        _fetch(edges, edge + _LINE // 4 - 1)
        _push(ahead_keys, ahead, count_ahead, key, other)
        count_ahead += 1
        if key >= best_keys[0]:
          continue
        a = np.int64(other) if alone else np.int64(member_start[other])
        b = a + 1 if alone else np.int64(member_start[other + 1])
        for m in range(a, b):
          if key >= best_keys[0]:
            break
          row = members[m]
          if row < start or row >= stop:
            _replace(best_keys, best_vertices, best_rows, key, other, row)
            bound = best_keys[0] * reach
    for i in range(count_visited):
      seen[visited[i] >> 3] = 0
    _measure(
      query,
      points,
      centre,
      steps,
      best_vertices,
      best_rows,
      distances[number],
      nearest[number],
    )
