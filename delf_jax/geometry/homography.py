"""Homographies: the view of one plane from two places.

Points are (y, x) in pixels and a homography H [3, 3] maps (y, x, 1) to a
multiple of (y, x, 1). Its scale is chosen so that this multiple, the
denominator, is positive where the correspondences lie: what has none lies
behind the horizon, where no camera sees it. The last element need not be 1, nor
be other than 0. Functions are written for one transform and meant to be
vmapped; degenerate input is answered with a flag or a simpler transform.
"""

import functools

import jax
import jax.numpy as jnp

from delf_jax.geometry import transforms

# The perspective of a fit is trusted where the moments that determine it are at
# least this part of all of them. Of three points, which determine none, float32
# leaves up to 4e-8.
MIN_PERSPECTIVE_DETERMINANT = 1e-6

# How much farther away one point of a sample can be than another. A wall that
# runs through the whole picture is seldom seen so much from the side.
MAX_DEPTH = 4.0


def from_four(
  source: jax.Array, target: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Solves for the homography through four correspondences, in closed form.

  The fourth point is a weighted mean of the first three, with other weights in
  the target than in the source; what the barycentric coordinates of any point
  have to be multiplied by is the ratio of these weights.

  Args:
    source: [4, 2] float32 points, (y, x).
    target: [4, 2] float32 points, (y, x), where they land.

  Returns:
    The homography [3, 3] float32 with a denominator of 1 at the first point,
    and a bool: False, and the homography void, where three points of either
    side coincide or are nearly collinear, a point is not finite, or some but
    not all triples of points turn the other way round. No plane that is seen
    from one side looks like that: the denominators differ in sign.
  """
  # By components and relative to the first points: see affine_from_three.
  y, x = source[0, 0], source[0, 1]
  v, u = target[0, 0], target[0, 1]
  (ay, ax), (by, bx) = ((p[0] - y, p[1] - x) for p in source[1:3])
  (av, au), (bv, bu) = ((p[0] - v, p[1] - u) for p in target[1:3])
  *areas, spread = _triangles(source)
  *landed, landed_spread = _triangles(target)
  flat = transforms.MIN_TRIANGLE_HEIGHT * spread
  landed_flat = transforms.MIN_TRIANGLE_HEIGHT * landed_spread
  mirrored = (areas[0] > 0) != (landed[0] > 0)
  ok = jnp.isfinite(spread) & jnp.isfinite(landed_spread)
  for before, after in zip(areas, landed, strict=True):
    ok &= (jnp.abs(before) > flat) & (jnp.abs(after) > landed_flat)
    ok &= ((before > 0) != (after > 0)) == mirrored

  whole, second, third, first = areas
  _, second_landed, third_landed, first_landed = landed
  # One reciprocal for all three quotients.
  scale = second * third * first_landed
  scale = 1.0 / jnp.where(ok, scale * whole, 1.0)
  to_area = scale * second * third * first_landed
  ratio_b = second_landed * first * third * whole * scale
  ratio_c = third_landed * first * second * whole * scale

  # How the barycentric coordinates of the second and third point grow along y
  # and along x.
  second_y, second_x = bx * to_area, -by * to_area
  third_y, third_x = -ax * to_area, ay * to_area
  down = (ratio_b - 1.0) * second_y + (ratio_c - 1.0) * third_y
  right = (ratio_b - 1.0) * second_x + (ratio_c - 1.0) * third_x
  rows = []
  for start, a, b in ((v, av, bv), (u, au, bu)):
    along_y = ratio_b * a * second_y + ratio_c * b * third_y + start * down
    along_x = ratio_b * a * second_x + ratio_c * b * third_x + start * right
    rows += [along_y, along_x, start - along_y * y - along_x * x]
  rows += [down, right, 1.0 - down * y - right * x]
  return jnp.stack(rows).reshape(3, 3), ok


def promising(
  source: jax.Array, target: jax.Array, *, mirrored: bool | jax.Array = False
) -> jax.Array:
  """Whether four correspondences may be a view of a plane: a cheap test.

  Few random samples pass (one of fifty where the points lie anywhere), and they
  alone need be solved. The ratio of the areas of two triangles, in the target
  to in the source, differs by what the depths of two points differ.

  Args:
    source: [4, 2] float32 points, (y, x), or four sequences of two.
    target: [4, 2] float32 points, (y, x), where they land.
    mirrored: whether mirror images are allowed.

  Returns:
    A bool: whether all four triangles of three points keep their orientation
    (or all turn it, for a mirror image), and no point is more than MAX_DEPTH
    times as far away as another.
  """
  *areas, _ = _triangles(source)
  *landed, _ = _triangles(target)
  ratios = [after / before for before, after in zip(areas, landed, strict=True)]
  least, most = (
    functools.reduce(pick, ratios) for pick in (jnp.minimum, jnp.maximum)
  )
  same = (least > 0) & (most <= MAX_DEPTH * least)
  return same | (mirrored & (most < 0) & (least >= MAX_DEPTH * most))


def fit(
  source: jax.Array,
  target: jax.Array,
  weights: jax.Array,
  *,
  steps: int | jax.Array = 1,
) -> jax.Array:
  """Fits a homography by weighted least squares of the distances.

  First the linear estimate in normalised coordinates (DLT with the constant of
  the denominator held at 1: Hartley and Zisserman, 2004, section 4.1), then
  Gauss-Newton steps on what counts, sum(weights * |H(source) - target|^2); the
  best of all these is returned. Both solve the same kind of 8 x 8 system, here
  by blocks in closed form: six unknowns are those of an affine fit, and only
  the two of the perspective remain. The smallest eigenvector of the 9 x 9
  system would allow a denominator of 0 at the centre of the points, which no
  view has, and costs more.

  Rows of weight zero may hold anything, NaN included, and zero rows appended
  change no bit.

  Args:
    source: [n, 2] float32 points, (y, x).
    target: [n, 2] float32 points, (y, x).
    weights: [n] float32, not negative.
    steps: how many Gauss-Newton steps; one is enough for the noise of
      keypoints.

  Returns:
    [3, 3] float32 with a denominator of 1 at the weighted mean of the source.
    Where the points do not determine a perspective, an affine transform; where
    they do not span the plane, a translation and a scale; without any weight,
    the identity.
  """
  used = weights > 0
  means, points, weights = transforms.weighted_means(source, target, weights)
  covariances = transforms.ordered_products(weights[None] * points, points)
  yy, yx, xx = covariances[0, 0], covariances[0, 1], covariances[1, 1]
  vv, uu = covariances[2, 2], covariances[3, 3]
  plane = yy * xx - yx * yx > (
    transforms.MIN_COVARIANCE_DETERMINANT * (yy + xx) ** 2
  )
  sizes = jnp.stack([yy + xx, vv + uu])
  sizes = jnp.sqrt(jnp.where(sizes > 0, sizes, 1.0))
  y, x, v, u = points / jnp.repeat(sizes, 2)[:, None]
  moments = transforms.rows(y * y, y * x, x * x, y, x, jnp.ones_like(y))

  def step(_, state):
    elements, landed, reciprocals, missed, best, best_error = state
    elements = elements + _solve(moments, weights, landed, reciprocals, missed)
    numerators = (row[0] * y + row[1] * x + row[2] for row in elements[:2])
    denominators = elements[2, 0] * y + elements[2, 1] * x + 1.0
    seen = used & (denominators > 0)
    reciprocals = jnp.where(seen, 1.0 / jnp.where(seen, denominators, 1.0), 0.0)
    landed = tuple(numerator * reciprocals for numerator in numerators)
    missed = v - landed[0], u - landed[1]
    squared = missed[0] * missed[0] + missed[1] * missed[1]
    squared = jnp.where(used & ~seen, jnp.inf, squared)
    error = transforms.ordered_products(weights[None], squared[None])[0, 0]
    better = error < best_error
    best = jnp.where(better, elements, best)
    best_error = jnp.where(better, error, best_error)
    return elements, landed, reciprocals, missed, best, best_error

  # The linear estimate is the step that starts from nothing and takes every
  # point to be where it should land.
  nothing = jnp.zeros((3, 3))
  reciprocals = used.astype(jnp.float32)
  start = nothing, (v, u), reciprocals, (v, u), nothing, jnp.float32(jnp.inf)
  best = jax.lax.fori_loop(0, 1 + steps, step, start)[4]
  (a, b, c), (d, e, f), (g, h, _) = best
  plane &= (a * e - b * d) != 0

  # From normalised coordinates to pixels.
  size, landed_size = sizes
  moved_y, moved_x, moved_v, moved_u = means
  g, h = g / size, h / size
  rows = []
  for elements, moved in (((a, b, c), moved_v), ((d, e, f), moved_u)):
    scale = landed_size / size
    along_y = elements[0] * scale + moved * g
    along_x = elements[1] * scale + moved * h
    constant = elements[2] * landed_size + moved
    rows += [along_y, along_x, constant - along_y * moved_y - along_x * moved_x]
  rows += [g, h, 1.0 - g * moved_y - h * moved_x]
  found = jnp.stack(rows).reshape(3, 3)
  shift = jnp.eye(3).at[:2, 2].set(means[2:] - means[:2])
  return jnp.where(plane, found, shift)


def apply(transform: jax.Array, points: jax.Array) -> jax.Array:
  """Maps `points` [n, 2] (y, x) by `transform` [3, 3]; returns [n, 2].

  Points on the horizon or behind it are infinite.
  """
  down, right, denominator = _numerators(transform, points)
  seen = denominator > 0
  inverse = 1.0 / jnp.where(seen, denominator, 1.0)
  landed = jnp.stack([down * inverse, right * inverse], axis=-1)
  return jnp.where(seen[..., None], landed, jnp.inf)


def squared_residuals(
  transform: jax.Array, source: jax.Array, target: jax.Array
) -> jax.Array:
  """Returns how far a homography misses, squared: pixels^2 of the target.

  Args:
    transform: [3, 3] float32.
    source: [..., 2] points, (y, x).
    target: [..., 2] points, (y, x).

  Returns:
    [...] float32; infinite on the horizon and behind it, NaN or infinite where
    a point is.
  """
  down, right, denominator = _numerators(transform, source)
  seen = denominator > 0
  missed_y = down - denominator * target[..., 0]
  missed_x = right - denominator * target[..., 1]
  squared = missed_y * missed_y + missed_x * missed_x
  squared /= jnp.where(seen, denominator * denominator, 1.0)
  return jnp.where(seen, squared, jnp.inf)


def within(
  transform: jax.Array,
  source: jax.Array,
  target: jax.Array,
  limit: jax.Array,
) -> jax.Array:
  """Returns which squared residuals are at most `limit`: [...] bool.

  Without the division, which takes as long as all the rest.
  """
  down, right, denominator = _numerators(transform, source)
  missed_y = down - denominator * target[..., 0]
  missed_x = right - denominator * target[..., 1]
  squared = missed_y * missed_y + missed_x * missed_x
  return (squared <= limit * (denominator * denominator)) & (denominator > 0)


def inverse(transform: jax.Array) -> jax.Array:
  """Returns the homography [3, 3] back; void where there is none.

  Its denominators are positive where those of `transform` are.
  """
  (a, b, c), (d, e, f), (g, h, i) = transform
  rows = [
    *(e * i - f * h, c * h - b * i, b * f - c * e),
    *(f * g - d * i, a * i - c * g, c * d - a * f),
    *(d * h - e * g, b * g - a * h, a * e - b * d),
  ]
  determinant = a * rows[0] + b * rows[3] + c * rows[6]
  regular = (determinant != 0) & jnp.isfinite(determinant)
  scale = 1.0 / jnp.where(regular, determinant, 1.0)
  return jnp.stack(rows).reshape(3, 3) * scale


def affine_at(transform: jax.Array, point: jax.Array) -> jax.Array:
  """Returns the affine transform [3, 3] that a homography is like at a point.

  It takes `point` [2] (y, x) to the same place and has the same derivatives
  there: what the homography does to lengths, angles and areas.
  """
  down, right, denominator = _numerators(transform, point)
  scale = 1.0 / denominator
  rows = []
  for axis, landed in enumerate((down * scale, right * scale)):
    along_y = (transform[axis, 0] - landed * transform[2, 0]) * scale
    along_x = (transform[axis, 1] - landed * transform[2, 1]) * scale
    rows += [along_y, along_x, landed - along_y * point[0] - along_x * point[1]]
  zero = jnp.zeros_like(scale)
  return jnp.stack([*rows, zero, zero, zero + 1.0]).reshape(3, 3)


def _triangles(points):
  """Doubled areas of triangles of four points, and the longest side squared.

  Signed: of the first three, and what the fourth makes of it in the place of
  the second, the third and the first.
  """
  (y, x), *others = points
  (ay, ax), (by, bx), (cy, cx) = ((p[0] - y, p[1] - x) for p in others)
  whole = ay * bx - ax * by
  second = cy * bx - cx * by
  third = ay * cx - ax * cy
  longest = jnp.maximum(ay * ay + ax * ax, by * by + bx * bx)
  longest = jnp.maximum(longest, cy * cy + cx * cx)
  return whole, second, third, whole - second - third, longest


def _numerators(transform, points):
  y, x = points[..., 0], points[..., 1]
  return tuple(
    transform[row, 0] * y + transform[row, 1] * x + transform[row, 2]
    for row in range(3)
  )


def _product(a, b):
  """The product of two small matrices, in float32 also on accelerators."""
  return jnp.sum(a[:, :, None] * b[None], axis=1)


def _solve(moments, weights, landed, reciprocals, missed):
  """Solves the normal equations for a change of the elements: [3, 3].

  The derivatives of where a point lands are (y, x, 1) / denominator for the
  elements of its own row and -landed * (y, x) / denominator for those of the
  denominator. So the matrix is made of the moments of the points, for the two
  rows, of these times `landed`, which couple rows and denominator, and of these
  times |landed|^2.
  """
  v, u = landed
  missed_v, missed_u = missed
  weights = weights * reciprocals
  twice = weights * reciprocals
  plain, by_v, by_u, by_both, right_v, right_u, right = (
    transforms.ordered_products(
      transforms.rows(
        twice,
        twice * v,
        twice * u,
        twice * (v * v + u * u),
        weights * missed_v,
        weights * missed_u,
        weights * (v * missed_v + u * missed_u),
      ),
      moments,
    )
  )
  square = jnp.array([[0, 1, 3], [1, 2, 4], [3, 4, 5]])
  back = inverse(plain[square])
  coupled = [by_v[square[:, :2]], by_u[square[:, :2]]]
  wanted = [right_v[3:, None], right_u[3:, None]]
  solved = [_product(back, block) for block in coupled]
  # Without the rows, two equations for the perspective remain.
  matrix = by_both[square[:2, :2]]
  right = -right[3:5, None]
  for block, by_block, row in zip(coupled, solved, wanted, strict=True):
    matrix -= _product(block.T, by_block)
    right += _product(by_block.T, row)
  (a, b), (c, d) = matrix
  determinant = a * d - b * c
  least = MIN_PERSPECTIVE_DETERMINANT * (a + d) * (by_both[0] + by_both[2])
  ok = determinant > least
  scale = jnp.where(ok, 1.0 / jnp.where(ok, determinant, 1.0), 0.0)
  adjugate = jnp.stack([d, -b, -c, a]).reshape(2, 2)
  perspective = scale * _product(adjugate, right)
  rows = [
    _product(back, row) + _product(by_block, perspective)
    for by_block, row in zip(solved, wanted, strict=True)
  ]
  rows.append(jnp.pad(perspective, ((0, 1), (0, 0))))
  return jnp.concatenate(rows, axis=1).T
