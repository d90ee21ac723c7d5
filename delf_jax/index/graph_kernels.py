"""What the graph index runs for every vertex and query, compiled by numba.

Kept apart from `graph`, which says what the arrays mean. Everything here works
on parts [first, last) of them, so that threads can share the work, and is
compiled once and kept on disk for the next process.
"""

import functools
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

WIDEST = 64  # nodes of the tree that a search can come back to
_SAMPLE = 32  # vertices that a hyperplane is fitted to
_ROUNDS = 4  # of the power iteration that fits it


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
  """Compiles for many threads; kept on disk for the next process."""
  try:
    return numba.njit(function, nogil=True, cache=True, **options)
  except RuntimeError:  # there is nowhere to write
    return numba.njit(function, nogil=True, **options)


# Sums may be added up in any order, which the vector units need; infinities
# keep their meaning.
_fast = functools.partial(_compiled, fastmath={"reassoc", "contract", "nsz"})
_inlined = functools.partial(_fast, inline="always")


@_inlined
def _square(x, points, a):
  total = np.float32(0)
  for i in range(x.shape[0]):
    difference = x[i] - points[a, i]
    total += difference * difference
  return total


@_inlined
def _four_squares(x, points, a, b, c, d, out):
  # Four at a time share the loads of x and keep the arithmetic units busy.
  total_a = total_b = total_c = total_d = np.float32(0)
  for i in range(x.shape[0]):
    difference = x[i] - points[a, i]
    total_a += difference * difference
    difference = x[i] - points[b, i]
    total_b += difference * difference
    difference = x[i] - points[c, i]
    total_c += difference * difference
    difference = x[i] - points[d, i]
    total_d += difference * difference
  out[0] = total_a
  out[1] = total_b
  out[2] = total_c
  out[3] = total_d


@_fast
def _dot(x, y):
  total = np.float32(0)
  for i in range(x.shape[0]):
    total += x[i] * y[i]
  return total


@_fast
def project(points, order, bounds, normals, projections, first, last):
  """Fits the hyperplanes of some nodes, and projects their points.

  normals holds random directions and gets those of largest variance.
  """
  d = points.shape[1]
  sample = np.empty((_SAMPLE, d), np.float32)
  mean = np.empty(d, np.float32)
  for node in range(first, last):
    start, stop = bounds[node], bounds[node + 1]
    count = min(_SAMPLE, stop - start)
    mean[:] = 0
    for i in range(count):
      sample[i] = points[order[start + i * (stop - start) // count]]
      mean += sample[i]
    for i in range(count):
      sample[i] -= mean / np.float32(count)
    for _ in range(_ROUNDS):
      mean[:] = 0
      for i in range(count):
        mean += sample[i] * _dot(sample[i], normals[node])
      length = np.sqrt(_dot(mean, mean))
      if length > 0:
        normals[node] = mean / length
    for i in range(start, stop):
      projections[i] = _dot(points[order[i]], normals[node])


@_fast
def prune(points, neighbours, kept, squares, first, last):
  """Keeps the neighbours that are nearer to their vertex than to a kept one."""
  for vertex in range(first, last):
    count = 0
    for other in neighbours[vertex]:
      if other < 0 or other == vertex:
        continue
      square = _square(points[vertex], points, other)
      needed = True
      for i in range(count):
        if _square(points[other], points, kept[vertex, i]) < square:
          needed = False
          break
      if needed:
        kept[vertex, count] = other
        squares[vertex, count] = square
        count += 1
    kept[vertex, count:] = -1


@_compiled
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


@_compiled
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


@_compiled
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


@_compiled
def _measure(query, points, vertices, rows, distances, nearest):
  """Sorts what was found by (distance, row), measured as `exact.rank` does."""
  k = nearest.shape[0]
  count = 0
  for i in range(rows.shape[0]):
    row = rows[i]
    if row < 0:
      continue
    total = 0.0
    for j in range(query.shape[0]):
      difference = np.float64(points[vertices[i], j]) - np.float64(query[j])
      total += difference * difference
    distance = np.float32(np.sqrt(total))
    place = count
    while place > 0:
      before = place - 1
      if distances[before] < distance or (
        distances[before] == distance and nearest[before] < row
      ):
        break
      if place < k:
        distances[place] = distances[before]
        nearest[place] = nearest[before]
      place -= 1
    if place < k:
      distances[place] = distance
      nearest[place] = row
      count = min(count + 1, k)
  return count


@_fast
def walk(
  queries,
  points,
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
    width: of how many nearest to keep track.
    reach: how much farther, squared, than the farthest of these to go on.
    start, stop: rows to leave out of the answer; the walk passes over them.
    distances, nearest: [m, k] for the answers, filled with (inf, -1).
  """
  n = points.shape[0]
  inner = offsets.shape[0]
  reach = np.float32(reach)
  far = np.float32(np.inf)
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
  four = np.empty(4, np.uint32)
  squares = np.empty(4, np.float32)
  for number in range(queries.shape[0]):
    query = queries[number]
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
      # Where to look next: a leaf of the tree, or a vertex's neighbours.
      in_tree = leaves_left > 0 and count_nodes > 0
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
          side = _dot(query, normals[node]) + offsets[node]
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
        a = edge_start[vertex]
        b = edge_start[vertex + 1]
      count = 0
      for i in range(a, b + 1):
        if i < b:
          other = np.uint32(i) if in_tree else np.uint32(edges[i])
          mark = np.uint8(1 << (other & 7))
          if seen[other >> 3] & mark:
            continue
          seen[other >> 3] |= mark
          visited[count_visited] = other
          count_visited += 1
          four[count] = other
          count += 1
          if count < 4:
            continue
          _four_squares(
            query, points, four[0], four[1], four[2], four[3], squares
          )
        else:
          for j in range(count):
            squares[j] = _square(query, points, four[j])
        for j in range(count):
          square = squares[j]
          other = four[j]
          if square > bound:
            continue
          _push(ahead_keys, ahead, count_ahead, square, other)
          count_ahead += 1
          for m in range(member_start[other], member_start[other + 1]):
            if square >= best_keys[0]:
              break
            row = members[m]
            if row < start or row >= stop:
              _replace(best_keys, best_vertices, best_rows, square, other, row)
              bound = best_keys[0] * reach
        count = 0
    for i in range(count_visited):
      seen[visited[i] >> 3] = 0
    _measure(
      query,
      points,
      best_vertices,
      best_rows,
      distances[number],
      nearest[number],
    )
