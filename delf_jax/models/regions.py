"""The grid of squares that R-MAC pools over (Tolias et al., ICLR 2016).

At level l squares of side 2 * short / (l + 1) stand l deep along the short side
and l + extra along the long one; `extra`, the same for all levels, is the one
whose overlap at level 1 comes closest to 40 %. The published programs compute
this in floating point and round down; here it is done in whole numbers, so
that sizes may be known at run time only and no rounding decides.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

MOST_EXTRA = 6


class Regions(NamedTuple):
  """Rectangles, some of which may be no region.

  Attributes:
    edges: [r, 4] int32 top, left, bottom, right; the last two are exclusive.
    mask: [r] bool, True for regions.
  """

  edges: jax.Array
  mask: jax.Array


def most_regions(levels: int) -> int:
  """Returns the rows of `grid`, whatever the shape of the rectangle."""
  return sum(level * (level + MOST_EXTRA) for level in range(1, levels + 1))


def extra_regions(size: jax.Array) -> jax.Array:
  """Returns how many more squares stand along the longer side, 0 to 6.

  Args:
    size: [2] int32 height and width.
  """
  short, long = jnp.min(size), jnp.max(size)
  steps = jnp.arange(1, MOST_EXTRA + 1)
  # |1 - (long - short) / (steps * short) - 0.4|, times 300 * short.
  common = math.lcm(*range(1, MOST_EXTRA + 1))
  apart = jnp.abs(3 * short * steps - 5 * (long - short)) * (common // steps)
  return jnp.where(long > short, jnp.argmin(apart) + 1, 0)


def grid(size: jax.Array, *, levels: int) -> Regions:
  """Lays the squares of every level on a rectangle.

  Args:
    size: [2] int32 height and width, of an image or of a feature map.
    levels: 2 in DIR, 3 in R-MAC and siaMAC.

  Returns:
    `most_regions(levels)` regions, masked.
  """
  size = jnp.asarray(size, jnp.int32)
  short = jnp.min(size)
  extra = extra_regions(size)
  extras = jnp.where(size == short, 0, extra)
  edges, masks = [], []
  for level in range(1, levels + 1):
    side = 2 * short // (level + 1)
    # Rows run along whichever side is short, columns along the other.
    place = jnp.arange(level + MOST_EXTRA)
    starts = [
      place * (length - side) // jnp.maximum(level + more - 1, 1)
      for length, more in zip(size, extras, strict=True)
    ]
    upright = size[0] > size[1]
    along_short = jnp.where(upright, starts[1], starts[0])[:level]
    along_long = jnp.where(upright, starts[0], starts[1])
    first, second = (
      x.reshape(-1)
      for x in jnp.meshgrid(along_short, along_long, indexing="ij")
    )
    top = jnp.where(upright, second, first)
    left = jnp.where(upright, first, second)
    edges.append(jnp.stack([top, left, top + side, left + side], axis=1))
    there = (place < level + extra) & (side > 0)
    masks.append(jnp.broadcast_to(there[None], (level, len(place))).ravel())
  return Regions(jnp.concatenate(edges), jnp.concatenate(masks))


def on_map(regions: Regions, size: jax.Array, *, stride: int) -> Regions:
  """Carries regions of an image over to its feature map, as RoI pooling does.

  The first and the last pixel are divided by the stride, rounded to the
  nearest, and both belong to the region.

  Args:
    regions: on the image.
    size: [2] int32 height and width of the map.
    stride: pixels of the image between two of the map.

  Returns:
    the same regions on the map; those that lie outside are none.
  """
  first = (regions.edges[:, :2] + stride // 2) // stride
  last = (regions.edges[:, 2:] - 1 + stride // 2) // stride
  first = jnp.minimum(first, size[None, :])
  last = jnp.minimum(jnp.maximum(last, first) + 1, size[None, :])
  there = regions.mask & jnp.all(last > first, axis=1)
  return Regions(jnp.concatenate([first, last], axis=1), there)


def inside(edges: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """Returns [*shape] bool, True within the [4] edges of a region."""
  rows, columns = jnp.arange(shape[0]), jnp.arange(shape[1])
  down = (rows >= edges[0]) & (rows < edges[2])
  across = (columns >= edges[1]) & (columns < edges[3])
  return down[:, None] & across[None, :]
