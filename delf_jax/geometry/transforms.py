"""Transforms of the plane: solve, fit, residual, stretch.

Points are (y, x) in pixels and a transform is a matrix [3, 3] that maps
(y, x, 1) of the source to (y, x, 1) of the target, up to a factor; its last row
is (0, 0, 1) for all but homographies (`geometry.homography`). Functions are
written for one transform and meant to be vmapped; those that solve also take
more axes behind the given ones, for samples of as many. Degenerate input never
raises here, it is answered with a flag or a harmless transform.
"""

import jax
import jax.numpy as jnp

# A triangle lower than about this part of its sides says nothing reliable about
# the plane.
MIN_TRIANGLE_HEIGHT = 1e-3

# The least ratio of a weighted covariance's determinant to its squared trace;
# float32 cannot invert what is flatter.
MIN_COVARIANCE_DETERMINANT = 1e-6

# Points summed at once, lane by lane (see ordered_products).
LANES = 64


def translation_scale_from_one(
  source: jax.Array, target: jax.Array, ratios: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Solves for translation and scale from one correspondence of features.

  Args:
    source: [1, 2] float32 point, (y, x).
    target: [1, 2] float32 point, (y, x), where it lands.
    ratios: [1] float32, the size of the target's feature divided by the size
      of the source's.

  Returns:
    The transform [3, 3] float32, and a bool: False where the ratio is not
    positive or anything is not finite, and the transform is void.
  """
  scale = ratios[0]
  shift_y = target[0, 0] - scale * source[0, 0]
  shift_x = target[0, 1] - scale * source[0, 1]
  ok = (scale > 0) & (jnp.abs(shift_y) + jnp.abs(shift_x) < jnp.inf)
  return _matrix(scale, 0.0, shift_y, 0.0, scale, shift_x), ok


def similarity_from_two(
  source: jax.Array, target: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Solves for the similarity (no mirror image) through two correspondences.

  Args:
    source: [2, 2] float32 points, (y, x).
    target: [2, 2] float32 points, (y, x), where they land.

  Returns:
    The transform [3, 3] float32, and a bool: False where two source points or
    two target points coincide or one is not finite, and the transform is void.
  """
  y, x = source[0, 0], source[0, 1]
  dy, dx = source[1, 0] - y, source[1, 1] - x
  dv, du = target[1, 0] - target[0, 0], target[1, 1] - target[0, 1]
  squared = dy * dy + dx * dx
  landed = dv * dv + du * du
  ok = (squared > 0) & (squared < jnp.inf) & (landed > 0) & (landed < jnp.inf)
  scale = 1.0 / jnp.where(ok, squared, 1.0)
  a = (dy * dv + dx * du) * scale
  b = (dy * du - dx * dv) * scale
  shift_y = target[0, 0] - a * y + b * x
  shift_x = target[0, 1] - b * y - a * x
  return _matrix(a, -b, shift_y, b, a, shift_x), ok


def affine_from_three(
  source: jax.Array, target: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Solves for the affine transform through three correspondences.

  Args:
    source: [3, 2] float32 points, (y, x).
    target: [3, 2] float32 points, (y, x), where they land.

  Returns:
    The transform [3, 3] float32, and a bool: False where the source points
    coincide, are nearly collinear or not finite, and the transform is void.
  """
  # By components: under vmap each line is one elementwise operation over all
  # hypotheses, several times faster than batched 3 x 3 solves.
  y, x = source[0, 0], source[0, 1]
  ay, ax = source[1, 0] - y, source[1, 1] - x
  by, bx = source[2, 0] - y, source[2, 1] - x
  area = ay * bx - ax * by
  longest = jnp.maximum(ay * ay + ax * ax, by * by + bx * bx)
  ok = jnp.abs(area) > MIN_TRIANGLE_HEIGHT * longest
  scale = 1.0 / jnp.where(ok, area, 1.0)
  rows = []
  for axis in range(2):
    start = target[0, axis]
    a, b = target[1, axis] - start, target[2, axis] - start
    along_y = (a * bx - b * ax) * scale
    along_x = (b * ay - a * by) * scale
    rows += [along_y, along_x, start - along_y * y - along_x * x]
  return _matrix(*rows), ok


def fit_translation_scale(
  source: jax.Array, target: jax.Array, weights: jax.Array
) -> jax.Array:
  """Fits translation and scale by weighted least squares, in closed form.

  Args:
    source: [n, 2] float32 points, (y, x).
    target: [n, 2] float32 points, (y, x).
    weights: [n] float32, not negative.

  Returns:
    [3, 3] float32. Where the weighted source points coincide, the translation
    between the means; without any weight, the identity. A scale that would be
    negative is 0: a collapse.
  """
  means, centred, weights = weighted_means(source, target, weights)
  yy, _, yv, _, xx, _, xu = _covariances(centred, weights)
  squared, along = yy + xx, yv + xu
  ok = _spread(squared)
  scale = jnp.where(ok, along / jnp.where(ok, squared, 1.0), 1.0)
  scale = jnp.maximum(scale, 0.0)
  return _around(means, scale, 0.0, 0.0, scale)


def fit_similarity(
  source: jax.Array, target: jax.Array, weights: jax.Array
) -> jax.Array:
  """Fits a similarity by weighted least squares, in closed form.

  Args:
    source: [n, 2] float32 points, (y, x).
    target: [n, 2] float32 points, (y, x).
    weights: [n] float32, not negative.

  Returns:
    [3, 3] float32, never a mirror image. Where the weighted source points
    coincide, the translation between the means; without any weight, the
    identity.
  """
  means, centred, weights = weighted_means(source, target, weights)
  yy, _, yv, yu, xx, xv, xu = _covariances(centred, weights)
  squared, along, across = yy + xx, yv + xu, yu - xv
  ok = _spread(squared)
  scale = jnp.where(ok, 1.0 / jnp.where(ok, squared, 1.0), 0.0)
  a = jnp.where(ok, along * scale, 1.0)
  b = across * scale
  return _around(means, a, -b, b, a)


def fit_affine(
  source: jax.Array, target: jax.Array, weights: jax.Array
) -> jax.Array:
  """Fits an affine transform by weighted least squares, in closed form.

  Minimises sum(weights * |transform(source) - target|^2) around the weighted
  means, which keeps float32 exact enough for pixels. Rows of weight zero may
  hold anything, NaN included, and zero rows appended change no bit.

  Args:
    source: [n, 2] float32 points, (y, x).
    target: [n, 2] float32 points, (y, x).
    weights: [n] float32, not negative.

  Returns:
    [3, 3] float32. Where the weighted source points do not span the plane, the
    translation between the means; without any weight, the identity.
  """
  means, centred, weights = weighted_means(source, target, weights)
  yy, yx, yv, yu, xx, xv, xu = _covariances(centred, weights)
  determinant = yy * xx - yx * yx
  ok = determinant > MIN_COVARIANCE_DETERMINANT * (yy + xx) ** 2
  scale = jnp.where(ok, 1.0 / jnp.where(ok, determinant, 1.0), 0.0)
  return _around(
    means,
    jnp.where(ok, (yv * xx - xv * yx) * scale, 1.0),
    (xv * yy - yv * yx) * scale,
    (yu * xx - xu * yx) * scale,
    jnp.where(ok, (xu * yy - yu * yx) * scale, 1.0),
  )


def squared_residuals(
  transform: jax.Array, source: jax.Array, target: jax.Array
) -> jax.Array:
  """Returns how far an affine transform misses, squared: pixels^2 of targets.

  Args:
    transform: [3, 3] float32 with the last row (0, 0, 1), which is not read.
    source: [..., 2] points, (y, x).
    target: [..., 2] points, (y, x).

  Returns:
    [...] float32; NaN or infinite where a point is.
  """
  missed_y, missed_x = _missed(transform, source, target)
  return missed_y * missed_y + missed_x * missed_x


def symmetric_squared_residuals(
  transform: jax.Array, source: jax.Array, target: jax.Array
) -> jax.Array:
  """Returns how far an affine transform misses in either photograph, squared.

  The larger of the distance from the transformed source to the target and of
  the distance from the source to the target transformed back.

  Args:
    transform: [3, 3] float32 with the last row (0, 0, 1), which is not read.
    source: [..., 2] points, (y, x).
    target: [..., 2] points, (y, x).

  Returns:
    [...] float32; NaN or infinite where a point is or there is no way back.
  """
  missed_y, missed_x = _missed(transform, source, target)
  forward = missed_y * missed_y + missed_x * missed_x
  area, _ = stretch(transform)
  back_y = transform[1, 1] * missed_y - transform[0, 1] * missed_x
  back_x = transform[0, 0] * missed_x - transform[1, 0] * missed_y
  back = (back_y * back_y + back_x * back_x) * (1.0 / (area * area))
  return jnp.maximum(forward, back)


def stretch(transform: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns what an affine transform does to areas and to squared lengths.

  The first number is the determinant of its linear part, s1 * s2 of its
  singular values and negative for a mirror image; the second s1^2 + s2^2.
  """
  a, b, c, d = (transform[i, j] for i in range(2) for j in range(2))
  return a * d - b * c, a * a + b * b + c * c + d * d


def stretch_from_three(
  source: jax.Array, target: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns `stretch` of the transform through three correspondences.

  Without the transform: cheaper than `affine_from_three`.

  Args:
    source: [3, 2] float32 points, (y, x), or three sequences of two.
    target: [3, 2] float32 points, (y, x), where they land.

  Returns:
    Two numbers, not finite where the source points are collinear.
  """
  (y, x), *others = source
  (ay, ax), (by, bx) = ((p[0] - y, p[1] - x) for p in others)
  (v, u), *others = target
  (av, au), (bv, bu) = ((p[0] - v, p[1] - u) for p in others)
  scale = 1.0 / (ay * bx - ax * by)
  area = (av * bu - au * bv) * scale
  elements = (
    av * bx - bv * ax,
    bv * ay - av * by,
    au * bx - bu * ax,
    bu * ay - au * by,
  )
  lengths = sum(element * element for element in elements)
  return area, lengths * (scale * scale)


def local_stretch(
  transform: jax.Array, points: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns what a transform does to small areas and squared lengths at points.

  `stretch` of the Jacobian.

  Args:
    transform: [3, 3] float32, of either sign.
    points: [..., 2] float32, (y, x) of the source.

  Returns:
    Two arrays [...] float32. The first is negative where the transform mirrors
    and behind the horizon of one that does not; neither is finite on it.
  """
  y, x = points[..., 0], points[..., 1]
  v, u, depth = (row[0] * y + row[1] * x + row[2] for row in transform)
  inverse = 1.0 / depth
  v, u = v * inverse, u * inverse
  (a, b, _), (c, d, _), (g, h, _) = transform
  a, b = (a - v * g) * inverse, (b - v * h) * inverse
  c, d = (c - u * g) * inverse, (d - u * h) * inverse
  return a * d - b * c, a * a + b * b + c * c + d * d


def ordered_products(a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns a [p, n] @ b [q, n].T: [p, q].

  To the same bits however many zeros follow in n: XLA groups the terms of its
  own reductions by the length of the array. Here blocks of LANES columns are
  added one after the other, lane by lane.
  """
  pad = -a.shape[1] % LANES
  a, b = (jnp.pad(side, ((0, 0), (0, pad))) for side in (a, b))

  def add(block, sums):
    some_a, some_b = (
      jax.lax.dynamic_slice_in_dim(side, block * LANES, LANES, axis=1)
      for side in (a, b)
    )
    return sums + some_a[:, None] * some_b[None]

  sums = jnp.zeros((len(a), len(b), LANES))
  sums = jax.lax.fori_loop(0, a.shape[1] // LANES, add, sums)
  while sums.shape[2] > 1:
    left, right = jnp.split(sums, 2, axis=2)
    sums = left + right
  return sums[..., 0]


def rows(*vectors: jax.Array) -> jax.Array:
  """Stacks vectors, several times as fast as XLA concatenates on CPU."""
  shape = len(vectors), len(vectors[0])
  number = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
  stacked = jnp.broadcast_to(vectors[-1][None], shape)
  for i, vector in enumerate(vectors[:-1]):
    stacked = jnp.where(number == i, vector[None], stacked)
  return stacked


def weighted_means(
  source: jax.Array, target: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns what every fit starts with.

  Args:
    source: [n, 2] points; rows of weight zero may hold anything.
    target: [n, 2] points.
    weights: [n] float32, not negative.

  Returns:
    The weighted means of the four coordinates [4], their distances from the
    means [4, n], 0 where there is no weight, and the weights [n] made to sum to
    1, or all 0 where there is none.
  """
  used = weights > 0
  weights = jnp.where(used, weights, 0.0)
  points = jnp.where(used[None], rows(*source.T, *target.T), 0.0)
  total, *means = ordered_products(
    weights[None], rows(jnp.ones_like(weights), *points)
  )[0]
  total = jnp.where(total > 0, total, 1.0)
  means = jnp.stack(means) / total
  centred = jnp.where(used[None], points - means[:, None], 0.0)
  return means, centred, weights / total


def _matrix(a, b, shift_y, c, d, shift_x):
  """[3, 3, ...] of the first two rows [...], row by row."""
  rows = (a, b, shift_y, c, d, shift_x, 0.0, 0.0, 1.0)
  shape = jnp.shape(shift_y)
  rows = [jnp.broadcast_to(jnp.float32(x), shape) for x in rows]
  return jnp.stack(rows).reshape(3, 3, *shape)


def _around(means, a, b, c, d):
  """The transform with this linear part that takes mean to mean."""
  return _matrix(
    a,
    b,
    means[2] - a * means[0] - b * means[1],
    c,
    d,
    means[3] - c * means[0] - d * means[1],
  )


def _covariances(centred, weights):
  """yy, yx, yv, yu, xx, xv, xu of what `weighted_means` returns."""
  (yy, yx, yv, yu), (_, xx, xv, xu) = ordered_products(
    weights[None] * centred[:2], centred
  )
  return yy, yx, yv, yu, xx, xv, xu


def _spread(squared):
  """Whether points whose squares have this mean are more than one."""
  return squared > jnp.finfo(jnp.float32).tiny


def _missed(transform, source, target):
  y, x = source[..., 0], source[..., 1]
  return (
    transform[axis, 0] * y
    + transform[axis, 1] * x
    + (transform[axis, 2] - target[..., axis])
    for axis in range(2)
  )
