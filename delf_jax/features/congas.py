"""A re-creation of CONGAS: Gabor responses around Laplacian extrema.

CONGAS, the local feature of Google's early landmark recognition (Buddemeier and
Neven's patent; Zheng et al., "Tour the World", CVPR 2009), has no public code.
This is made after its outline: extrema of the Laplacian of Gaussians in scale
space, a dominant orientation, complex Gabor wavelets sampled on a log-polar
pattern at the scale and orientation of the keypoint, L2, then PCA to 40. Every
number below is ours.

One photograph on a canvas of fixed size; `jax.vmap` gives batches. Whole
numbers are centres of pixels, and an angle turns from x towards y. Beyond its
border a photograph goes on with its last row and column.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from delf_jax.features import scale_space
from delf_jax.features.local_features import LocalFeatures
from delf_jax.features.reduction import Reduction, reduce

OCTAVES = 5
LAYERS = 3  # of an octave that may hold an extremum; two more surround them
SIGMA = 1.6  # of the first layer
CAMERA = 0.5  # sigma that a photograph has already

# The least response for pixels from 0 to 1, and the largest ratio of the two
# principal curvatures of an extremum, as for SIFT.
THRESHOLD = 0.03
EDGE = 10.0

# The patch, in samples and in sigmas from one to the next.
SIDE = 32
SPACING = 0.5

# Of the pattern: a point in the middle and rings, in sigmas; and the wavelets:
# their envelope's sigma as a share of the ring's radius and waves in it.
RINGS = (2.0, 3.5, 5.5)
MIDDLE = 1.2
ANGLES = 8
DIRECTIONS = 4
ENVELOPE = 0.3
WAVELENGTH = 3.0  # envelopes
DIM = 2 * DIRECTIONS * (1 + ANGLES * len(RINGS))

_BINS = 36
_TINY = 1e-8


class Pyramid(NamedTuple):
  """Gaussian layers of all octaves in one flat array.

  Attributes:
    values: [total] float32 pixels from 0 to 1.
    shapes: of each octave, (layers, height, width).
    sizes: [octaves, 2] int32 true heights and widths.
  """

  values: jax.Array
  shapes: tuple[tuple[int, int, int], ...]
  sizes: jax.Array


def gaussian(sigma: float, radius: int) -> np.ndarray:
  """Returns the taps of a Gaussian from its middle on, [radius + 1]."""
  taps = np.exp(-(np.arange(radius + 1) ** 2) / (2 * sigma**2))
  return (taps / (2 * taps.sum() - taps[0])).astype(np.float32)


def blur(image: jax.Array, size: jax.Array, taps: jax.Array) -> jax.Array:
  """Blurs a padded [h, w] image by both axes.

  The last real row and column are repeated; beyond them the result means
  nothing.

  Args:
    image: [h, w].
    size: [2] true height and width, at least 1.
    taps: [radius + 1], of `gaussian`.
  """
  radius = len(taps) - 1
  for axis in (0, 1):
    length = image.shape[axis]
    rows = jnp.clip(jnp.arange(-radius, length + radius), 0, size[axis] - 1)
    around = jnp.take(image, rows, axis=axis)
    moved = functools.partial(
      jax.lax.dynamic_slice_in_dim, around, slice_size=length, axis=axis
    )

    def add(k, total, moved=moved):
      return total + taps[k] * (moved(radius - k) + moved(radius + k))

    # A loop: its sums have one order on all canvases, and the compiler does not
    # blur again for every neighbour that something reads.
    image = jax.lax.fori_loop(1, radius + 1, add, taps[0] * moved(radius))
  return image


def laplacian(image: jax.Array) -> jax.Array:
  """Second derivative of [..., h, w] by y plus that by x, but at its border."""
  padded = jnp.pad(image, [(0, 0)] * (image.ndim - 2) + [(1, 1)] * 2)
  across = padded[..., 1:-1, 2:] + padded[..., 1:-1, :-2]
  along = padded[..., 2:, 1:-1] + padded[..., :-2, 1:-1]
  return across + along - 4 * image


def build_pyramid(
  grey: jax.Array, size: jax.Array
) -> tuple[Pyramid, list[tuple[jax.Array, jax.Array]]]:
  """Blurs a photograph more and more, and takes the Laplacian of all.

  Args:
    grey: [h, w] float32 from 0 to 1 on a canvas.
    size: [2] true height and width.

  Returns:
    the Gaussian layers; and for each octave the magnitudes of the
    scale-normalised Laplacian, [layers, h, w], with the elements that may be
    extrema, [layers, h, w] bool.
  """
  sigmas = SIGMA * 2 ** (np.arange(LAYERS + 2) / LAYERS)
  growth = np.sqrt(sigmas[1:] ** 2 - sigmas[:-1] ** 2)
  radius = int(np.ceil(4 * growth[-1]))
  taps = jnp.asarray(np.stack([gaussian(s, radius) for s in growth]))
  norms = jnp.asarray(sigmas**2, jnp.float32)[:, None, None]
  first = jnp.asarray(gaussian(np.sqrt(SIGMA**2 - CAMERA**2), radius))
  image = blur(grey, size, first)
  values, shapes, sizes, octaves = [], [], [], []
  for _ in range(OCTAVES):

    def grow(image, taps, size=size):
      image = blur(image, size, taps)
      return image, image

    _, layers = jax.lax.scan(grow, image, taps)
    layers = jnp.concatenate([image[None], layers])
    rows, columns = (
      (0 < points) & (points < length - 1)
      for points, length in (
        (jnp.arange(image.shape[0]), size[0]),
        (jnp.arange(image.shape[1]), size[1]),
      )
    )
    inside = jnp.broadcast_to(rows[:, None] & columns[None, :], layers.shape)
    octaves.append((jnp.abs(norms * laplacian(layers)), inside))
    values.append(layers.ravel())
    shapes.append(layers.shape)
    sizes.append(size)
    image = layers[LAYERS, ::2, ::2]  # of twice the first layer's sigma
    size = (size + 1) // 2
  pyramid = Pyramid(jnp.concatenate(values), tuple(shapes), jnp.stack(sizes))
  return pyramid, octaves


def _is_blob(neighbours: jax.Array) -> jax.Array:
  """Tells an extremum [3, 3, 3] from an edge by its curvatures."""
  plane = neighbours[1]
  yy = plane[2, 1] - 2 * plane[1, 1] + plane[0, 1]
  xx = plane[1, 2] - 2 * plane[1, 1] + plane[1, 0]
  yx = (plane[2, 2] - plane[2, 0] - plane[0, 2] + plane[0, 0]) / 4
  determinant = yy * xx - yx * yx
  return (yy + xx) ** 2 * EDGE < (EDGE + 1) ** 2 * determinant


def _patch(
  pyramid: Pyramid,
  octave: jax.Array,
  layer: jax.Array,
  location: jax.Array,
  sigma: jax.Array,
  angle: jax.Array,
  *,
  side: int,
) -> jax.Array:
  """Samples the layer around one feature: [side, side].

  Args:
    pyramid: what to sample.
    octave: which octave.
    layer: which layer, a whole number.
    location: [2] (y, x) on the octave's grid.
    sigma: of the feature on the octave's grid.
    angle: of the patch, from x towards y.
    side: of the patch in samples.
  """
  counts = [int(np.prod(shape)) for shape in pyramid.shapes]
  starts = jnp.array(np.cumsum([0, *counts[:-1]]), jnp.int32)[octave]
  heights, widths = (
    jnp.array([shape[k] for shape in pyramid.shapes])[octave] for k in (1, 2)
  )
  start = starts + layer * heights * widths
  steps = jnp.asarray(_steps(side))
  y, x = steps[:, None], steps[None, :]
  sine, cosine = jnp.sin(angle), jnp.cos(angle)
  rows = location[0] + sigma * (y * cosine + x * sine)
  columns = location[1] + sigma * (x * cosine - y * sine)
  last = (pyramid.sizes[octave] - 1).astype(jnp.float32)
  rows = jnp.clip(rows, 0.0, last[0])
  columns = jnp.clip(columns, 0.0, last[1])
  top = jnp.clip(jnp.floor(rows), 0.0, jnp.maximum(last[0] - 1, 0))
  left = jnp.clip(jnp.floor(columns), 0.0, jnp.maximum(last[1] - 1, 0))
  down, right = rows - top, columns - left
  first = start + top.astype(jnp.int32) * widths + left.astype(jnp.int32)

  def at(offset):
    return pyramid.values.at[first + offset].get(mode="clip")

  upper = at(0) * (1 - right) + at(1) * right
  lower = at(widths) * (1 - right) + at(widths + 1) * right
  return upper * (1 - down) + lower * down


def _steps(side: int) -> np.ndarray:
  return ((np.arange(side) - (side - 1) / 2) * SPACING).astype(np.float32)


def _dominant(patch: jax.Array) -> jax.Array:
  """Returns the direction that most gradients of a patch have.

  The top of a histogram of 36 directions, weighted by magnitude and a Gaussian
  of 1.5 sigma, smoothed; as for SIFT, but one alone.

  Args:
    patch: [n, n], upright.

  Returns:
    radians, from x towards y.
  """
  y = patch[2:, 1:-1] - patch[:-2, 1:-1]
  x = patch[1:-1, 2:] - patch[1:-1, :-2]
  steps = _steps(len(y))
  distances = steps[:, None] ** 2 + steps[None, :] ** 2
  weights = jnp.asarray(np.exp(-distances / (2 * 1.5**2)))
  weights = (weights * jnp.sqrt(y * y + x * x)).ravel()
  place = jnp.arctan2(y, x).ravel() * (_BINS / (2 * np.pi))
  bins = jnp.arange(_BINS, dtype=jnp.float32)
  away = jnp.mod(place[:, None] - bins[None, :] + _BINS / 2, _BINS) - _BINS / 2
  near = jnp.maximum(1 - jnp.abs(away), 0)
  histogram = jnp.sum(weights[:, None] * near, axis=0)
  for _ in range(2):
    around = jnp.roll(histogram, 1) + jnp.roll(histogram, -1)
    histogram = (2 * histogram + around) / 4
  top = jnp.argmax(histogram)
  before, own, after = (histogram[(top + k) % _BINS] for k in (-1, 0, 1))
  bend = before - 2 * own + after
  offset = jnp.where(bend < 0, (before - after) / (2 * bend), 0.0)
  return (top + offset) * (2 * np.pi / _BINS)


@functools.cache
def wavelets() -> np.ndarray:
  """Returns the bank of Gabor wavelets, [SIDE**2, DIM] float32.

  For each point of the pattern, the middle first and then ring by ring, and for
  each direction: the real part and the imaginary part. None answers to a
  constant. At a point in direction p the wavelets' directions are counted from
  p, so that a rotation of the patch by one step of the pattern permutes them.
  """
  y, x = np.meshgrid(_steps(SIDE), _steps(SIDE), indexing="ij")
  points = [(0.0, 0.0, 0.0, MIDDLE)] + [
    (radius, np.cos(angle), np.sin(angle), ENVELOPE * radius)
    for radius in RINGS
    for angle in 2 * np.pi * np.arange(ANGLES) / ANGLES
  ]
  bank = []
  for radius, across, down, sigma in points:
    towards = np.arctan2(down, across)
    v, u = y - radius * down, x - radius * across
    envelope = np.exp(-(v**2 + u**2) / (2 * sigma**2))
    envelope /= envelope.sum()
    for k in range(DIRECTIONS):
      direction = towards + np.pi * k / DIRECTIONS
      along = u * np.cos(direction) + v * np.sin(direction)
      wave = np.exp(2j * np.pi * along / (WAVELENGTH * sigma))
      wavelet = envelope * (wave - (envelope * wave).sum())
      bank += [wavelet.real, wavelet.imag]
  return np.stack(bank, -1).reshape(SIDE**2, DIM).astype(np.float32)


def extract(
  reduction: Reduction | None,
  pixels: jax.Array,
  size: jax.Array,
  *,
  max_features: int = 1000,
) -> tuple[LocalFeatures, jax.Array]:
  """Extracts the features of one photograph.

  Args:
    reduction: learned on descriptors without one; or None.
    pixels: [h, w, 3] uint8 RGB on a canvas.
    size: [2] true height and width, at least 1.
    max_features: rows of the result.

  Returns:
    features, best first, with sigmas in pixels as scales and magnitudes of the
    Laplacian as scores; and [max_features] angles from x towards y.
  """
  grey = scale_space.to_grey(pixels).astype(jnp.float32) / 255
  pyramid, octaves = build_pyramid(grey, size)
  found = scale_space.find_extrema(
    octaves, threshold=THRESHOLD, max_features=max_features
  )
  found = scale_space.best_of(
    found, found.mask & jax.vmap(_is_blob)(found.neighbours), max_features
  )
  sigmas = SIGMA * 2 ** (found.layer / LAYERS)
  layer = jnp.clip(jnp.round(found.layer), 0, LAYERS + 1).astype(jnp.int32)

  def sample(angles, side):
    function = functools.partial(_patch, pyramid, side=side)
    # Else the compiler samples again for every neighbour that something reads.
    return jax.lax.optimization_barrier(
      jax.vmap(function)(found.octave, layer, found.location, sigmas, angles)
    )

  upright = sample(jnp.zeros(sigmas.shape), SIDE // 2 + 2)
  angles = jax.vmap(_dominant)(upright)
  patches = sample(angles, SIDE).reshape(max_features, SIDE**2)
  raw = jnp.matmul(
    patches, jnp.asarray(wavelets()), precision=jax.lax.Precision.HIGHEST
  )
  mask = found.mask & (jnp.sum(raw**2, axis=1) > _TINY)
  step = (2**found.octave).astype(jnp.float32)
  features = LocalFeatures(
    locations=jnp.where(mask[:, None], found.location * step[:, None], 0.0),
    scales=jnp.where(mask, sigmas * step, 0.0),
    scores=jnp.where(mask, found.response, 0.0),
    descriptors=jnp.where(mask[:, None], reduce(reduction, raw), 0.0),
    mask=mask,
  )
  return features, jnp.where(mask, angles, 0.0)
