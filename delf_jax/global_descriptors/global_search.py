"""Ranking by global descriptors: the dot product is the score.

`search` takes the place of `retrieval.search` where every photograph has one
descriptor; nothing is verified.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from delf_jax.errors import InputError
from delf_jax.features.local_features import LocalFeatures
from delf_jax.global_descriptors import query_expansion
from delf_jax.retrieval import Database

# Photographs that a ranking ends after: mean average precision hardly sees
# what comes then, and 800 rankings of 100,000 photographs fill a disk.
RANKED = 10_000


class Found(NamedTuple):
  """One photograph of a ranking.

  Attributes:
    path: of the photograph.
    score: dot product with the query, or the expanded query; from -1 to 1.
  """

  path: str
  score: float


def search(
  query: LocalFeatures,
  size: tuple[int, int],
  database: Database,
  *,
  expansion: int = 0,
  alpha: float = 0.0,
  ranked: int = RANKED,
  leave_out: int | None = None,
) -> list[Found]:
  """Ranks the photographs of a database by their similarity to a query.

  Args:
    query: its one descriptor.
    size: of the query, which does not matter.
    database: with one row of `descriptors` a photograph, or none.
    expansion: photographs that the query is averaged with, before it is asked
      again; 0 for none, 1 as the paper ran it.
    alpha: see `query_expansion.expand`.
    ranked: photographs returned at most.
    leave_out: a photograph that must not be found: the query itself.

  Returns:
    photographs, the most similar first; equal ones by place in the database.

  Raises:
    InputError: if photographs have several descriptors.
  """
  del size
  counts = np.diff(database.offsets)
  if len(query.descriptors) > 1 or counts.max(initial=0) > 1:
    raise InputError(
      "a search by global descriptors needs one descriptor a photograph, and "
      "these have more: they are local features"
    )
  images = np.flatnonzero(counts)
  if not len(query.descriptors) or not len(images):
    return []
  there = np.ones(len(images), bool)
  if leave_out is not None:
    there = images != leave_out
  descriptors = jnp.asarray(database.descriptors)
  scores = _scores(
    jnp.asarray(query.descriptors[0]),
    descriptors,
    jnp.asarray(there),
    expansion=min(expansion, len(images)),
    alpha=alpha,
  )
  scores = np.asarray(scores)
  order = np.argsort(-scores, kind="stable")
  order = order[there[order]][:ranked]
  return [
    Found(database.paths[images[row]], float(scores[row])) for row in order
  ]


def prepare(
  database: Database, *, neighbours: int = 0, alpha: float = 0.0
) -> Database:
  """Readies a database for many searches.

  Args:
    database: of global descriptors.
    neighbours: see `query_expansion.augment_database`; 0 for none.
    alpha: likewise.

  Returns:
    the same with its descriptors, perhaps augmented, on JAX's device.
  """
  descriptors = jnp.asarray(database.descriptors)
  if neighbours:
    descriptors = query_expansion.augment_database(
      descriptors, neighbours=neighbours, alpha=alpha
    )
  return dataclasses.replace(database, descriptors=descriptors)


@functools.partial(jax.jit, static_argnames=("expansion", "alpha"))
def _scores(query, descriptors, there, *, expansion, alpha):
  """Returns [n] similarities; of those that are not there, -infinity."""

  def similar(query):
    found = jnp.einsum(
      "nd,d->n", descriptors, query, precision=jax.lax.Precision.HIGHEST
    )
    return jnp.where(there, found, -jnp.inf)

  scores = similar(query)
  if not expansion:
    return scores
  _, rows = jax.lax.top_k(scores, expansion)
  return similar(
    query_expansion.expand(query, descriptors[rows], there[rows], alpha=alpha)
  )
