"""SURF: box-filter Hessians and Haar wavelets from an integral image.

Bay, Ess, Tuytelaars and Van Gool, "Speeded-up robust features (SURF)", CVIU
2008; sections are of that paper. One photograph on a canvas of fixed size;
`jax.vmap` gives batches. Whole numbers are centres of pixels, an angle turns
from x towards y, and nothing beyond the photograph's true size is looked at:
a filter or wavelet that does not lie inside altogether counts for nothing.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from delf_jax.features import scale_space
from delf_jax.features.local_features import LocalFeatures
from delf_jax.features.reduction import l2_normalise

DIM = 64

# Section 3.3: side of each octave's first filter in pixels, and from one filter
# to the next; the grid of an octave has twice the step of the one before.
FIRST = (9, 15, 27, 51)
GROWTH = (6, 12, 24, 48)
LAYERS = 4
LARGEST = 195

# The layer of an octave where the one before ends: side 24 of 15, 27, 39, 51.
SHARED = 0.75

# The 9 x 9 filter approximates derivatives of a Gaussian of this sigma.
SIGMA_OF_SIDE = 1.2 / 9

# What keeps the mixed derivative in proportion (section 3.2).
MIXED = 0.9

# The least determinant, for pixels from 0 to 1.
THRESHOLD = 1e-5

_SECTOR = np.pi / 3
_TINY = 1e-12


def integral(grey: jax.Array) -> jax.Array:
  """Sums [h, w] int32 pixels above and left of each corner: [h + 1, w + 1].

  Sums beyond 2^31 wrap around, which differences of them undo: boxes are exact
  in photographs of any size.
  """
  sums = jnp.cumsum(jnp.cumsum(grey, axis=0), axis=1)
  return jnp.pad(sums, ((1, 0), (1, 0)))


def hessian(sums: jax.Array, side: jax.Array, step: int = 1) -> jax.Array:
  """Approximates the determinant of the Hessian at the points of a grid.

  Args:
    sums: [h + 1, w + 1], of `integral`.
    side: of the filter in pixels, an odd multiple of 3 up to `LARGEST`.
    step: of the grid in pixels; its first point is (0, 0).

  Returns:
    [ceil(h / step), ceil(w / step)] float32 for pixels from 0 to 1, per area of
    the filter. Near the border, where the filter does not lie inside, it means
    nothing.
  """
  rows, columns = (-(-(length - 1) // step) for length in sums.shape)
  margin = LARGEST // 2 + step
  padded = jnp.pad(sums, margin, mode="edge")
  extent = step * (rows - 1) + 1, step * (columns - 1) + 1

  def corner(y, x):
    start = y + margin, x + margin
    return jax.lax.dynamic_slice(padded, start, extent)[::step, ::step]

  def box(top, left, bottom, right):  # the pixel itself is (0, 0), (1, 1)
    return (
      corner(bottom, right)
      - corner(top, right)
      - corner(bottom, left)
      + corner(top, left)
    )

  lobe = side // 3
  half, inner = side // 2, lobe // 2
  yy = box(-half, 1 - lobe, half + 1, lobe)
  yy -= 3 * box(-inner, 1 - lobe, inner + 1, lobe)
  xx = box(1 - lobe, -half, lobe, half + 1)
  xx -= 3 * box(1 - lobe, -inner, lobe, inner + 1)
  yx = box(-lobe, -lobe, 0, 0) + box(1, 1, lobe + 1, lobe + 1)
  yx -= box(-lobe, 1, 0, lobe + 1) + box(1, -lobe, lobe + 1, 0)
  share = 1 / (255.0 * jnp.float32(side) ** 2)
  yy, xx, yx = (share * d.astype(jnp.float32) for d in (yy, xx, yx))
  return yy * xx - (MIXED * yx) ** 2


def detect(
  sums: jax.Array,
  size: jax.Array,
  *,
  max_features: int,
  threshold: float = THRESHOLD,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Finds the blobs with the largest determinants (section 3.4).

  Args:
    sums: [h + 1, w + 1], of `integral`.
    size: [2] true height and width.
    max_features: rows of the result.
    threshold: the least determinant.

  Returns:
    [n, 2] locations (y, x), [n] sigmas in pixels, [n] determinants, best first,
    and [n] bool, which rows are real.
  """
  octaves = []
  for octave, (first, growth) in enumerate(zip(FIRST, GROWTH, strict=True)):
    step = 2**octave
    sides = [first + growth * k for k in range(LAYERS)]
    responses = jax.lax.map(
      functools.partial(hessian, sums, step=step), jnp.array(sides)
    )
    # A maximum has neighbours on the next layer, of the next larger filter.
    reach = jnp.array([s // 2 + step for s in [*sides[1:], sides[-1]]])
    allowed = [
      (reach[:, None] <= points[None, :])
      & (points[None, :] + reach[:, None] < length)
      for points, length in (
        (step * jnp.arange(responses.shape[1]), size[0]),
        (step * jnp.arange(responses.shape[2]), size[1]),
      )
    ]
    octaves.append((responses, allowed[0][:, :, None] & allowed[1][:, None, :]))
  found = scale_space.find_extrema(
    octaves, threshold=threshold, max_features=max_features
  )
  # What lies between the filters of two octaves is found in both: it belongs to
  # the finer one until half way from its last inner filter to the next.
  once = (found.octave == 0) | (found.layer >= SHARED)
  found = scale_space.best_of(found, found.mask & once, max_features)
  step = (2**found.octave).astype(jnp.float32)
  first, growth = (
    jnp.array(values, jnp.float32)[found.octave] for values in (FIRST, GROWTH)
  )
  sigmas = SIGMA_OF_SIDE * (first + growth * found.layer)
  return found.location * step[:, None], sigmas, found.response, found.mask


def _haar(
  sums: jax.Array, size: jax.Array, points: jax.Array, half: jax.Array
) -> jax.Array:
  """Haar wavelets' responses at points of one feature.

  Place and side need not be whole: a pixel counts by the part of it that lies
  in the wavelet, which is interpolation of the integral image.

  Args:
    sums: [h + 1, w + 1], of `integral`.
    size: [2] true height and width.
    points: [n, 2] (y, x).
    half: half of the wavelets' side in pixels.

  Returns:
    [n, 2] by y and by x, mean differences of pixels; 0 where the wavelet does
    not lie inside.
  """
  steps = half * jnp.arange(-1.0, 2.0)
  edges = points[:, None, :] + 0.5 + steps[None, :, None]
  whole = jnp.floor(edges)
  part = edges - whole
  whole = whole.astype(jnp.int32)
  first = sums.at[whole[:, 0, 0], whole[:, 0, 1]].get(mode="clip")

  def at(down, right):
    rows = whole[:, :, 0, None] + down
    columns = whole[:, None, :, 1] + right
    values = sums.at[rows, columns].get(mode="clip")
    # Whole numbers of this size may not fit a float, their differences do.
    return (values - first[:, None, None]).astype(jnp.float32)

  down, right = part[:, :, 0, None], part[:, None, :, 1]
  upper = at(0, 0) * (1 - right) + at(0, 1) * right
  lower = at(1, 0) * (1 - right) + at(1, 1) * right
  corners = upper * (1 - down) + lower * down
  rows = corners[:, :, 2] - corners[:, :, 0]
  columns = corners[:, 2] - corners[:, 0]
  both = jnp.stack(
    [d[:, 2] - 2 * d[:, 1] + d[:, 0] for d in (rows, columns)], axis=1
  )
  low, high = edges[:, 0], edges[:, 2]
  inside = jnp.all((low >= 0) & (high <= size[None, :]), axis=1)
  return jnp.where(inside[:, None], both / (2 * half**2), 0.0)


def _disc(radius: int) -> np.ndarray:
  steps = np.arange(-radius, radius + 1)
  points = np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
  return points[(points**2).sum(1) < radius**2].astype(np.float32)


def orientation(
  sums: jax.Array, size: jax.Array, location: jax.Array, sigma: jax.Array
) -> jax.Array:
  """Finds the dominant direction around one feature (section 4.1).

  Wavelets of side 4 sigma at steps of sigma within 6 sigma, weighted by a
  Gaussian of 2 sigma; the sector of 60 degrees whose responses sum to the
  longest vector, among all that begin with a response.

  Args:
    sums: [h + 1, w + 1], of `integral`.
    size: [2] true height and width.
    location: [2] (y, x).
    sigma: of the feature, in pixels.

  Returns:
    radians, from x towards y.
  """
  disc = jnp.asarray(_disc(6))
  weights = jnp.exp(-jnp.sum(disc**2, axis=1) / (2 * 2.0**2))
  points = location[None, :] + sigma * disc
  responses = _haar(sums, size, points, 2 * sigma)
  responses *= weights[:, None]
  angles = jnp.arctan2(responses[:, 0], responses[:, 1])
  ahead = jnp.mod(angles[None, :] - angles[:, None], 2 * jnp.pi)
  sector = (ahead < _SECTOR).astype(jnp.float32)
  totals = jnp.matmul(sector, responses, precision=jax.lax.Precision.HIGHEST)
  best = totals[jnp.argmax(jnp.sum(totals**2, axis=1))]
  return jnp.arctan2(best[0], best[1])


def describe(
  sums: jax.Array,
  size: jax.Array,
  location: jax.Array,
  sigma: jax.Array,
  angle: jax.Array,
) -> jax.Array:
  """Describes the window of 20 sigma around one feature (section 4.2).

  Args:
    sums: [h + 1, w + 1], of `integral`.
    size: [2] true height and width.
    location: [2] (y, x).
    sigma: of the feature, in pixels.
    angle: of the window, from x towards y.

  Returns:
    [64] not normalised: for each of 4 x 4 cells, row-major in the window's
    frame, sums over 5 x 5 samples of dx, dy, |dx| and |dy|.
  """
  steps = np.arange(20, dtype=np.float32) - 9.5
  window = np.stack(np.meshgrid(steps, steps, indexing="ij"), -1)
  window = jnp.asarray(window.reshape(-1, 2))
  sine, cosine = jnp.sin(angle), jnp.cos(angle)
  # Rows are the window's own y and x axes in the photograph.
  axes = jnp.stack([jnp.stack([cosine, -sine]), jnp.stack([sine, cosine])])
  precision = jax.lax.Precision.HIGHEST
  turned = jnp.matmul(window, axes, precision=precision)
  responses = _haar(sums, size, location[None, :] + sigma * turned, sigma)
  responses = jnp.matmul(responses, axes.T, precision=precision)
  weights = jnp.exp(-jnp.sum(window**2, axis=1) / (2 * 3.3**2))
  dx_dy = (responses * weights[:, None])[:, ::-1]
  cells = jnp.concatenate([dx_dy, jnp.abs(dx_dy)], axis=1)
  return cells.reshape(4, 5, 4, 5, 4).sum(axis=(1, 3)).ravel()


def extract(
  pixels: jax.Array,
  size: jax.Array,
  *,
  max_features: int = 1000,
  upright: bool = False,
) -> tuple[LocalFeatures, jax.Array]:
  """Extracts the SURF features of one photograph.

  Args:
    pixels: [h, w, 3] uint8 RGB on a canvas.
    size: [2] true height and width.
    max_features: rows of the result.
    upright: U-SURF: directions are not looked for, all are 0.

  Returns:
    features, best first, with sigmas in pixels as scales and determinants as
    scores; and [max_features] angles from x towards y.
  """
  sums = integral(scale_space.to_grey(pixels))
  locations, sigmas, scores, mask = detect(
    sums, size, max_features=max_features
  )
  # Rows that are not real must not divide by nothing.
  sigmas = jnp.where(mask, sigmas, 2.0)
  angles = jnp.zeros(sigmas.shape)
  if not upright:
    angles = jax.vmap(orientation, in_axes=(None, None, 0, 0))(
      sums, size, locations, sigmas
    )
  raw = jax.vmap(describe, in_axes=(None, None, 0, 0, 0))(
    sums, size, locations, sigmas, angles
  )
  mask &= jnp.sum(raw**2, axis=1) > _TINY
  features = LocalFeatures(
    locations=jnp.where(mask[:, None], locations, 0.0),
    scales=jnp.where(mask, sigmas, 0.0),
    scores=jnp.where(mask, scores, 0.0),
    descriptors=jnp.where(mask[:, None], l2_normalise(raw), 0.0),
    mask=mask,
  )
  return features, jnp.where(mask, angles, 0.0)
