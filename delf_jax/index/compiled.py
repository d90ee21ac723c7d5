"""How the indexes' inner loops are compiled: by numba, once on a machine."""

from collections.abc import Callable
from typing import Any

import numba


def compiled(
  function: Callable[..., Any], *, fastmath: Any = False, **options: Any
) -> Any:
  """Compiles for many threads; kept on disk for the next process."""
  # Said in any case: a function would take after the one that calls it first.
  options |= {"fastmath": fastmath, "nogil": True}
  try:
    return numba.njit(function, cache=True, **options)
  except RuntimeError:  # there is nowhere to write
    return numba.njit(function, **options)
