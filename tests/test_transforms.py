"""Tests of delf_jax.geometry.transforms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.geometry import transforms

fit_affine = jax.jit(transforms.fit_affine)


def random_affine(rng):
  """A moderate affine transform [2, 3] of a 600 x 800 photograph, float64."""
  linear = np.eye(2) + rng.uniform(-0.4, 0.4, (2, 2))
  return np.column_stack([linear, rng.uniform(-200, 200, 2)])


def mapped(transform, points):
  return points @ transform[:, :2].T + transform[:, 2]


def least_squares(source, target, weights):
  """The oracle: NumPy's solver in float64 on the whole design matrix."""
  root = np.sqrt(weights)[:, None]
  design = np.column_stack([source, np.ones(len(source))])
  return np.linalg.lstsq(root * design, root * target, rcond=None)[0].T


@pytest.mark.parametrize("seed", range(5))
def test_three_correspondences_are_met_exactly(seed):
  rng = np.random.default_rng(seed)
  source = rng.uniform(0, 600, (3, 2)).astype(np.float32)
  target = rng.uniform(0, 600, (3, 2)).astype(np.float32)
  transform, ok = transforms.affine_from_three(source, target)
  assert ok
  assert transform.shape == (2, 3) and transform.dtype == jnp.float32
  np.testing.assert_allclose(
    transforms.apply_affine(transform, source), target, atol=0.02
  )


def test_the_transform_takes_y_and_x_of_the_source_to_those_of_the_target():
  source = jnp.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
  # Down is stretched by 2 and moved by 5; right is moved by 7.
  target = jnp.array([[5.0, 7.0], [25.0, 7.0], [5.0, 17.0]])
  transform, ok = transforms.affine_from_three(source, target)
  assert ok
  np.testing.assert_allclose(
    transform, [[2.0, 0.0, 5.0], [0.0, 1.0, 7.0]], atol=1e-6
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
  np.testing.assert_allclose(transform[:, :2], truth[:, :2], atol=1e-4)
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
  moved = np.array([[1, 0, 4], [0, 1, -2]], np.float32)
  np.testing.assert_allclose(fit_affine(line, shifted, ones), moved, atol=1e-5)
  point = np.zeros((4, 2), np.float32)
  np.testing.assert_array_equal(
    fit_affine(point, point + moved[:, 2], ones), moved
  )
  np.testing.assert_array_equal(
    fit_affine(line, shifted, np.zeros(4, np.float32)), np.eye(2, 3)
  )


def test_residuals_are_distances_in_the_target():
  rng = np.random.default_rng(3)
  transform = random_affine(rng).astype(np.float32)
  source = rng.uniform(0, 600, (30, 2)).astype(np.float32)
  target = rng.uniform(0, 600, (30, 2)).astype(np.float32)
  landed = transforms.apply_affine(transform, source)
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
