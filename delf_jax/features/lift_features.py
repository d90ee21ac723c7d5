"""Points of a scale space, each turned and described: LIFT's features.

Yi et al. (ECCV 2016, section 3.5): the detector scores every level of an image
pyramid, the best points in space and scale stay, and around each of them a
patch is cut out of its level, turned as it should be and described.

A photograph is padded to a canvas, as in `features.pyramid`; its true size is
data, not shape, and the padding changes nothing.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from delf_jax.features.local_features import LocalFeatures
from delf_jax.features.pyramid import (
  SCALES,
  Resize,
  level_size,
  resize_level,
)
from delf_jax.features.reduction import Reduction, reduce
from delf_jax.models.lift import PATCH
from delf_jax.models.spatial_transformer import UPRIGHT, grid, interpolate

# A point is better than all others in a square of so many pixels around it.
WINDOW = 5
# Patches that the networks see at a time, to bound the memory.
_CHUNK = 125
_BEST_OF_LEVEL = 4000


@dataclasses.dataclass(frozen=True)
class Network:
  """What extraction needs to know of the three networks.

  Attributes:
    detect: (variables, images [b, h, w]) -> scores where the convolution fits.
    orient: (variables, patches [b, 64, 64]) -> rotations [b, 2].
    describe: (variables, patches [b, 64, 64]) -> descriptors [b, d].
    grey: uint8 or float pixels [..., 3] -> what these want.
    border: pixels at each end of an image that get no score.
  """

  detect: Callable[[Any, jax.Array], jax.Array]
  orient: Callable[[Any, jax.Array], jax.Array]
  describe: Callable[[Any, jax.Array], jax.Array]
  grey: Callable[[jax.Array], jax.Array]
  border: int


def _largest(values: jax.Array, window: int) -> jax.Array:
  """Returns the largest of the window around each place of [h, w]."""
  return jax.lax.reduce_window(
    values, -jnp.inf, jax.lax.max, (window, window), (1, 1), "SAME"
  )


def _beside(outside: jax.Array) -> jax.Array:
  """Returns the places of [h, w] bool in or beside it, or at an end."""
  around = jnp.pad(outside, 1, constant_values=True)
  return _largest(around.astype(jnp.float32), 3)[1:-1, 1:-1] > 0


def maxima(
  scores: Sequence[jax.Array],
  masks: Sequence[jax.Array],
  sizes: jax.Array,
  *,
  window: int = WINDOW,
) -> list[jax.Array]:
  """Finds the places that are better than what surrounds them.

  On its own level a maximum is the largest in a window, which is not all
  alike; on the level before and after it is larger than the three by three
  places nearest to it. What lies beside the end of its level is none: it may
  be a slope.

  Args:
    scores: of each level, [h, w].
    masks: of each level, [h, w] bool; what lies outside is not compared.
    sizes: [levels, 2] true heights and widths.
    window: odd.

  Returns:
    [h, w] bool of each level.
  """
  inside = [
    jnp.where(mask, score, -jnp.inf)
    for score, mask in zip(scores, masks, strict=True)
  ]
  found = []
  for k, (score, mask) in enumerate(zip(inside, masks, strict=True)):
    least = -_largest(jnp.where(mask, -score, -jnp.inf), window)
    best = (score >= _largest(score, window)) & (score > least)
    best &= ~_beside(~mask)
    for other in (k - 1, k + 1):
      if not 0 <= other < len(scores):
        continue
      ratio = sizes[other] / jnp.maximum(sizes[k], 1)
      rows, columns = (
        jnp.clip(
          jnp.round((jnp.arange(length) + 0.5) * ratio[axis] - 0.5),
          0,
          inside[other].shape[axis] - 1,
        ).astype(jnp.int32)
        for axis, length in enumerate(score.shape)
      )
      near = _largest(inside[other], 3)[rows[:, None], columns[None, :]]
      best &= score > near
    found.append(best)
  return found


def refine(scores: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
  """Moves maxima to the top of a parabola through their neighbours.

  Args:
    scores: [h, w].
    rows: [n] int32 of maxima.
    columns: [n].

  Returns:
    [n, 2] float32 (y, x), at most half a pixel away.
  """
  middle = scores[rows, columns]
  moved = []
  for step in ((1, 0), (0, 1)):
    ends = [
      scores[
        jnp.clip(rows + sign * step[0], 0, scores.shape[0] - 1),
        jnp.clip(columns + sign * step[1], 0, scores.shape[1] - 1),
      ]
      for sign in (-1, 1)
    ]
    bend = ends[0] - 2.0 * middle + ends[1]
    slope = 0.5 * (ends[1] - ends[0])
    offset = jnp.where(bend < 0, -slope / jnp.where(bend < 0, bend, 1.0), 0.0)
    moved.append(jnp.clip(offset, -0.5, 0.5))
  whole = jnp.stack([rows, columns], axis=-1).astype(jnp.float32)
  return whole + jnp.stack(moved, axis=-1)


def make_extractor(
  network: Network,
  *,
  scales: Sequence[float] = SCALES,
  score_threshold: float = -np.inf,
  max_features: int = 1000,
  resize: Resize = "antialias",
) -> Callable[..., LocalFeatures]:
  """Builds the compiled extractor of one photograph.

  Args:
    network: the three networks.
    scales: of the image pyramid, in order.
    score_threshold: features below it are dropped.
    max_features: rows of the result.
    resize: see `pyramid.resize_level`.

  Returns:
    extract(variables, reduction, pixels [h, w, 3] uint8, size [2]) ->
    LocalFeatures; `size` is NumPy integers. One program is compiled for each
    shape of `pixels`. Locations are centres of patches, a pixel's centre at
    whole numbers; scales are 1 / scale of the level.
  """
  scales = tuple(sorted(float(scale) for scale in scales))

  @functools.partial(jax.jit, static_argnames="shapes")
  def run(variables, reduction, pixels, size, sizes, shapes):
    image = network.grey(pixels.astype(jnp.float32))
    tallest, widest = (max(shape[i] for shape in shapes) for i in range(2))
    levels, scores, masks = [], [], []
    for k, shape in enumerate(shapes):
      level = resize_level(image[..., None], size, sizes[k], shape, resize)
      level = level[..., 0]
      room = ((0, tallest - shape[0]), (0, widest - shape[1]))
      levels.append(jnp.pad(level, room))
      border = network.border
      # A canvas may be too small for the detector's kernel.
      least = 2 * border + 1
      lack = [(0, max(0, least - n)) for n in shape]
      score = network.detect(variables, jnp.pad(level, lack)[None])[0]
      score = jnp.pad(score, border)[: shape[0], : shape[1]]
      mask = jnp.ones(shape, bool)
      for axis, length in enumerate(shape):
        at = jnp.arange(length)
        fits = (at >= border) & (at < sizes[k][axis] - border)
        mask &= jnp.expand_dims(fits, 1 - axis)
      scores.append(score)
      masks.append(mask)
    candidates = [
      _best(score, best & (score >= score_threshold), k)
      for k, (score, best) in enumerate(
        zip(scores, maxima(scores, masks, sizes), strict=True)
      )
    ]
    found, points, level = (
      jnp.concatenate(parts) for parts in zip(*candidates, strict=True)
    )
    lack = max(0, max_features - len(found))
    found = jnp.pad(found, (0, lack), constant_values=-jnp.inf)
    best, rows = jax.lax.top_k(found, max_features)
    valid = best > -jnp.inf
    rows = jnp.where(valid, rows, 0)
    points, level = points[rows], level[rows]
    descriptors = _describe(
      network, variables, jnp.stack(levels), points, level, sizes[level]
    )
    ratio = size[None, :] / jnp.maximum(sizes, 1)
    locations = (points + 0.5) * ratio[level] - 0.5
    supports = jnp.array([1 / scale for scale in scales], jnp.float32)[level]
    descriptors = reduce(reduction, descriptors)
    return LocalFeatures(
      locations=jnp.where(valid[:, None], locations, 0.0),
      scales=jnp.where(valid, supports, 0.0),
      scores=jnp.where(valid, best, 0.0),
      descriptors=jnp.where(valid[:, None], descriptors, 0.0),
      mask=valid,
    )

  def extract(
    variables: Any,
    reduction: Reduction | None,
    pixels: np.ndarray,
    size: np.ndarray,
  ) -> LocalFeatures:
    sizes = [[level_size(int(n), scale) for n in size] for scale in scales]
    shapes = tuple(
      tuple(level_size(n, scale) for n in pixels.shape[:2]) for scale in scales
    )
    return run(
      variables,
      reduction,
      pixels,
      np.asarray(size, np.int32),
      np.array(sizes, np.int32),
      shapes=shapes,
    )

  return extract


def _best(scores, mask, number):
  """Lists the best places of a level: scores, refined points, the level."""
  flat = jnp.where(mask, scores, -jnp.inf).ravel()
  best, places = jax.lax.top_k(flat, min(_BEST_OF_LEVEL, len(flat)))
  rows, columns = jnp.divmod(places, scores.shape[1])
  points = refine(scores, rows, columns)
  return best, points, jnp.full(best.shape, number)


def _describe(network, variables, levels, points, level, sizes):
  """Turns and describes [n, 2] points, some at a time."""
  count = len(points)
  chunk = min(_CHUNK, count)
  lack = -count % chunk
  chunks = jax.tree.map(
    lambda x: jnp.pad(x, ((0, lack),) + ((0, 0),) * (x.ndim - 1)).reshape(
      -1, chunk, *x.shape[1:]
    ),
    (points, level, sizes),
  )

  def cut(point, number, size, rotation):
    places = grid(point, rotation, side=PATCH)
    return interpolate(levels, places, level=number, size=size)

  def some(part):
    upright = jnp.broadcast_to(jnp.array([UPRIGHT]), (chunk, 2))
    rotations = network.orient(variables, jax.vmap(cut)(*part, upright))
    return network.describe(variables, jax.vmap(cut)(*part, rotations))

  found = jax.lax.map(some, chunks)
  return found.reshape(-1, found.shape[-1])[:count]
