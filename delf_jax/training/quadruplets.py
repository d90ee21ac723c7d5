"""Four patches at a time, out of pairs of views, to train LIFT on.

Yi et al. (ECCV 2016, section 3.2) take quadruplets from a reconstruction of the
scene: two patches show one point of the world, the third another point, the
fourth nothing that stands out. Here two views of one place, with points that
both show (`delf_jax.data.view_pairs`), take the reconstruction's place, and
where something stands out is asked of the determinant of the Hessian.

All of it happens on the device, for fixed numbers of points with masks. Points
are (y, x) in pixels; rotations as in `models.spatial_transformer`.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from delf_jax.models.spatial_transformer import crop, turn

# A patch is 24 sigma wide, sigma the scale of what is in its middle.
_SIGMAS = 24
# Of two points that are taken, as a share of a patch's side.
_APART = 0.2
# What stands out less than this share of what was taken is nothing.
_NOTHING = 0.4
_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class Cutting:
  """How patches are cut.

  Attributes:
    side: of the patches.
    count: quadruplets of a pair of views.
    turn: each patch turns by at most so many degrees, either way.
    shift: the point lies off a patch's centre by at most this share of its
      side, along each axis.
    zoom: the two patches differ by at most this factor more than they should,
      as they do where the scale of a point is only guessed.
  """

  side: int = 128
  count: int = 4
  turn: float = 0.0
  shift: float = 0.0
  zoom: float = 1.0


@flax.struct.dataclass
class Quadruplets:
  """Patches of the same point, the same point, another one, and nothing.

  Attributes:
    patches: [q, 4, side, side] grey.
    points: [q, 4, 2] where in the patch the point is.
    rotations: [q, 4, 2] of what surrounds the point, from the patch's axes:
      the same direction of the world in the first two.
    blank: [q] bool, whether the fourth shows nothing that stands out, which
      not every view has.
    mask: [q] bool.
  """

  patches: jax.Array
  points: jax.Array
  rotations: jax.Array
  blank: jax.Array
  mask: jax.Array


def make(
  views: jax.Array,
  points: jax.Array,
  valid: jax.Array,
  groups: jax.Array,
  key: jax.Array,
  cutting: Cutting,
) -> Quadruplets:
  """Cuts quadruplets out of pairs of views.

  Args:
    views: [b, 2, h, w] grey; two pairs or more.
    points: [b, 2, n, 2] that both views of a pair show.
    valid: [b, n] bool.
    groups: [b] int32; pairs of one group, 0 or more, may show the same place,
      and give each other no third patch.
    key: of chance.
    cutting: how.

  Returns:
    b * cutting.count quadruplets. Those that a pair has no point for are
    masked.
  """
  keys = jax.random.split(key, len(views))
  patches, where, rotations, blank, good = jax.vmap(
    lambda *pair: _cut_pair(*pair, cutting)
  )(views, points, valid, keys)
  alike = (groups == jnp.roll(groups, -1)) & (groups >= 0)
  good = good & jnp.roll(good, -1, axis=0) & ~alike[:, None]

  def line_up(values):
    """[b, 3, count, ...] of each pair -> [b * count, 4, ...]."""
    other = jnp.roll(values[:, :1], -1, axis=0)
    four = jnp.concatenate([values[:, :2], other, values[:, 2:]], axis=1)
    return jnp.moveaxis(four, 2, 1).reshape(-1, 4, *values.shape[3:])

  return Quadruplets(
    patches=line_up(patches),
    points=line_up(where),
    rotations=line_up(rotations),
    blank=blank.reshape(-1),
    mask=good.reshape(-1),
  )


def _cut_pair(views, points, valid, key, cutting):
  """Cuts the patches of one pair of views [2, h, w].

  Returns:
    patches [3, count, side, side] of the first view, of the second, and of
    nothing; points [3, count, 2] and rotations [3, count, 2] in them; [count]
    bool, whether the last shows nothing, and [count] bool, which are real.
  """
  sigma = cutting.side / _SIGMAS
  smooth = blur(views[0], sigma)
  margin = cutting.side / 2
  ends = jnp.array(views.shape[1:], jnp.float32).reshape(1, 1, 2) - 1 - margin
  inside = jnp.all((points >= margin) & (points <= ends), axis=(0, 2))
  scale, relative, fits = _frames(points, valid, cutting.side / 2)
  eligible = valid & inside & fits
  standing_out = hessian(smooth)
  radius = _APART * cutting.side
  at = points[0].astype(jnp.int32)
  chosen, real = _spread(
    standing_out[at[:, 0], at[:, 1]], points[0], eligible, cutting.count, radius
  )
  around = blur(standing_out, cutting.side / 6)[at[:, 0], at[:, 1]]
  empty, found = _spread(-around, points[0], eligible, cutting.count, radius)
  blank = found & (around[empty] < _NOTHING * around[chosen])
  direction = _gradient(blur(views[0], 2 * sigma))[at[:, 0], at[:, 1]]
  direction = _unit(direction[:, ::-1])  # (x, y): cosine and sine
  middles = jnp.stack([points[0, chosen], points[1, chosen], points[0, empty]])
  first = direction[chosen]
  # Angles add as complex numbers multiply.
  directions = jnp.stack(
    [first, _multiply(first, relative[chosen]), direction[empty]]
  )
  zooms = jnp.stack(
    [jnp.ones_like(scale[chosen]), scale[chosen], jnp.ones_like(scale[empty])]
  )
  shape = (3, cutting.count)
  k_turn, k_shift, k_zoom = jax.random.split(key, 3)
  angles = jnp.deg2rad(cutting.turn) * _uniform(k_turn, shape)
  turns = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
  shifts = cutting.shift * cutting.side * _uniform(k_shift, (*shape, 2))
  zooms = zooms * cutting.zoom ** (0.5 * _uniform(k_zoom, shape))

  def one(image, middle, direction, zoom, rotation, shift):
    centre = middle - zoom * turn(shift, rotation)
    patch = crop(image, centre, rotation, side=cutting.side, zoom=zoom)
    back = rotation * jnp.array([1.0, -1.0])
    return patch, (cutting.side - 1) / 2 + shift, _multiply(direction, back)

  images = jnp.stack([views[0], views[1], views[0]])
  pieces = jax.vmap(jax.vmap(one, in_axes=(None, 0, 0, 0, 0, 0)))(
    images, middles, directions, zooms, turns, shifts
  )
  return *pieces, blank, real


def _uniform(key, shape):
  return jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)


def _unit(vectors):
  """Scales [..., 2] to unit length; those of no length become upright."""
  vectors = vectors + _EPSILON * jnp.array([1.0, 0.0]).reshape(
    (1,) * (vectors.ndim - 1) + (2,)
  )
  length = jnp.sqrt(jnp.sum(vectors**2, axis=-1, keepdims=True))
  return vectors / jnp.maximum(length, 1e-12)


def _multiply(one, other):
  """Adds the angles of rotations [..., 2] (cosine, sine)."""
  return jnp.stack(
    [
      one[..., 0] * other[..., 0] - one[..., 1] * other[..., 1],
      one[..., 0] * other[..., 1] + one[..., 1] * other[..., 0],
    ],
    axis=-1,
  )


def blur(image: jax.Array, sigma: float) -> jax.Array:
  """Smooths [h, w] by a Gaussian, whose weights end with the image."""

  def weights(length):
    steps = np.arange(length)
    apart = (steps[:, None] - steps[None, :]) / sigma
    rows = np.exp(-0.5 * apart**2)
    return jnp.asarray(rows / rows.sum(1, keepdims=True), jnp.float32)

  return weights(image.shape[0]) @ image @ weights(image.shape[1]).T


def _gradient(image: jax.Array) -> jax.Array:
  """Central differences [h, w, 2] (y, x) of [h, w]."""
  return jnp.stack(jnp.gradient(image), axis=-1)


def hessian(image: jax.Array) -> jax.Array:
  """Returns the root of the Hessian's absolute determinant, [h, w].

  It is large at blobs and corners and vanishes on straight edges.
  """
  gy, gx = jnp.gradient(image)
  gyy, gyx = jnp.gradient(gy)
  _, gxx = jnp.gradient(gx)
  return jnp.sqrt(jnp.abs(gyy * gxx - gyx**2))


def _frames(points, valid, reach):
  """Fits a similarity around each point, from the first view to the second.

  Args:
    points: [2, n, 2].
    valid: [n] bool.
    reach: points within this distance count most.

  Returns:
    [n] factor of lengths, [n, 2] rotation, [n] bool, whether there was
    something to fit.
  """
  first, second = points[:, :, None, :] - points[:, None, :, :]
  weights = jnp.exp(-0.5 * jnp.sum(first**2, axis=-1) / reach**2)
  weights = jnp.where(valid[None, :], weights, 0.0)
  along = jnp.sum(weights * jnp.sum(first * second, axis=-1), axis=1)
  across = first[..., 1] * second[..., 0] - first[..., 0] * second[..., 1]
  across = jnp.sum(weights * across, axis=1)
  size = jnp.sum(weights * jnp.sum(first**2, axis=-1), axis=1)
  fits = size > 1.0
  moved = (
    jnp.stack([along, across], axis=-1) / jnp.where(fits, size, 1.0)[:, None]
  )
  scale = jnp.sqrt(jnp.sum(moved**2, axis=-1))
  return scale, _unit(moved), fits & (scale > 0.25) & (scale < 4.0)


def _spread(scores, points, mask, count, radius):
  """Picks the best points, none within `radius` of a better one.

  Returns:
    [count] int32 rows and [count] bool, which are real.
  """

  def pick(left, _):
    row = jnp.argmax(left)
    real = left[row] > -jnp.inf
    apart = jnp.sum((points - points[row][None, :]) ** 2, axis=-1)
    return jnp.where(apart <= radius**2, -jnp.inf, left), (row, real)

  scores = jnp.where(mask, scores, -jnp.inf)
  _, (rows, real) = jax.lax.scan(pick, scores, None, length=count)
  return rows, real
