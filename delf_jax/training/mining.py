"""Which photographs a ranking stage compares next: the hard ones.

Whatever is drawn here is a pure function of a random key and of descriptors,
so that a run which goes on after a stop learns from the same tuples.
"""

import functools

import jax
import jax.numpy as jnp

from delf_jax.training import ranking_losses

# Queries that are compared with the whole pool at a time.
_BLOCK = 64


@functools.partial(jax.jit, static_argnames="count")
def hard_negatives(
  queries: jax.Array,
  clusters: jax.Array,
  pool: jax.Array,
  pool_clusters: jax.Array,
  mask: jax.Array,
  *,
  count: int,
) -> tuple[jax.Array, jax.Array]:
  """Finds negatives of queries; see `ranking_losses.mine_negatives`.

  Args:
    queries: [q, d].
    clusters: [q] int.
    pool: [n, d].
    pool_clusters: [n] int.
    mask: [n] bool, the photographs of the pool that may be taken.
    count: of every query.

  Returns:
    [q, count] rows of the pool and [q, count] bool, which of them there are.
  """
  return jax.lax.map(
    lambda query: ranking_losses.mine_negatives(
      *query, pool, pool_clusters, mask, count=count
    ),
    (queries, clusters),
    batch_size=_BLOCK,
  )


@functools.partial(jax.jit, static_argnames=("count", "hardest", "margin"))
def draw_triplets(
  key: jax.Array,
  descriptors: jax.Array,
  labels: jax.Array,
  mask: jax.Array,
  *,
  count: int,
  hardest: int = 25,
  margin: float = 0.1,
) -> tuple[jax.Array, jax.Array]:
  """Draws triplets that are violated, each query as often as any other.

  Args:
    key: of chance.
    descriptors: [n, d] of a random sample of photographs.
    labels: [n] int, their landmarks.
    mask: [n] bool, which of them there are.
    count: triplets.
    hardest: of a query, from which one is drawn.
    margin: see `ranking_losses.triplet`.

  Returns:
    [count, 3] rows of query, positive and negative, and [count] bool, which of
    them there are: all, or, if no triplet is violated, none.
  """
  positives, negatives, lost = jax.lax.map(
    lambda row: ranking_losses.hardest_triplets(
      row, descriptors, labels, mask, count=hardest, margin=margin
    ),
    jnp.arange(len(labels)),
    batch_size=_BLOCK,
  )
  number = jnp.sum(lost, axis=1)  # [n]; the violated come first
  for_query, for_triplet = jax.random.split(key)
  fit = jnp.where(number > 0, 1.0, 0.0)
  total = jnp.sum(fit)
  queries = jax.random.choice(
    for_query,
    len(labels),
    (count,),
    p=jnp.where(total > 0, fit / jnp.maximum(total, 1.0), 1.0 / len(labels)),
  )
  places = jax.random.randint(
    for_triplet, (count,), 0, jnp.maximum(number[queries], 1)
  )
  rows = jnp.stack(
    [queries, positives[queries, places], negatives[queries, places]], axis=1
  )
  return rows, number[queries] > 0
