"""Losses that compare global descriptors, and the negatives they learn from.

Descriptors are of unit length. Every loss is of one query; `vmap` makes it of
a batch.
"""

import jax
import jax.numpy as jnp

# Added to squared distances, whose root has no derivative at zero.
EPSILON = 1e-12


def contrastive(
  query: jax.Array,
  others: jax.Array,
  positive: jax.Array,
  mask: jax.Array | None = None,
  *,
  margin: float = 0.7,
) -> jax.Array:
  """Draws a query to its positives and pushes negatives beyond a margin.

  Radenovic et al. (ECCV 2016): half the squared distance of a positive, half
  the square of what a negative's distance lacks of the margin.

  Args:
    query: [d].
    others: [k, d].
    positive: [k] bool, which of them match.
    mask: [k] bool, which of them there are; None for all.
    margin: distance that negatives should have, from 0 to 2.

  Returns:
    scalar, the sum over the pairs.
  """
  apart = jnp.sqrt(_squared_distances(query, others) + EPSILON)
  lacking = jnp.maximum(margin - apart, 0.0)
  losses = 0.5 * jnp.where(positive, apart, lacking) ** 2
  if mask is not None:
    losses = jnp.where(mask, losses, 0.0)
  return jnp.sum(losses)


def triplet(
  query: jax.Array,
  positive: jax.Array,
  negative: jax.Array,
  *,
  margin: float = 0.1,
) -> jax.Array:
  """Wants a positive nearer than a negative, by a margin of squared distance.

  Gordo et al. (ECCV 2016).

  Args:
    query: [d].
    positive: [d].
    negative: [d].
    margin: of the squared distances, from 0 to 4.

  Returns:
    scalar.
  """
  near, far = _squared_distances(query, jnp.stack([positive, negative]))
  return 0.5 * jnp.maximum(margin + near - far, 0.0)


def average_precision(
  scores: jax.Array,
  positive: jax.Array,
  mask: jax.Array | None = None,
  *,
  bins: int = 20,
  low: float = 0.0,
  high: float = 1.0,
) -> jax.Array:
  """Average precision of a ranking, made differentiable by quantisation.

  Revaud et al. (ICCV 2019), whose loss is one minus its mean: scores fall
  softly into bins, each into the two whose centres are nearest, and those of
  one bin share a rank.

  Args:
    scores: [n] of a query's whole batch, such as dot products.
    positive: [n] bool, which of them match.
    mask: [n] bool, which of them there are; None for all.
    bins: centres, evenly from `high` to `low`.
    low: scores below count as this.
    high: scores above count as this.

  Returns:
    scalar from 0 to 1; 0 if nothing matches.
  """
  if mask is None:
    mask = jnp.ones(scores.shape, bool)
  centres = jnp.linspace(high, low, bins)
  step = (high - low) / (bins - 1)
  inside = jnp.clip(jnp.where(mask, scores, low), low, high)
  apart = jnp.abs(inside[None, :] - centres[:, None]) / step
  shares = jnp.maximum(1.0 - apart, 0.0)  # [bins, n]
  shares = jnp.where(mask[None, :], shares, 0.0)
  right = jnp.sum(jnp.where(positive[None, :], shares, 0.0), axis=1)
  everything = jnp.cumsum(jnp.sum(shares, axis=1))
  precision = jnp.cumsum(right) / jnp.maximum(everything, 1e-9)
  count = jnp.maximum(jnp.sum(positive & mask), 1)
  return jnp.sum(precision * right) / count


def mine_negatives(
  query: jax.Array,
  cluster: jax.Array,
  pool: jax.Array,
  clusters: jax.Array,
  mask: jax.Array | None = None,
  *,
  count: int = 5,
) -> tuple[jax.Array, jax.Array]:
  """Finds the photographs most similar to a query that cannot match it.

  Radenovic et al. (ECCV 2016): none shows the query's 3-D cluster, nor the
  cluster of another, so that they are hard and differ.

  Args:
    query: [d].
    cluster: scalar int, of the query.
    pool: [n, d] photographs to choose from.
    clusters: [n] int, of these.
    mask: [n] bool, which of them may be taken; None for all.
    count: how many.

  Returns:
    [count] rows of the pool, the hardest first, and [count] bool, which of them
    there are.
  """
  clusters = jnp.asarray(clusters)
  similar = jnp.einsum("nd,d->n", pool, query)

  def take(allowed, _):
    row = jnp.argmax(jnp.where(allowed, similar, -jnp.inf))
    there = jnp.any(allowed)
    return allowed & (clusters != clusters[row]), (row, there)

  allowed = clusters != cluster
  if mask is not None:
    allowed = allowed & mask
  _, (rows, there) = jax.lax.scan(take, allowed, None, length=count)
  return rows, there


def hardest_triplets(
  row: jax.Array,
  descriptors: jax.Array,
  labels: jax.Array,
  mask: jax.Array,
  *,
  count: int = 25,
  margin: float = 0.1,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Finds the triplets of a query that are violated most.

  Gordo et al. (IJCV 2017) draw from these, 25 a query, in place of the hardest
  of all: those are often mistakes of the labels.

  Args:
    row: scalar int, the query's.
    descriptors: [n, d] of a random sample of photographs.
    labels: [n] int, their landmarks.
    mask: [n] bool, which of them there are.
    count: triplets.
    margin: see `triplet`.

  Returns:
    [count] positives and [count] negatives, rows, the largest loss first, and
    [count] bool, which of them have a loss.
  """
  similar = jnp.einsum("nd,d->n", descriptors, descriptors[row])
  alike = (labels == labels[row]) & mask
  positive = alike & (jnp.arange(len(labels)) != row)
  most = min(count, len(labels))
  near, positives = jax.lax.top_k(jnp.where(positive, -similar, -jnp.inf), most)
  far, negatives = jax.lax.top_k(
    jnp.where(mask & ~alike, similar, -jnp.inf), most
  )
  # Squared distances of unit vectors are 2 - 2 similarities.
  lost = margin + 2 * (near[:, None] + far[None, :])
  lost = jnp.where(mask[row], lost, -jnp.inf).reshape(-1)
  most_lost, places = jax.lax.top_k(lost, min(count, most * most))
  first, second = jnp.divmod(places, most)
  return positives[first], negatives[second], most_lost > 0


def _squared_distances(query: jax.Array, others: jax.Array) -> jax.Array:
  return jnp.sum((others - query[None, :]) ** 2, axis=-1)
