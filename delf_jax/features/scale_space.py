"""What detectors of blobs share: grey pixels, extrema in scale space.

A detector gives its responses in octaves, [layers, h, w] each, on ever coarser
grids. An extremum is an element above its 26 neighbours in place and scale; it
is refined to a fraction of a step by the parabola through its neighbours
(Brown and Lowe, "Invariant features from interest point groups", BMVC 2002).
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

# Candidates a feature wanted: some are dropped when they are refined.
SPARE = 4

# How far from its element the top of the parabola may lie, in steps.
FURTHEST = 1.0

_STEPS = [
  (layer, y, x) for layer in (0, 1, 2) for y in (0, 1, 2) for x in (0, 1, 2)
]


@flax.struct.dataclass
class Extrema:
  """Extrema of all octaves together, best first.

  Attributes:
    octave: [n] int32, which octave.
    layer: [n] layer in the octave, with its fraction.
    location: [n, 2] (y, x) on the octave's grid, with their fractions.
    response: [n] at the refined place.
    neighbours: [n, 3, 3, 3] responses around the element, by layer, y, x.
    mask: [n] bool, which rows are real.
  """

  octave: jax.Array
  layer: jax.Array
  location: jax.Array
  response: jax.Array
  neighbours: jax.Array
  mask: jax.Array


def to_grey(pixels: jax.Array) -> jax.Array:
  """Turns [..., 3] uint8 RGB into [...] int32 as OpenCV's RGB2GRAY does."""
  weights = jnp.array([9798, 19235, 3735], jnp.int32)
  total = jnp.sum(
    pixels.astype(jnp.int32) * weights.reshape((1,) * (pixels.ndim - 1) + (3,)),
    axis=-1,
  )
  return (total + 16384) >> 15


def is_maximum(responses: jax.Array) -> jax.Array:
  """Tells which elements of [l, h, w] are above all 26 neighbours.

  Of equal neighbours the first in row-major order is taken to be the higher.
  What lies outside is below everything.

  Returns:
    [l, h, w] bool; False in the first and the last layer.
  """
  layers, height, width = responses.shape
  if layers < 3:
    return jnp.zeros(responses.shape, bool)
  around = jnp.pad(
    responses, ((0, 0), (1, 1), (1, 1)), constant_values=-jnp.inf
  )
  own = responses[1:-1]
  found = jnp.ones(own.shape, bool)
  for number, (layer, y, x) in enumerate(_STEPS):
    other = around[layer : layer + layers - 2, y : y + height, x : x + width]
    if number < len(_STEPS) // 2:
      found &= own > other
    elif number > len(_STEPS) // 2:
      found &= own >= other
  return jnp.pad(found, ((1, 1), (0, 0), (0, 0)))


def refine(neighbours: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Finds the top of the parabola through a response and its neighbours.

  Args:
    neighbours: [3, 3, 3] responses by layer, y, x.

  Returns:
    [3] where it lies from the middle, in steps, and the response there. Where
    there is no single top, NaN or a place far away.
  """
  middle = neighbours[1, 1, 1]

  def along(axis):
    line = jnp.moveaxis(neighbours, axis, 0)[:, 1, 1]
    return (line[2] - line[0]) / 2, line[2] - 2 * middle + line[0]

  def across(axis, other):
    plane = jnp.moveaxis(neighbours, (axis, other), (0, 1))[:, :, 1]
    return (plane[2, 2] - plane[2, 0] - plane[0, 2] + plane[0, 0]) / 4

  (gs, ss), (gy, yy), (gx, xx) = (along(axis) for axis in range(3))
  sy, sx, yx = across(0, 1), across(0, 2), across(1, 2)
  gradient = jnp.stack([gs, gy, gx])
  adjugate = jnp.stack(
    [
      jnp.stack([yy * xx - yx * yx, sx * yx - sy * xx, sy * yx - sx * yy]),
      jnp.stack([sx * yx - sy * xx, ss * xx - sx * sx, sy * sx - ss * yx]),
      jnp.stack([sy * yx - sx * yy, sy * sx - ss * yx, ss * yy - sy * sy]),
    ]
  )
  determinant = ss * adjugate[0, 0] + sy * adjugate[0, 1] + sx * adjugate[0, 2]
  moved = jnp.sum(adjugate * gradient[None, :], axis=1)
  # Three negative curvatures make a top, and a negative determinant.
  offset = jnp.where(determinant < 0, -moved / determinant, jnp.nan)
  return offset, middle + jnp.sum(gradient * offset) / 2


class _Layout(NamedTuple):
  """Where the elements of several octaves lie in one flat array."""

  starts: np.ndarray
  heights: np.ndarray
  widths: np.ndarray


def _layout(shapes: Sequence[tuple[int, int, int]]) -> _Layout:
  sizes = [int(np.prod(shape)) for shape in shapes]
  return _Layout(
    starts=np.cumsum([0, *sizes[:-1]]).astype(np.int32),
    heights=np.array([shape[1] for shape in shapes], np.int32),
    widths=np.array([shape[2] for shape in shapes], np.int32),
  )


def find_extrema(
  octaves: Sequence[tuple[jax.Array, jax.Array]],
  *,
  threshold: float,
  max_features: int,
) -> Extrema:
  """Finds the best maxima of several octaves and refines them.

  Args:
    octaves: of each octave [l, h, w] responses, finite, and [l, h, w] bool,
      where an element may be a maximum.
    threshold: the least response.
    max_features: so many maxima are refined, and `SPARE` times as many to
      begin with.
  """
  layout = _layout([responses.shape for responses, _ in octaves])
  responses = jnp.concatenate([r.ravel() for r, _ in octaves])
  peaks = jnp.concatenate(
    [
      jnp.where(is_maximum(r) & allowed & (r > threshold), r, -jnp.inf).ravel()
      for r, allowed in octaves
    ]
  )
  count = min(SPARE * max_features, peaks.shape[0])
  best, places = jax.lax.top_k(peaks, count)
  mask = best > -jnp.inf
  octave = (
    jnp.sum(places[:, None] >= jnp.asarray(layout.starts)[None, :], axis=1) - 1
  )
  height = jnp.asarray(layout.heights)[octave]
  width = jnp.asarray(layout.widths)[octave]
  inside = places - jnp.asarray(layout.starts)[octave]
  layer, within = inside // (height * width), inside % (height * width)
  y, x = within // width, within % width
  steps = jnp.asarray(np.array(_STEPS, np.int32) - 1)
  around = (
    places[:, None]
    + steps[None, :, 0] * (height * width)[:, None]
    + steps[None, :, 1] * width[:, None]
    + steps[None, :, 2]
  )
  neighbours = responses[jnp.clip(around, 0, responses.shape[0] - 1)]
  neighbours = neighbours.reshape(-1, 3, 3, 3)
  offset, response = jax.vmap(refine)(neighbours)
  mask &= jnp.all(jnp.abs(offset) <= FURTHEST, axis=1)
  mask &= response > threshold
  place = jnp.stack([y, x], axis=1).astype(jnp.float32)
  return Extrema(
    octave=octave,
    layer=jnp.where(mask, layer + offset[:, 0], 1.0),
    location=jnp.where(mask[:, None], place + offset[:, 1:], 0.0),
    response=jnp.where(mask, response, 0.0),
    neighbours=neighbours,
    mask=mask,
  )


def best_of(extrema: Extrema, mask: jax.Array, max_features: int) -> Extrema:
  """Keeps the rows of the highest responses, padded to `max_features`.

  Args:
    extrema: of one photograph.
    mask: [n] bool, the rows that may be kept.
    max_features: rows of the result.
  """
  missing = max(0, max_features - mask.shape[0])
  extrema = extrema.replace(mask=mask)
  extrema = jax.tree.map(
    lambda leaf: jnp.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1)),
    extrema,
  )
  scores = jnp.where(extrema.mask, extrema.response, -jnp.inf)
  _, rows = jax.lax.top_k(scores, max_features)
  return jax.tree.map(lambda leaf: leaf[rows], extrema)
