"""Transforms of the plane: solve, fit, apply, residual, plausibility.

Points are (y, x) in pixels and a transform maps (y, x, 1) to (y, x). Functions
are written for one transform and meant to be vmapped; degenerate input never
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

# Points summed at once, lane by lane (see _ordered_sums).
LANES = 64


def affine_from_three(
  source: jax.Array, target: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Solves for the affine transform through three correspondences.

  Args:
    source: [3, 2] float32 points, (y, x).
    target: [3, 2] float32 points, (y, x), where they land.

  Returns:
    The transform [2, 3] float32, and a bool: False where the source points
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
  return jnp.stack(rows).reshape(2, 3), ok


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
    [2, 3] float32. Where the weighted source points do not span the plane, the
    translation between the means; without any weight, the identity.
  """
  used = weights > 0
  weights = jnp.where(used, weights, 0.0)
  points = jnp.where(
    used[None], jnp.concatenate([source, target], axis=1).T, 0.0
  )
  total, *means = _ordered_sums(
    jnp.concatenate([weights[None], weights[None] * points])
  )
  total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
  means = jnp.stack(means) / total
  y, x, v, u = points - means[:, None]
  yy, yx, xx, yv, xv, yu, xu = (
    _ordered_sums(
      weights[None]
      * jnp.stack([y * y, y * x, x * x, y * v, x * v, y * u, x * u])
    )
    / total
  )
  determinant = yy * xx - yx * yx
  ok = determinant > MIN_COVARIANCE_DETERMINANT * (yy + xx) ** 2
  scale = jnp.where(ok, 1.0 / jnp.where(ok, determinant, 1.0), 0.0)
  linear = jnp.stack(
    [
      yv * xx - xv * yx,
      xv * yy - yv * yx,
      yu * xx - xu * yx,
      xu * yy - yu * yx,
    ]
  ).reshape(2, 2)
  linear = jnp.where(ok, linear * scale, jnp.eye(2))
  shift = means[2:] - linear[:, 0] * means[0] - linear[:, 1] * means[1]
  return jnp.concatenate([linear, shift[:, None]], axis=1)


def apply_affine(transform: jax.Array, points: jax.Array) -> jax.Array:
  """Maps `points` [n, 2] (y, x) by `transform` [2, 3]; returns [n, 2]."""
  y, x = points[:, 0], points[:, 1]
  return jnp.stack(
    [row[0] * y + row[1] * x + row[2] for row in transform], axis=1
  )


def squared_residuals(
  transform: jax.Array, source: jax.Array, target: jax.Array
) -> jax.Array:
  """Returns how far a transform misses, squared: pixels^2 of the target.

  Args:
    transform: [2, 3] float32.
    source: [..., 2] points, (y, x).
    target: [..., 2] points, (y, x).

  Returns:
    [...] float32; NaN or infinite where a point is.
  """
  y, x = source[..., 0], source[..., 1]
  missed_y, missed_x = (
    transform[axis, 0] * y
    + transform[axis, 1] * x
    + (transform[axis, 2] - target[..., axis])
    for axis in range(2)
  )
  return missed_y * missed_y + missed_x * missed_x


def stretch(transform: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns what a transform [2, 3] does to areas and to squared lengths.

  The first number is the determinant of its linear part, s1 * s2 of its
  singular values and negative for a mirror image; the second s1^2 + s2^2.
  """
  a, b, c, d = (transform[i, j] for i in range(2) for j in range(2))
  return a * d - b * c, a * a + b * b + c * c + d * d


def _ordered_sums(values: jax.Array) -> jax.Array:
  """Sums the rows of [m, n] to the same bits however many zeros follow in n.

  XLA groups the terms of its own reductions by the length of the array. Here
  blocks of LANES columns are added one after the other, lane by lane.
  """
  values = jnp.pad(values, ((0, 0), (0, -values.shape[1] % LANES)))

  def add(block, lanes):
    return lanes + jax.lax.dynamic_slice_in_dim(
      values, block * LANES, LANES, axis=1
    )

  lanes = jax.lax.fori_loop(
    0, values.shape[1] // LANES, add, jnp.zeros((len(values), LANES))
  )
  while lanes.shape[1] > 1:
    left, right = jnp.split(lanes, 2, axis=1)
    lanes = left + right
  return lanes[:, 0]
