"""SURF against filters and loops written out, and what it must not notice."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.features import surf

CANVAS = (192, 256)


def scene(height=160, width=200, seed=0):
  """Returns [height, width, 3] uint8 with blobs of many sizes."""
  rng = np.random.default_rng(seed)
  image = np.full((height, width, 3), 120, np.uint8)
  for _ in range(60):
    centre = (int(rng.integers(width)), int(rng.integers(height)))
    colour = rng.integers(256, size=3).tolist()
    cv2.circle(image, centre, int(rng.integers(2, 14)), colour, -1)
  return cv2.GaussianBlur(image, (0, 0), 1)


@functools.partial(jax.jit, static_argnames=("max_features", "upright"))
def run(canvas, size, *, max_features=200, upright=False):
  return surf.extract(canvas, size, max_features=max_features, upright=upright)


def extract(pixels, *, canvas=CANVAS, filling=0, **options):
  """Returns the features and angles of a photograph on a canvas, compact."""
  padded = np.full((*canvas, 3), filling, np.uint8)
  height, width = pixels.shape[:2]
  padded[:height, :width] = pixels
  features, angles = run(padded, np.array([height, width]), **options)
  mask = np.asarray(features.mask)
  return jax.tree.map(lambda leaf: np.asarray(leaf)[mask], features), (
    np.asarray(angles)[mask]
  )


def nearest(one, other):
  """For each [n, 2] location the row of the nearest other, and how far."""
  gaps = np.linalg.norm(one[:, None] - other[None], axis=-1)
  return gaps.argmin(1), gaps.min(1)


def kernels(side):
  """Returns the filters yy, xx and yx as the paper draws them."""
  lobe, middle = side // 3, side // 2
  yy = np.zeros((side, side))
  band = slice((side - (2 * lobe - 1)) // 2, (side + 2 * lobe - 1) // 2)
  yy[:, band] = np.repeat([1, -2, 1], lobe)[:, None]
  yx = np.zeros((side, side))
  for y, x in [(-1, -1), (-1, 1), (1, -1), (1, 1)]:
    rows, columns = (
      slice(middle + 1, middle + 1 + lobe)
      if sign > 0
      else slice(middle - lobe, middle)
      for sign in (y, x)
    )
    yx[rows, columns] = y * x
  return yy, yy.T, yx


@pytest.mark.parametrize("side, step", [(9, 1), (15, 2), (27, 1), (51, 8)])
def test_determinants_are_those_of_the_filters(side, step):
  grey = np.random.default_rng(0).integers(256, size=(70, 83))
  yy, xx, yx = (
    cv2.filter2D(grey / 255, cv2.CV_64F, kernel) / side**2
    for kernel in kernels(side)
  )
  expected = (yy * xx - (0.9 * yx) ** 2)[::step, ::step]
  sums = surf.integral(jnp.asarray(grey, jnp.int32))
  found = np.asarray(surf.hessian(sums, side, step))
  assert found.shape == expected.shape
  inside = np.zeros(grey.shape, bool)
  half = side // 2
  inside[half : 70 - half, half : 83 - half] = True
  inside = inside[::step, ::step]
  assert inside.any()
  np.testing.assert_allclose(
    found[inside], expected[inside], rtol=2e-4, atol=1e-7
  )


def test_sums_are_opencvs_and_boxes_survive_an_overflow():
  grey = np.random.default_rng(1).integers(256, size=(40, 50), dtype=np.uint8)
  sums = surf.integral(jnp.asarray(grey, jnp.int32))
  np.testing.assert_array_equal(sums, cv2.integral(grey))
  wrapped = surf.integral(jnp.asarray(grey, jnp.int32) + 2**28)
  np.testing.assert_allclose(
    surf.hessian(wrapped, 9)[4:-4, 4:-4],
    surf.hessian(sums, 9)[4:-4, 4:-4],
    rtol=1e-5,
    atol=1e-7,
  )


@pytest.mark.parametrize("sigma", [3.0, 5.0, 8.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_blob_lies_where_it_was_drawn(sigma, sign):
  y, x = np.mgrid[:160, :200]
  blob = np.exp(-((y - 70.3) ** 2 + (x - 100.6) ** 2) / (2 * sigma**2))
  grey = np.rint(128 + sign * 100 * blob).astype(np.uint8)
  features, _ = extract(np.repeat(grey[..., None], 3, 2))
  np.testing.assert_allclose(features.locations[0], [70.3, 100.6], atol=0.3)
  # The paper's rule, sigma = 1.2 side / 9, tells less than the Gaussian's, and
  # so at all scales.
  assert 0.66 < features.scales[0] / sigma < 0.78
  assert (np.diff(features.scores) <= 0).all()


def test_padding_never_changes_a_bit():
  pixels = scene()
  features, angles = extract(pixels)
  assert len(features.mask) > 80
  for canvas, filling in [((160, 200), 0), (CANVAS, 255)]:
    others, other_angles = extract(pixels, canvas=canvas, filling=filling)
    jax.tree.map(np.testing.assert_array_equal, others, features)
    np.testing.assert_array_equal(other_angles, angles)


def test_a_quarter_turn_turns_everything():
  pixels = scene(161, 193)  # sides of 8 k + 1: the grids turn onto each other
  features, angles = extract(pixels)
  turned, turned_angles = extract(np.rot90(pixels).copy(), canvas=CANVAS[::-1])
  assert len(turned.mask) == len(features.mask)
  y, x = features.locations.T
  rows, gaps = nearest(np.stack([192 - x, y], 1), turned.locations)
  assert gaps.max() < 1e-2
  np.testing.assert_allclose(turned.scales[rows], features.scales, rtol=1e-3)
  np.testing.assert_allclose(turned.scores[rows], features.scores, rtol=1e-3)
  swing = np.angle(np.exp(1j * (turned_angles[rows] - angles + np.pi / 2)))
  assert np.mean(np.abs(swing) < 0.02) > 0.95
  alike = (turned.descriptors[rows] * features.descriptors).sum(1)
  assert np.mean(alike > 0.99) > 0.95


@pytest.mark.parametrize("angle, zoom", [(30, 1.0), (0, 1.5), (-70, 0.8)])
def test_a_turned_and_enlarged_photograph_has_the_same_features(angle, zoom):
  pixels = scene(240, 240)
  matrix = cv2.getRotationMatrix2D((119.5, 119.5), angle, zoom)
  warped = cv2.warpAffine(
    pixels, matrix, (240, 240), flags=cv2.INTER_AREA, borderValue=(120,) * 3
  )
  one, angles = extract(pixels, canvas=(240, 256))
  other, other_angles = extract(warped, canvas=(240, 256))
  mapped = np.c_[one.locations[:, ::-1], np.ones(len(one.mask))] @ matrix.T
  mapped = mapped[:, ::-1]
  inside = (np.abs(mapped - 119.5) < 80).all(1)
  inside &= (np.abs(one.locations - 119.5) < 80).all(1)
  inside[60:] = False
  rows, gaps = nearest(mapped[inside], other.locations)
  near = gaps < 2
  assert near.mean() > 0.6
  ratio = other.scales[rows][near] / one.scales[inside][near]
  assert abs(np.median(ratio) / zoom - 1) < 0.08
  swing = other_angles[rows][near] - angles[inside][near] + np.radians(angle)
  swing = np.angle(np.exp(1j * swing))
  assert abs(np.median(swing)) < 0.05 and np.median(np.abs(swing)) < 0.2
  alike = one.descriptors[inside][near] @ other.descriptors.T
  assert np.mean(nearest_is_right(alike, other, mapped[inside][near])) > 0.6


def nearest_is_right(alike, other, mapped):
  gaps = np.linalg.norm(other.locations[alike.argmax(1)] - mapped, axis=1)
  return gaps < 3


def test_a_shift_by_the_coarsest_step_changes_nothing():
  wide = scene(208, 240)
  one, _ = extract(wide[:192, :232])
  other, _ = extract(wide[16:, 8:])
  rows, gaps = nearest(one.locations - [16, 8], other.locations)
  # Features whose windows lie inside both.
  middle = (np.abs(one.locations - [104, 120]) < 40).all(1) & (one.scales < 3)
  assert middle.sum() > 10
  assert gaps[middle].max() < 1e-3
  np.testing.assert_allclose(
    other.descriptors[rows[middle]], one.descriptors[middle], atol=1e-3
  )


def test_light_changes_no_descriptor():
  pixels = scene()
  half = (pixels // 2 * 2).astype(np.uint8)
  one, _ = extract(half)
  other, _ = extract((half // 2 + 60).astype(np.uint8))
  rows, gaps = nearest(other.locations, one.locations)
  assert np.mean(gaps < 0.3) > 0.9
  alike = (one.descriptors[rows] * other.descriptors).sum(1)[gaps < 0.3]
  assert np.mean(alike > 0.98) > 0.95


def mean_in(grey, top, left, bottom, right):
  """Integrates over a box with parts of pixels: a photograph is a mosaic."""
  total = 0.0
  for y in range(int(np.floor(top)), int(np.ceil(bottom))):
    for x in range(int(np.floor(left)), int(np.ceil(right))):
      height = min(bottom, y + 1) - max(top, y)
      width = min(right, x + 1) - max(left, x)
      total += height * width * grey[y, x]
  return total


def loop_over_samples(grey, location, sigma, angle):
  """The descriptor, one sample after the other."""
  cells = np.zeros((4, 4, 4))
  sine, cosine = np.sin(angle), np.cos(angle)
  for i in range(20):
    for j in range(20):
      v, u = i - 9.5, j - 9.5
      # Edges, not centres, of pixels are whole here.
      y = location[0] + 0.5 + sigma * (u * sine + v * cosine)
      x = location[1] + 0.5 + sigma * (u * cosine - v * sine)
      box = y - sigma, x - sigma, y + sigma, x + sigma
      if box[0] < 0 or box[1] < 0:
        continue
      if box[2] > grey.shape[0] or box[3] > grey.shape[1]:
        continue
      top, left, bottom, right = box
      dx = mean_in(grey, top, x, bottom, right)
      dx -= mean_in(grey, top, left, bottom, x)
      dy = mean_in(grey, y, left, bottom, right)
      dy -= mean_in(grey, top, left, y, right)
      weight = np.exp(-(u**2 + v**2) / (2 * 3.3**2))
      along = weight * (dx * cosine + dy * sine)
      across = weight * (dy * cosine - dx * sine)
      cells[i // 5, j // 5] += along, across, abs(along), abs(across)
  return cells.ravel() / np.linalg.norm(cells)


@pytest.mark.parametrize("place", [(80.3, 90.7), (12.0, 150.2)])
@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_the_descriptor_is_that_of_a_loop(place, angle):
  grey = cv2.cvtColor(scene(), cv2.COLOR_RGB2GRAY).astype(np.int32)
  found = jax.jit(surf.describe)(
    surf.integral(jnp.asarray(grey)),
    jnp.array(grey.shape),
    jnp.array(place),
    jnp.float32(2.3),
    jnp.float32(angle),
  )
  found = np.asarray(found) / np.linalg.norm(found)
  expected = loop_over_samples(grey, place, 2.3, angle)
  np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("angle", [0.0, 0.9, 2.5, -2.0, -0.4])
def test_the_direction_is_that_of_the_slope(angle):
  y, x = np.mgrid[:120, :120] - 60.0
  slope = np.rint(128 + 1.2 * (np.cos(angle) * x + np.sin(angle) * y))
  found = jax.jit(surf.orientation)(
    surf.integral(jnp.asarray(np.clip(slope, 0, 255), jnp.int32)),
    jnp.array([120, 120]),
    jnp.array([60.2, 59.7]),
    jnp.float32(3.4),
  )
  assert abs(np.angle(np.exp(1j * (found - angle)))) < 0.02


def test_upright_features_have_no_direction():
  one, angles = extract(scene())
  other, none = extract(scene(), upright=True)
  assert np.ptp(angles) > 1 and not none.any()
  np.testing.assert_array_equal(one.locations, other.locations)
  assert (one.descriptors != other.descriptors).any()


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (5, 5), (16, 9), (30, 40)])
def test_small_photographs_give_few_features_or_none(size):
  pixels = np.random.default_rng(0).integers(256, size=(*size, 3))
  features, _ = extract(pixels.astype(np.uint8))
  assert np.isfinite(features.descriptors).all()
  assert (features.locations < size).all()


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_blank_photograph_gives_none(value):
  features, _ = extract(np.full((150, 200, 3), value, np.uint8), filling=77)
  assert not len(features.mask)
