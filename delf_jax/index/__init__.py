"""Descriptors -> nearest descriptors: one file a kind, one interface.

built = build_index("graph", descriptors)
distances, rows = built.search(queries, 10)
built.save(path, provenance={"store": ...})
open_index(path).search(queries, 10)  # the same bits
"""

import os
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from delf_jax.errors import InputError
from delf_jax.index import directory
from delf_jax.index.directory import read_meta as read_meta

if TYPE_CHECKING:
  from delf_jax.index.exact import ExactIndex
  from delf_jax.index.graph import GraphIndex

KINDS = ("exact", "graph")


def build_index(
  kind: str, descriptors: np.ndarray, **options: Any
) -> Union["ExactIndex", "GraphIndex"]:
  """Builds an index over descriptors.

  Args:
    kind: "exact" compares a query with every descriptor; "graph" with a few
      hundred of them, and misses some neighbours.
    descriptors: [n, d] float32.
    **options: of `exact.build` or `graph.build`.

  Raises:
    InputError: if the kind is unknown or a descriptor cannot be used.
  """
  if kind not in KINDS:
    raise InputError(f"{kind!r} is no kind of index; expected exact or graph")
  return _module(kind).build(descriptors, **options)


def open_index(
  path: str | os.PathLike, *, verify: bool = True
) -> Union["ExactIndex", "GraphIndex"]:
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
    return _module(meta["kind"]).restore(
      meta["parameters"], arrays, verify=verify
    )
  except (KeyError, TypeError, ValueError) as error:
    raise directory.damaged(path, error) from error


def _module(kind: str) -> Any:
  # Loaded when asked for: numba and JAX take their time.
  if kind == "exact":
    from delf_jax.index import exact

    return exact
  from delf_jax.index import graph

  return graph
