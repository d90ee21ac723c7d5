"""Tests of delf_jax.geometry.transforms."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.geometry import homography, transforms

fit_affine = jax.jit(transforms.fit_affine)
FITS = {
  "translation_scale": jax.jit(transforms.fit_translation_scale),
  "similarity": jax.jit(transforms.fit_similarity),
  "affine": fit_affine,
}


def random_affine(rng):
  """A moderate affine transform [2, 3] of a 600 x 800 photograph, float64."""
  linear = np.eye(2) + rng.uniform(-0.4, 0.4, (2, 2))
  return np.column_stack([linear, rng.uniform(-200, 200, 2)])


def apply(transform, points):
  """Maps [n, 2] by [3, 3] with NumPy."""
  return mapped(np.asarray(transform, np.float64), points)


def mapped(transform, points):
  transform = transform[:2]
  return points @ transform[:, :2].T + transform[:, 2]


def least_squares(source, target, weights):
  """The oracle: NumPy's solver in float64 on the whole design matrix."""
  root = np.sqrt(weights)[:, None]
  design = np.column_stack([source, np.ones(len(source))])
  return np.linalg.lstsq(root * design, root * target, rcond=None)[0].T


def design(model, source):
  """What the unknowns of a model are multiplied by: [2 n, unknowns], float64.

  First the rows of y, then those of x.
  """
  y, x = source.astype(np.float64).T
  one, none = np.ones_like(y), np.zeros_like(y)
  first, second = {
    "translation_scale": ([y, one, none], [x, none, one]),
    "similarity": ([y, -x, one, none], [x, y, none, one]),
    "affine": (
      [y, x, one, none, none, none],
      [none, none, none, y, x, one],
    ),
  }[model]
  return np.concatenate([np.column_stack(first), np.column_stack(second)])


@pytest.mark.parametrize("model", list(FITS))
@pytest.mark.parametrize("seed", range(4))
def test_every_fit_agrees_with_least_squares_in_float64(model, seed):
  rng = np.random.default_rng(seed)
  n = (4, 65, 300, 1000)[seed]
  source = rng.uniform(0, 2000, (n, 2)).astype(np.float32)
  turn = rng.uniform(-3, 3)
  linear = 0.7 * np.array(
    [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
  )
  if model == "translation_scale":
    linear = 0.7 * np.eye(2)
  target = source @ linear.T + rng.normal(0, 3, (n, 2)) + [300, -80]
  target = target.astype(np.float32)
  weights = rng.uniform(0, 1, n).astype(np.float32)
  matrix = design(model, source)
  root = np.tile(np.sqrt(weights.astype(np.float64)), 2)
  unknowns = np.linalg.lstsq(
    root[:, None] * matrix, root * target.T.ravel(), rcond=None
  )[0]
  transform = FITS[model](source, target, weights)
  np.testing.assert_allclose(
    apply(transform, source),
    (matrix @ unknowns).reshape(2, n).T,
    atol=0.01,
  )


@pytest.mark.parametrize("seed", range(3))
def test_a_similarity_is_what_opencv_fits_to_exact_correspondences(seed):
  rng = np.random.default_rng(seed)
  source = rng.uniform(0, 600, (30, 2)).astype(np.float32)
  true = np.float64([[0.8, -0.5, 40], [0.5, 0.8, -90]])
  target = mapped(true, source).astype(np.float32)
  expected, kept = cv2.estimateAffinePartial2D(source, target)
  assert kept.all()
  transform = FITS["similarity"](source, target, np.ones(30, np.float32))
  np.testing.assert_allclose(
    apply(transform, source), mapped(expected, source), atol=0.01
  )


def test_a_similarity_never_mirrors_and_a_scale_is_never_negative():
  rng = np.random.default_rng(0)
  source = rng.uniform(0, 600, (50, 2)).astype(np.float32)
  ones = np.ones(50, np.float32)
  mirrored = FITS["similarity"](source, source * np.float32([1, -1]), ones)
  assert np.linalg.det(np.asarray(mirrored)[:2, :2]) >= 0
  turned = FITS["translation_scale"](source, -source, ones)
  np.testing.assert_allclose(turned[:2, :2], np.zeros((2, 2)))


@pytest.mark.parametrize("model", list(FITS))
def test_scaled_pixels_give_the_scaled_transform_bit_for_bit(model):
  rng = np.random.default_rng(5)
  source = rng.uniform(0, 600, (70, 2)).astype(np.float32)
  target = source + rng.normal(0, 9, (70, 2)).astype(np.float32)
  ones = np.ones(70, np.float32)
  expected = FITS[model](source, target, ones)
  found = FITS[model](source * 8, target * 4, ones)
  scales = np.float32([[0.5, 0.5, 4], [0.5, 0.5, 4], [1, 1, 1]])
  np.testing.assert_array_equal(found, expected * scales)


@pytest.mark.parametrize("model", list(FITS))
def test_rows_of_no_weight_and_padding_change_no_bit_of_any_fit(model):
  rng = np.random.default_rng(6)
  source, target = rng.uniform(0, 600, (2, 90, 2)).astype(np.float32)
  weights = rng.uniform(0, 1, 90).astype(np.float32)
  weights[7] = 0
  expected = FITS[model](source, target, weights)
  source[7], target[7] = np.nan, np.inf
  rows = ((0, 200), (0, 0))
  padded = FITS[model](
    np.pad(source, rows), np.pad(target, rows), np.pad(weights, rows[0])
  )
  np.testing.assert_array_equal(padded, expected)


@pytest.mark.parametrize("seed", range(5))
def test_three_correspondences_are_met_exactly(seed):
  rng = np.random.default_rng(seed)
  source = rng.uniform(0, 600, (3, 2)).astype(np.float32)
  target = rng.uniform(0, 600, (3, 2)).astype(np.float32)
  transform, ok = transforms.affine_from_three(source, target)
  assert ok
  assert transform.shape == (3, 3) and transform.dtype == jnp.float32
  np.testing.assert_allclose(apply(transform, source), target, atol=0.02)


def test_the_transform_takes_y_and_x_of_the_source_to_those_of_the_target():
  source = jnp.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
  # Down is stretched by 2 and moved by 5; right is moved by 7.
  target = jnp.array([[5.0, 7.0], [25.0, 7.0], [5.0, 17.0]])
  transform, ok = transforms.affine_from_three(source, target)
  assert ok
  np.testing.assert_allclose(
    transform, [[2.0, 0.0, 5.0], [0.0, 1.0, 7.0], [0.0, 0.0, 1.0]], atol=1e-6
  )


@pytest.mark.parametrize(
  "source",
  [
    [[5.0, 5.0]] * 3,
    [[1.0, 1.0], [1.0, 1.0], [9.0, 2.0]],
    [[0.0, 0.0], [1.0, 2.0], [50.0, 100.0]],
    [[0.0, 0.0], [300.0, 0.0], [600.0, 0.1]],
    [[0.0, 0.0], [np.nan, 0.0], [0.0, 9.0]],
    [[0.0, 0.0], [np.inf, 0.0], [0.0, 9.0]],
  ],
)
def test_samples_without_area_are_void(source):
  _, ok = transforms.affine_from_three(jnp.array(source), jnp.eye(3, 2))
  assert not ok


@pytest.mark.parametrize("seed", range(5))
def test_fit_agrees_with_least_squares_in_float64(seed):
  rng = np.random.default_rng(seed)
  n = (3, 17, 64, 100, 1000)[seed]
  source = rng.uniform(0, 4000, (n, 2)).astype(np.float32)
  target = mapped(random_affine(rng), source) + rng.normal(0, 2, (n, 2))
  target = target.astype(np.float32)
  weights = rng.uniform(0, 1, n).astype(np.float32)
  expected = least_squares(
    source.astype(np.float64), target.astype(np.float64), weights
  )
  transform = np.asarray(fit_affine(source, target, weights))
  # What matters is where points land: within a hundredth of a pixel.
  np.testing.assert_allclose(
    mapped(transform.astype(np.float64), source),
    mapped(expected, source),
    atol=0.01,
  )


def test_fit_is_exact_on_a_small_patch_far_from_the_origin():
  rng = np.random.default_rng(0)
  truth = random_affine(rng)
  source = (np.array([3000, 5000]) + rng.uniform(0, 50, (40, 2))).astype(
    np.float32
  )
  target = mapped(truth, source).astype(np.float32)
  transform = fit_affine(source, target, np.ones(40, np.float32))
  np.testing.assert_allclose(transform[:2, :2], truth[:, :2], atol=1e-4)
  residuals = transforms.squared_residuals(transform, source, target)
  assert np.sqrt(np.max(residuals)) < 0.02


def test_rows_without_weight_may_hold_anything():
  rng = np.random.default_rng(1)
  source = rng.uniform(0, 600, (20, 2)).astype(np.float32)
  target = rng.uniform(0, 600, (20, 2)).astype(np.float32)
  weights = (np.arange(20) % 3 > 0).astype(np.float32)
  expected = fit_affine(source, target, weights)
  poison = np.array([[np.nan, np.inf]], np.float32)
  unused = weights[:, None] == 0
  np.testing.assert_array_equal(
    fit_affine(
      np.where(unused, poison, source),
      np.where(unused, -poison, target),
      weights,
    ),
    expected,
  )


def test_padding_changes_no_bit_of_a_fit():
  rng = np.random.default_rng(2)
  source = rng.uniform(0, 600, (150, 2)).astype(np.float32)
  target = rng.uniform(0, 600, (150, 2)).astype(np.float32)
  weights = rng.uniform(0, 1, 150).astype(np.float32)
  expected = fit_affine(source, target, weights)
  for n in (151, 192, 256, 1000):
    rows = ((0, n - 150), (0, 0))
    padded = fit_affine(
      np.pad(source, rows), np.pad(target, rows), np.pad(weights, rows[0])
    )
    np.testing.assert_array_equal(padded, expected)


def test_a_fit_without_a_plane_is_a_translation():
  line = np.array([[0, 0], [1, 1], [2, 2], [3, 3]], np.float32)
  shifted = line + np.array([4, -2], np.float32)
  ones = np.ones(4, np.float32)
  moved = np.array([[1, 0, 4], [0, 1, -2], [0, 0, 1]], np.float32)
  np.testing.assert_allclose(fit_affine(line, shifted, ones), moved, atol=1e-5)
  point = np.zeros((4, 2), np.float32)
  np.testing.assert_array_equal(
    fit_affine(point, point + moved[:2, 2], ones), moved
  )
  np.testing.assert_array_equal(
    fit_affine(line, shifted, np.zeros(4, np.float32)), np.eye(3)
  )


def test_residuals_are_distances_in_the_target():
  rng = np.random.default_rng(3)
  transform = random_affine(rng).astype(np.float32)
  source = rng.uniform(0, 600, (30, 2)).astype(np.float32)
  target = rng.uniform(0, 600, (30, 2)).astype(np.float32)
  landed = apply(transform, source)
  np.testing.assert_allclose(landed, mapped(transform, source), rtol=1e-5)
  np.testing.assert_allclose(
    transforms.squared_residuals(transform, source, target),
    np.sum((np.asarray(landed) - target) ** 2, axis=1),
    rtol=1e-4,
  )


def test_stretch_is_made_of_singular_values():
  transform = random_affine(np.random.default_rng(4)).astype(np.float32)
  singular = np.linalg.svd(transform[:, :2], compute_uv=False)
  area, lengths = transforms.stretch(transform)
  np.testing.assert_allclose(area, singular[0] * singular[1], rtol=1e-5)
  np.testing.assert_allclose(lengths, np.sum(singular**2), rtol=1e-5)
  area, _ = transforms.stretch(transform * np.array([[1], [-1]], np.float32))
  assert area < 0


def test_stretch_is_known_before_the_transform():
  source, target = np.random.default_rng(5).uniform(0, 600, (2, 3, 2))
  transform, ok = transforms.affine_from_three(
    jnp.float32(source), jnp.float32(target)
  )
  assert ok
  np.testing.assert_allclose(
    transforms.stretch_from_three(source, target),
    transforms.stretch(transform),
    rtol=1e-3,
  )
  # Three points on a line have none.
  line = [(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)]
  line = [[jnp.float32(value) for value in point] for point in line]
  area, _ = transforms.stretch_from_three(line, jnp.float32(target))
  assert not jnp.isfinite(area)


def test_local_stretch_is_that_of_the_derivatives():
  transform = np.float32([[1.1, 0.2, 9], [-0.1, 0.9, 5], [5e-4, -3e-4, 1]])
  points = np.float32([[0, 0], [300, 200], [500, 10]])
  areas, lengths = transforms.local_stretch(transform, points)
  for point, area, length in zip(points, areas, lengths, strict=True):
    near = homography.affine_at(transform, point)
    np.testing.assert_allclose(
      (area, length), transforms.stretch(near), rtol=1e-4
    )


def test_products_and_rows_are_those_of_numpy():
  rng = np.random.default_rng(7)
  a, b = (rng.normal(0, 1, (k, 130)).astype(np.float32) for k in (3, 2))
  product = transforms.ordered_products(a, b)
  np.testing.assert_allclose(product, a @ b.T, atol=1e-4)
  np.testing.assert_array_equal(
    transforms.ordered_products(
      *(np.pad(s, ((0, 0), (0, 99))) for s in (a, b))
    ),
    product,
  )
  np.testing.assert_array_equal(transforms.rows(*a), a)
