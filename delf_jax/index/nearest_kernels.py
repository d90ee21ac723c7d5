"""Lists of the nearest so far, compiled by numba."""

from delf_jax.index.compiled import compiled


@compiled
def insert(distances, rows, count, distance, row):
  """Puts a row where it belongs by (distance, row), if it is among the k.

  Args:
    distances: [k] of those so far, ascending.
    rows: [k] of the same.
    count: how many there are.
    distance: of the new one.
    row: of the new one, not among those.

  Returns:
    how many there are now.
  """
  k = rows.shape[0]
  place = count
  while place > 0:
    before = place - 1
    if distances[before] < distance or (
      distances[before] == distance and rows[before] < row
    ):
      break
    if place < k:
      distances[place] = distances[before]
      rows[place] = rows[before]
    place -= 1
  if place < k:
    distances[place] = distance
    rows[place] = row
    count = min(count + 1, k)
  return count
