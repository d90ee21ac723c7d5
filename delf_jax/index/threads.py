"""Work on parts of arrays, by threads that compiled functions let run."""

import concurrent.futures
from collections.abc import Callable

import numpy as np


def in_threads(
  work: Callable[[int, int], None],
  count: int,
  threads: int,
  *,
  piece: int = 256,
  least: int = 1,
) -> None:
  """Calls work(first, last) for parts of range(count), several at a time.

  Args:
    work: writes what belongs to its part alone.
    count: how many there are.
    threads: at most so many.
    piece: so many are a part.
    least: fewer are not worth a thread of their own.
  """
  size = max(1, min(piece, max(least, -(-count // threads))))
  parts = [(start, min(start + size, count)) for start in range(0, count, size)]
  if threads == 1 or len(parts) < 2:
    for first, last in parts:
      work(first, last)
    return
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    list(pool.map(work, *zip(*parts, strict=True)))


def frozen(array: np.ndarray) -> np.ndarray:
  """Returns a read-only view, in one piece.

  Compiled functions are made for read-only arrays, which mapped ones are.
  """
  array = np.ascontiguousarray(array).view()
  array.flags.writeable = False
  return array
