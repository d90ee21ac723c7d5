"""The correspondences of a pair, as the search of RANSAC wants them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from delf_jax.geometry import sampling

# Correspondences that score all hypotheses.
SUBSET = 64

# What the weight of 1 counts.
WEIGHT_STEPS = 64


class Correspondences(NamedTuple):
  """The correspondences of a pair: the first `count` of [m] are real.

  Attributes:
    points: [m, 4] float32, source and target; others have a target at
      infinity, which no transform reaches.
    count: int32.
    ratios: [m] float32, sizes of target features by those of source features.
    weights: [m] int32, what each counts; None for 1.
  """

  points: jax.Array
  count: jax.Array
  ratios: jax.Array | None = None
  weights: jax.Array | None = None


def compact(
  rows: Correspondences, valid: jax.Array, *, by_ratio: bool
) -> Correspondences:
  """Moves the valid rows to the front, in order of their ratios if asked.

  The number of rows is rounded up to a multiple of SUBSET.
  """
  pad = -len(valid) % SUBSET
  valid = jnp.pad(valid, (0, pad))
  real = jnp.arange(len(valid)) < rows.count

  def padded(values):
    widths = ((0, pad), *((0, 0),) * (values.ndim - 1))
    return jnp.pad(values, widths) if values.ndim else values

  rows = jax.tree.map(padded, rows)

  def sorted_by(keys):
    order = jnp.argsort(keys, stable=True)
    return jax.tree.map(
      lambda values: values[order] if values.ndim else values, rows
    )

  if by_ratio:
    rows = sorted_by(jnp.where(valid, rows.ratios, jnp.inf))
  else:
    # Sorting takes longer than everything else and there is mostly nothing to
    # sort: `verify` pads at the end.
    rows = jax.lax.cond(
      jnp.all(valid == real), lambda: rows, lambda: sorted_by(~valid)
    )
  nowhere = jnp.array([0.0, 0.0, jnp.inf, jnp.inf], jnp.float32)
  return rows._replace(points=jnp.where(real[:, None], rows.points, nowhere))


def subset(seed: jax.Array, rows: Correspondences) -> Correspondences:
  """Draws SUBSET rows, one from each of as many equal stretches.

  All rows, and rows at infinity, where there are not as many.
  """
  numbers = jnp.arange(SUBSET)
  jitter = sampling.uniform(seed, numbers.astype(jnp.uint32))
  spread = (numbers.astype(jnp.float32) + jitter) * (
    rows.count.astype(jnp.float32) / SUBSET
  )
  # The last jitter may round up to the row behind the last.
  spread = jnp.minimum(spread.astype(jnp.int32), rows.count - 1)
  numbers = jnp.where(rows.count > SUBSET, spread, numbers)
  return jax.tree.map(
    lambda values: (
      jnp.take(values, numbers, axis=0, mode="clip") if values.ndim else values
    ),
    rows,
  )
