"""Which correspondences make a sample: four ways to draw rows.

  uniform     any rows
  prosac      rows come best first; half of the samples are drawn from the first
              rows, few at first and more and more of them (after Chum and
              Matas, 2005), the others from all
  scale       rows whose features grow by about as much
  exhaustive  each row by itself, one after the other

All draw from counters and a seed: a sample depends on its number alone.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

SamplingName = Literal["uniform", "prosac", "scale", "exhaustive"]

# Rows agree in scale that differ by at most this factor. Features come from
# levels of a pyramid a factor of 1.4 apart, and the level that sees a thing is
# one off as often as not.
AGREEMENT = 1.6

# So many times as many samples as are drawn would come to draw from all rows
# in "prosac": it stays with the first ones for longer.
HORIZON = 32


class Pool(NamedTuple):
  """What samples of a pair are drawn from.

  Attributes:
    seed: uint32.
    count: int32, rows to draw from: the first so many.
    last: int32, how many samples are drawn at most.
    start: [m] int32, for "scale", whose rows are sorted: the first row that
      agrees with this one; None otherwise.
    size: [m] int32, how many do.
  """

  seed: jax.Array
  count: jax.Array
  last: jax.Array
  start: jax.Array | None = None
  size: jax.Array | None = None


def agreeing(
  ratios: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the runs of rows that agree in scale, for a `Pool`.

  Args:
    ratios: [m] float32, positive and ascending in the first `count` rows.
    count: int32.

  Returns:
    the first row that agrees with each row [m] int32, and how many do.
  """
  real = jnp.arange(len(ratios)) < count
  ratios = jnp.where(real, ratios, jnp.inf)
  start = jnp.searchsorted(ratios, ratios / AGREEMENT, side="left")
  stop = jnp.searchsorted(ratios, ratios * AGREEMENT, side="right")
  stop = jnp.minimum(stop, count)
  return start.astype(jnp.int32), (stop - start).astype(jnp.int32)


def draw(
  pool: Pool, first: jax.Array, *, number: int, rows: int, sampling: str
) -> jax.Array:
  """Draws samples.

  Args:
    pool: what from.
    first: int32, the number of the first sample.
    number: how many samples.
    rows: how many rows in each.
    sampling: one of `SamplingName`.

  Returns:
    [rows, number] int32. A row may come twice in one sample, which is void
    then.
  """
  samples = first + jnp.arange(number)
  if sampling == "exhaustive":
    return samples[None]
  counter = (first * rows).astype(jnp.uint32)
  counter += jnp.arange(rows * number, dtype=jnp.uint32)
  uniforms = uniform(pool.seed, counter).reshape(rows, number)
  if sampling == "prosac":
    # The k-th power of the pool's size grows evenly: as many samples of a pool
    # are drawn as it would get among HORIZON times as many of all rows.
    last = HORIZON * pool.last.astype(jnp.float32)
    size = pool.count.astype(jnp.float32) * (
      (samples + 1).astype(jnp.float32) / last
    ) ** (1.0 / rows)
    size = jnp.ceil(size).astype(jnp.int32)
    size = jnp.clip(size, jnp.minimum(4 * rows, pool.count), pool.count)
    # Halves of the round: samples refused are replaced from their neighbours.
    size = jnp.where(jnp.arange(number) < number // 2, size, pool.count)
    return (uniforms * size[None].astype(jnp.float32)).astype(jnp.int32)
  drawn = (uniforms * pool.count.astype(jnp.float32)).astype(jnp.int32)
  if sampling == "scale":
    anchor = drawn[:1]
    start, size = (
      jnp.take(values, anchor, mode="clip") for values in pool[-2:]
    )
    others = (uniforms[1:] * size.astype(jnp.float32)).astype(jnp.int32)
    drawn = jnp.concatenate([anchor, start + others])
  return drawn


def uniform(seed: jax.Array, counter: jax.Array) -> jax.Array:
  """Maps counters [...] and a seed to floats in [0, 1), as good as random.

  A 32-bit mixer (the finaliser of MurmurHash3 with the constants of Wellons'
  lowbias32). For the samples of a pair JAX's own generator would take longer
  than everything else together; it makes the seed.
  """
  x = counter * jnp.uint32(0x9E3779B9) + seed
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  x = x ^ (x >> 16)
  return (x >> 8).astype(jnp.float32) * 2.0**-24
