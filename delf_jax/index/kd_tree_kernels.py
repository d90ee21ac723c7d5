"""What the KD-tree does for every node and query, compiled by numba.

Kept apart from `kd_tree`, which says what the arrays mean. Everything here
works on parts [first, last) of them, so that threads can share the work, and
is compiled once and kept on disk for the next process.
"""

import functools

import numpy as np

from delf_jax.index.compiled import compiled
from delf_jax.index.nearest_kernels import insert

FANOUT = 16  # boxes of a level that lie in one box of the next
_SLACK = 1 - 1e-5  # a bound is lowered by more than its rounding
_NONE = (0x7F800000 << 32) | 0x7FFFFFFF  # after any row at any distance
_ROW = 0xFFFFFFFF


# Sums may be added up in any order, which the vector units need; infinities
# keep their meaning.
_fast = functools.partial(compiled, fastmath={"reassoc", "contract", "nsz"})


@compiled
def split(codes, weights, order, starts, middles, stops, first, last):
  """Parts the descriptors of some nodes in two.

  A node is cut across its dimension of largest variance. Equal numbers stay in
  order, and the ones at the cut go to both sides as the cut's place demands,
  so the depth is what the sizes say, whatever the numbers.

  Args:
    codes: [n, d] uint8.
    weights: [d] float64, the square of a code's step.
    order: [n]; that of each node, order[start : stop], is parted in place.
    starts, middles, stops: [nodes] of positions in order.
  """
  d = codes.shape[1]
  sums = np.empty(d, np.int64)
  squares = np.empty(d, np.int64)
  counts = np.empty(256, np.int64)
  for node in range(first, last):
    start, middle, stop = starts[node], middles[node], stops[node]
    size = stop - start
    sums[:] = 0
    squares[:] = 0
    for i in range(start, stop):
      row = order[i]
      for j in range(d):
        code = np.int64(codes[row, j])
        sums[j] += code
        squares[j] += code * code
    widest = 0
    largest = -1.0
    for j in range(d):
      mean = sums[j] / size
      variance = (squares[j] / size - mean * mean) * weights[j]
      if variance > largest:
        largest = variance
        widest = j
    counts[:] = 0
    for i in range(start, stop):
      counts[codes[order[i], widest]] += 1
    below = 0
    cut = 0
    while below + counts[cut] <= middle - start:
      below += counts[cut]
      cut += 1
    at_cut = middle - start - below  # how many of these go to the left
    right = np.empty(stop - middle, order.dtype)
    count_left = 0
    count_right = 0
    for i in range(start, stop):
      row = order[i]
      code = codes[row, widest]
      if code < cut or (code == cut and at_cut > 0):
        if code == cut:
          at_cut -= 1
        order[start + count_left] = row
        count_left += 1
      else:
        right[count_right] = row
        count_right += 1
    order[middle:stop] = right


@_fast
def _box_square(boxes, box, step, gap):
  """The squared distance to a box, 0 within it."""
  total = np.float32(0)
  for j in range(step.shape[0]):
    below = np.float32(boxes[box, 0, j]) * step[j] + gap[j]
    above = -(np.float32(boxes[box, 1, j]) * step[j] + gap[j])
    apart = below if below > above else above
    apart = apart if apart > 0 else np.float32(0)
    total += apart * apart
  return total


@_fast
def _squares(codes, first, last, step, gap, out):
  """Squared distances to the descriptors at some positions."""
  d = step.shape[0]
  # Four at a time share the loads and keep the arithmetic units busy.
  i = first
  while i + 4 <= last:
    total_a = total_b = total_c = total_d = np.float32(0)
    for j in range(d):
      apart = np.float32(codes[i, j]) * step[j] + gap[j]
      total_a += apart * apart
      apart = np.float32(codes[i + 1, j]) * step[j] + gap[j]
      total_b += apart * apart
      apart = np.float32(codes[i + 2, j]) * step[j] + gap[j]
      total_c += apart * apart
      apart = np.float32(codes[i + 3, j]) * step[j] + gap[j]
      total_d += apart * apart
    out[i - first] = total_a
    out[i - first + 1] = total_b
    out[i - first + 2] = total_c
    out[i - first + 3] = total_d
    i += 4
  while i < last:
    total = np.float32(0)
    for j in range(d):
      apart = np.float32(codes[i, j]) * step[j] + gap[j]
      total += apart * apart
    out[i - first] = total
    i += 1


@compiled
def _rise(keys, place, key):
  """Puts a key where it belongs between a place of a heap and its root."""
  while place > 0:
    parent = (place - 1) >> 1
    if keys[parent] <= key:
      break
    keys[place] = keys[parent]
    place = parent
  keys[place] = key


@compiled
def _put_first(keys, size, key):
  """Puts a key in the place of the root, the smallest of a heap."""
  # The hole goes down to a leaf and the key climbs from there, seldom far: so
  # no step depends on a comparison that nobody can guess.
  place = 0
  child = 1
  while child + 1 < size:
    child += keys[child + 1] < keys[child]
    keys[place] = keys[child]
    place = child
    child = 2 * place + 1
  if child < size:
    keys[place] = keys[child]
    place = child
  _rise(keys, place, key)


@compiled
def _least(keys, first, last):
  least = keys[first]
  for i in range(first + 1, last):
    least = min(least, keys[i])
  return least


@compiled
def _replace(keys, positions, size, key, position):
  """Puts something in the place of the root, the largest of a heap."""
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
    positions[place] = positions[child]
    place = child
  keys[place] = key
  positions[place] = position


@compiled
def _measure(query, codes, low, step, originals, keys, positions, near, rows):
  """Sorts what was found by (distance, row), measured as `exact.rank` does."""
  # From a heap to ascending order, so that little is moved below.
  for size in range(keys.shape[0] - 1, 0, -1):
    key, position = keys[size], positions[size]
    keys[size], positions[size] = keys[0], positions[0]
    _replace(keys, positions, size, key, position)
  count = 0
  for i in range(keys.shape[0]):
    if keys[i] == _NONE:
      break
    row = np.int32(keys[i] & _ROW)
    total = 0.0
    for j in range(query.shape[0]):
      if originals.shape[0] > 0:
        number = originals[row, j]
      else:
        number = np.float32(codes[positions[i], j]) * step[j] + low[j]
      difference = np.float64(number) - np.float64(query[j])
      total += difference * difference
    distance = np.float32(np.sqrt(total))
    count = insert(near, rows, count, distance, row)


@compiled
def search(
  queries,
  codes,
  low,
  step,
  originals,
  row_of,
  boxes,
  level_starts,
  leaf_size,
  leaves,
  width,
  wanted,
  start,
  stop,
  distances,
  nearest,
):
  """Searches for some queries; see `KDTreeIndex.search`.

  Args:
    level_starts: [levels + 1], where each level's boxes start, leaves first.
    leaves: to visit, or more until as many as are wanted were found.
    width: of how many nearest to keep track.
    wanted: at most width, and at most as many as there are.
    start, stop: rows to leave out of the answer.
    distances, nearest: [m, k] for the answers, filled with (inf, -1).
  """
  n, d = codes.shape
  levels = level_starts.shape[0] - 1
  gap = np.empty(d, np.float32)
  # A key is the bits of a squared distance, whose order is that of the numbers,
  # and then the box. Of the boxes that lie in one and were not entered yet only
  # the nearest waits in the queue, the nearest of all first.
  keys = np.empty(boxes.shape[0], np.int64)
  ahead = np.empty(boxes.shape[0], np.int64)
  # The nearest found, the farthest of them first: distance, then row.
  best = np.empty(width, np.int64)
  best_positions = np.empty(width, np.int64)
  squares = np.empty(leaf_size, np.float32)
  bits = squares.view(np.int32)
  for number in range(queries.shape[0]):
    query = queries[number]
    for j in range(d):
      gap[j] = low[j] - query[j]
    best[:] = _NONE
    found = 0
    visited = 0
    count_ahead = 0
    level = levels
    box = 0
    while True:
      if level > 0:
        # Into a box: those of the level below that it holds.
        first = level_starts[level - 1] + FANOUT * box
        last = min(first + FANOUT, level_starts[level])
        for other in range(first, last):
          squares[0] = _box_square(boxes, other, step, gap) * np.float32(_SLACK)
          keys[other] = (np.int64(bits[0]) << 32) | other
        _rise(ahead, count_ahead, _least(keys, first, last))
        count_ahead += 1
      else:
        visited += 1
        first = box * leaf_size
        last = min(first + leaf_size, n)
        _squares(codes, first, last, step, gap, squares)
        for position in range(first, last):
          key = np.int64(bits[position - first]) << 32
          if key > best[0]:
            continue
          row = row_of[position]
          key |= row
          if key < best[0] and (row < start or row >= stop):
            _replace(best, best_positions, width, key, position)
            found += 1
      if count_ahead == 0 or (visited >= leaves and found >= wanted):
        break
      key = ahead[0]
      if (key >> 32) > (best[0] >> 32):
        break
      box = key & _ROW
      level = 0
      while box >= level_starts[level + 1]:
        level += 1
      keys[box] = _NONE
      box -= level_starts[level]
      first = level_starts[level] + box // FANOUT * FANOUT
      last = min(first + FANOUT, level_starts[level + 1])
      key = _least(keys, first, last)
      if key == _NONE:
        count_ahead -= 1
        key = ahead[count_ahead]
      _put_first(ahead, count_ahead, key)
    _measure(
      query,
      codes,
      low,
      step,
      originals,
      best,
      best_positions,
      distances[number],
      nearest[number],
    )
