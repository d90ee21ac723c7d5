"""Descriptors -> nearest descriptors: one file a kind, one interface.

built = build_index("graph", descriptors)
distances, rows = built.search(queries, 10)
built.save(path, provenance={"store": ...})
open_index(path).search(queries, 10)  # the same bits
"""

import importlib
import inspect
import os
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from delf_jax.errors import InputError
from delf_jax.index import directory
from delf_jax.index.directory import read_meta as read_meta

# kind -> the module that builds and restores it. Loaded when asked for: numba
# and JAX take their time, and some need libraries that not everyone has.
_MODULES = {
  "exact": "exact",
  "kd_tree": "kd_tree",
  "graph": "graph",
  "inverted_file": "inverted_file",
  "faiss": "faiss_index",
  "scann": "scann_index",
  "bag_of_words": "bag_of_words",
}
KINDS = tuple(_MODULES)
# The one kind that ranks photographs: it has no `search`, and `build` is told
# which descriptors are of one photograph.
BAG_OF_WORDS = "bag_of_words"


class Index(Protocol):
  """What every kind of index does.

  Attributes:
    nbytes: what it holds in memory.
  """

  nbytes: int

  def search(
    self,
    queries: np.ndarray,
    k: int,
    *,
    exclude: tuple[int, int] | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Finds near descriptors.

    Args:
      queries: [m, d].
      k: at least 1.
      exclude: rows [start, stop) are left out.

    Returns:
      distances [m, k] float32, Euclidean, ascending, and rows [m, k]; equal
      distances in the order of rows; (inf, -1) where there are no more.
    """

  def save(
    self,
    path: str | os.PathLike,
    *,
    provenance: Mapping[str, Any] | None = None,
  ) -> None:
    """Saves to an index directory; see `directory.write`."""


@runtime_checkable
class PhotographIndex(Protocol):
  """What a bag of words does instead: it ranks photographs."""

  def describe(self, descriptors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the words of descriptors [m, d] and their weights, [m, s]."""

  def rank(
    self,
    words: np.ndarray,
    weights: np.ndarray,
    *,
    leave_out: int | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns photographs [r] that have any of the words, and cosines [r]."""

  def same_words(
    self, words: np.ndarray, photograph: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns features [k] and rows [k] of all that share a word."""


def build_index(kind: str, descriptors: np.ndarray, **options: Any) -> Index:
  """Builds an index over descriptors.

  Args:
    kind: one of `KINDS` but `BAG_OF_WORDS`; README.md says which for how many
      photographs.
    descriptors: [n, d] float32.
    **options: of the kind's `build`.

  Raises:
    InputError: if the kind or an option is unknown, or a descriptor cannot be
      used.
  """
  if kind == BAG_OF_WORDS:
    raise InputError(
      f"a {kind} finds photographs and not descriptors; choose another kind of "
      f"index"
    )
  return call(module(kind).build, kind, descriptors, **options)


def open_index(
  path: str | os.PathLike, *, verify: bool = True
) -> Index | PhotographIndex:
  """Opens what an index's `save` wrote, whatever its kind.

  Args:
    path: the index directory.
    verify: also read every byte, to compare checksums and to see that the
      structure is sound. Without it a huge index opens at once, mapped into
      memory; leave it out only for files that you trust.

  Returns:
    an index that answers as the saved one did, to the bit.

  Raises:
    InputError: if it is missing, damaged, of a later version or no index.
  """
  meta, arrays = directory.read(path, kinds=KINDS, verify=verify)
  try:
    return module(meta["kind"]).restore(
      meta["parameters"], arrays, verify=verify
    )
  except (KeyError, TypeError, ValueError) as error:
    raise directory.damaged(path, error) from error


def module(kind: str) -> Any:
  """Returns the module of a kind.

  Raises:
    InputError: if there is no such kind.
  """
  if kind not in _MODULES:
    raise InputError(
      f"{kind!r} is no kind of index; expected one of {', '.join(KINDS)}"
    )
  return importlib.import_module(f"delf_jax.index.{_MODULES[kind]}")


def call(function: Any, kind: str, *arguments: Any, **options: Any) -> Any:
  """Calls a kind's function with a user's options.

  Raises:
    InputError: if it has no such option, or the option no such value.
  """
  known = inspect.signature(function).parameters
  unknown = sorted(options.keys() - known.keys())
  if unknown:
    own = [name for name, p in known.items() if p.kind == p.KEYWORD_ONLY]
    raise InputError(
      f"{', '.join(unknown)}: no option of {kind}; it has {', '.join(own)}"
    )
  try:
    return function(*arguments, **options)
  except (TypeError, ValueError) as error:
    if not options:
      raise
    raise InputError(f"{kind}: an option does not fit: {error}") from error
