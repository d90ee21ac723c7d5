"""What building a graph index runs for every vertex, compiled by numba.

As `graph_kernels`: parts of arrays, shared by threads, compiled once. What a
part is given depends on nothing that another part writes.
"""

import numpy as np

from delf_jax.index.compiled import compiled
from delf_jax.index.graph_kernels import dot, fast, inlined

_SAMPLE = 32  # vertices that a hyperplane is fitted to


@compiled
def hash_rows(words, hashes, first, last):
  """Hashes [n, d] uint32 to [n] uint64."""
  for row in range(first, last):
    total = np.uint64(0)
    for i in range(words.shape[1]):
      total = (total ^ np.uint64(words[row, i])) * np.uint64(0x9E3779B97F4A7C15)
      total ^= total >> np.uint64(29)
    hashes[row] = total


@compiled
def find_copies(words, hashes, order, same):
  """Sets same[row] to the first row with the same words.

  Args:
    order: [n] rows sorted by hash, and within a hash by row.
  """
  n = len(order)
  start = 0
  for place in range(n):
    row = order[place]
    if hashes[row] != hashes[order[start]]:
      start = place
    same[row] = row
    for before in range(start, place):
      other = order[before]
      if same[other] == other and np.array_equal(words[other], words[row]):
        same[row] = other
        break


@compiled
def _select(keys, values, first, last, middle):
  """Moves the smallest of [first, last) to below middle, its key in place."""
  last -= 1
  while first < last:
    pivot = keys[(first + last) >> 1]
    i, j = first, last
    while i <= j:
      while keys[i] < pivot:
        i += 1
      while keys[j] > pivot:
        j -= 1
      if i <= j:
        keys[i], keys[j] = keys[j], keys[i]
        values[i], values[j] = values[j], values[i]
        i += 1
        j -= 1
    if middle <= j:
      last = j
    elif middle >= i:
      first = i
    else:
      break


@fast
def split(
  points, order, bounds, rounds, normals, offsets, projections, first, last
):
  """Halves some nodes of a level of the tree; see `graph._plant`.

  normals holds random directions and gets those of large variance: the more
  rounds of the power iteration, the larger.
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
    for _ in range(rounds):
      mean[:] = 0
      for i in range(count):
        mean += sample[i] * dot(sample[i], normals[node])
      # Its square alone may be too large a number.
      largest = np.max(np.abs(mean))
      if largest > 0:
        mean /= largest
        normals[node] = mean / np.sqrt(dot(mean, mean))
    for i in range(start, stop):
      projections[i] = dot(points[order[i]], normals[node])
    middle = (start + stop) >> 1
    _select(projections, order, start, stop, middle)
    offsets[node] = -projections[middle]


@inlined
def _square(points, a, b):
  total = np.float32(0)
  for i in range(points.shape[1]):
    difference = points[a, i] - points[b, i]
    total += difference * difference
  return total


@compiled
def _offer(near, squares, row, other, square):
  """Takes a vertex into a list sorted by square, unless it is in it.

  It must be nearer than the last one there.
  """
  place = near.shape[1] - 1
  for i in range(place + 1):
    if near[row, i] == other:
      return
  while place > 0 and squares[row, place - 1] > square:
    squares[row, place] = squares[row, place - 1]
    near[row, place] = near[row, place - 1]
    place -= 1
  squares[row, place] = square
  near[row, place] = other


@fast
def join(points, order, bounds, near, squares, first, last):
  """Offers the vertices of some leaves to each other.

  Args:
    near, squares: [n, width], the nearest so far; (-1, inf) after the last.
  """
  end = near.shape[1] - 1
  most = 0
  for leaf in range(first, last):
    most = max(most, bounds[leaf + 1] - bounds[leaf])
  block = np.empty((most, points.shape[1]), np.float32)
  lengths = np.empty(most, np.float32)
  for leaf in range(first, last):
    start, stop = bounds[leaf], bounds[leaf + 1]
    for i in range(stop - start):
      a = order[start + i]
      for j in range(points.shape[1]):
        block[i, j] = points[a, j]
      for j in range(i):
        lengths[j] = _square(block, i, j)
      for j in range(i):
        b = order[start + j]
        # Most offers are declined: a call would take longer than that.
        if lengths[j] < squares[a, end]:
          _offer(near, squares, a, b, lengths[j])
        if lengths[j] < squares[b, end]:
          _offer(near, squares, b, a, lengths[j])


@fast
def prune(points, near, kept, first, last):
  """Keeps the neighbours that are nearer to their vertex than to a kept one.

  Args:
    near: [last - first, width], nearest first; less than 0 is none.
    kept: [n, most], for the neighbours; -1 after the last.
  """
  for vertex in range(first, last):
    count = 0
    for other in near[vertex - first]:
      if other < 0 or other == vertex:
        continue
      if count == kept.shape[1]:
        break
      square = _square(points, vertex, other)
      needed = True
      for i in range(count):
        if _square(points, other, kept[vertex, i]) < square:
          needed = False
          break
      if needed:
        kept[vertex, count] = other
        count += 1
    kept[vertex, count:] = -1


@compiled
def reverse(kept, start, sources):
  """Lists who keeps a vertex: sources[start[v] : start[v + 1]], ascending.

  Args:
    start: [n + 1] zeros.
    sources: as many as are kept.
  """
  n = kept.shape[0]
  for vertex in range(n):
    for other in kept[vertex]:
      if other >= 0:
        start[other + 1] += 1
  for vertex in range(n):
    start[vertex + 1] += start[vertex]
  for vertex in range(n):
    for other in kept[vertex]:
      if other >= 0:
        sources[start[other]] = vertex
        start[other] += 1
  for vertex in range(n, 0, -1):
    start[vertex] = start[vertex - 1]
  start[0] = 0


@inlined
def _is_kept(kept, vertex, other):
  for i in range(kept.shape[1]):
    if kept[vertex, i] == other:
      return True
  return False


@compiled
def count_edges(kept, start, sources, most, counts, first, last):
  """Counts how many edges `link` gives each vertex, at most so many."""
  for vertex in range(first, last):
    count = 0
    for other in kept[vertex]:
      count += other >= 0
    for i in range(start[vertex], start[vertex + 1]):
      count += not _is_kept(kept, vertex, sources[i])
    counts[vertex] = min(count, most)


@fast
def link(points, kept, start, sources, most, edge_start, edges, first, last):
  """Joins each vertex to those that it keeps or that keep it, the nearest.

  Args:
    edge_start: [n + 1], where the edges of each vertex start; see
      `count_edges`.
  """
  found = np.empty((1, most), np.int32)
  squares = np.empty((1, most), np.float32)
  for vertex in range(first, last):
    found[:] = -1
    squares[:] = np.inf
    for other in kept[vertex]:
      if other >= 0:
        square = _square(points, vertex, other)
        if square < squares[0, most - 1]:
          _offer(found, squares, 0, other, square)
    for i in range(start[vertex], start[vertex + 1]):
      other = sources[i]
      if not _is_kept(kept, vertex, other):
        square = _square(points, vertex, other)
        if square < squares[0, most - 1]:
          _offer(found, squares, 0, other, square)
    edge = np.int64(edge_start[vertex])
    for i in range(np.int64(edge_start[vertex + 1]) - edge):
      edges[edge + i] = found[0, i]
