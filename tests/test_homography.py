"""Tests of delf_jax.geometry.homography."""

import itertools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from delf_jax.geometry import homography

fit_compiled = jax.jit(homography.fit)
from_four = jax.jit(homography.from_four)
HEIGHT, WIDTH = 480, 640
FRAME = np.array([[0, 0], [0, WIDTH], [HEIGHT, WIDTH], [HEIGHT, 0]], float)


def fit(source, target, weights=None, *, rows=256, **options):
  """`homography.fit`, padded so that one program serves all."""
  n = len(source)
  weights = np.ones(n, np.float32) if weights is None else weights
  pad = ((0, rows - n), (0, 0))
  return fit_compiled(
    np.pad(source, pad), np.pad(target, pad), np.pad(weights, pad[0]), **options
  )


def dlt(source, target):
  """The oracle: NumPy's SVD in float64 of the whole normalised system."""

  def normalise(points):
    mean = points.mean(axis=0)
    scale = np.sqrt(2) / np.mean(np.linalg.norm(points - mean, axis=1))
    return np.array(
      [[scale, 0, -scale * mean[0]], [0, scale, -scale * mean[1]], [0, 0, 1]]
    )

  to_source, to_target = normalise(source), normalise(target)
  rows = []
  for p, q in zip(
    lift(source) @ to_source.T, lift(target) @ to_target.T, strict=True
  ):
    rows.append([*p, 0, 0, 0, *(-q[0] * p)])
    rows.append([0, 0, 0, *p, *(-q[1] * p)])
  found = np.linalg.svd(np.array(rows))[2][-1].reshape(3, 3)
  return np.linalg.inv(to_target) @ found @ to_source


def lift(points):
  return np.column_stack([points, np.ones(len(points))])


def mapped(transform, points):
  found = lift(np.asarray(points, float)) @ np.asarray(transform, float).T
  return found[:, :2] / found[:, 2:]


def random_homography(rng, size=1.0, strength=0.3):
  """Moves each corner of the photograph by up to `strength` of its sides."""
  frame = FRAME * size
  moved = frame + rng.uniform(-strength, strength, (4, 2)) * frame[2]
  return dlt(frame, moved)


def make_points(seed, n, *, size=1.0, noise=0.0):
  """Returns source, target [n, 2] float32 and the homography, float64."""
  rng = np.random.default_rng(seed)
  true = random_homography(rng, size)
  source = rng.uniform(0, 1, (n, 2)) * FRAME[2] * size
  target = mapped(true, source) + rng.normal(0, noise, (n, 2))
  return source.astype(np.float32), target.astype(np.float32), true


def total_error(transform, source, target, weights=1.0):
  missed = mapped(transform, source) - target
  return np.sum(weights * np.sum(missed**2, axis=1))


@pytest.mark.parametrize("size", [1.0, 6.0])
@pytest.mark.parametrize("seed", range(5))
def test_four_correspondences_are_met_exactly(seed, size):
  source, target, true = make_points(seed, 4, size=size)
  transform, ok = from_four(source, target)
  assert ok
  assert transform.shape == (3, 3) and transform.dtype == jnp.float32
  np.testing.assert_allclose(mapped(transform, source), target, atol=0.01)
  expected = dlt(source.astype(float), target.astype(float))
  expected /= lift(source[:1])[0] @ expected[2]
  np.testing.assert_allclose(transform[:, :2], expected[:, :2], atol=2e-4)
  assert np.all(lift(source) @ np.asarray(transform)[2] > 0)


def test_the_homography_takes_y_and_x_of_the_source_to_those_of_the_target():
  source = jnp.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0], [0.0, 10.0]])
  # Down is halved where it is far: (y, x) -> (y, x) / (1 + y / 10) + (5, 7).
  target = jnp.array([[5.0, 7.0], [10.0, 7.0], [10.0, 12.0], [5.0, 17.0]])
  transform, ok = from_four(source, target)
  assert ok
  expected = [[1.5, 0.0, 5.0], [0.7, 1.0, 7.0], [0.1, 0.0, 1.0]]
  np.testing.assert_allclose(transform, expected, atol=1e-5)
  found = fit(source, target)
  np.testing.assert_allclose(found / found[2, 2], expected, atol=1e-4)


SQUARE = [[0.0, 0.0], [100.0, 0.0], [100.0, 100.0], [0.0, 100.0]]


@pytest.mark.parametrize(
  "source",
  [
    [[5.0, 5.0]] * 4,
    [[1.0, 1.0], [1.0, 1.0], [9.0, 2.0], [3.0, 8.0]],
    [[0.0, 0.0], [50.0, 50.0], [100.0, 100.0], [0.0, 100.0]],
    [[0.0, 0.0], [50.0, 50.01], [100.0, 100.0], [0.0, 100.0]],
    [[0.0, 0.0], [np.nan, 0.0], [100.0, 100.0], [0.0, 100.0]],
    [[0.0, 0.0], [np.inf, 0.0], [100.0, 100.0], [0.0, 100.0]],
    [[0.0, 0.0], [3e38, 0.0], [100.0, 100.0], [0.0, 100.0]],
  ],
)
def test_degenerate_samples_are_void_on_either_side_in_any_order(source):
  for order in itertools.permutations(range(4)):
    some = jnp.array(source)[jnp.array(order)]
    assert not from_four(some, jnp.array(SQUARE))[1]
    assert not from_four(jnp.array(SQUARE), some)[1]


def test_samples_that_no_camera_sees_are_void():
  square = np.array(SQUARE, np.float32)
  for order in itertools.permutations(range(4)):
    # Round the square either way its triangles keep their orientation or all
    # turn it; across, in a bow tie, some do.
    across = abs(order[0] - order[1]) == 2 or abs(order[1] - order[2]) == 2
    assert bool(from_four(square, square[list(order)])[1]) != across


@pytest.mark.parametrize("seed", range(20))
def test_a_sample_is_accepted_when_its_denominators_agree_in_sign(seed):
  rng = np.random.default_rng(seed)
  source, target = rng.uniform(0, 500, (2, 4, 2)).astype(np.float32)
  exact = dlt(source.astype(float), target.astype(float))
  denominators = lift(source) @ exact[2]
  one_side = abs(np.sum(np.sign(denominators))) == 4
  assert bool(from_four(source, target)[1]) == one_side


@pytest.mark.parametrize("seed", range(3))
def test_views_of_a_plane_are_promising_and_random_samples_are_not(seed):
  promising = jax.jit(
    jax.vmap(
      lambda a, b, c: homography.promising(a, b, mirrored=c), (0, 0, None)
    )
  )
  source, target, _ = make_points(seed, 4000)
  samples = source.reshape(-1, 4, 2), target.reshape(-1, 4, 2)
  true = promising(*samples, False)
  assert np.mean(true) > 0.99
  mirrored = samples[0], samples[1] * np.float32([1, -1])
  assert not np.any(promising(*mirrored, False))
  np.testing.assert_array_equal(promising(*mirrored, True), true)
  # What passes can be solved, and what the test refuses is mostly no view.
  random = samples[0], np.roll(samples[1], 1, axis=1)[::-1]
  passed = promising(*random, False)
  assert np.mean(passed) < 0.05
  _, ok = jax.jit(jax.vmap(homography.from_four))(*random)
  assert np.mean(ok[passed]) > 0.9


def test_a_mirror_image_is_a_homography():
  square = np.array(SQUARE, np.float32)
  transform, ok = from_four(square, square * np.float32([1, -1]))
  assert ok
  np.testing.assert_allclose(transform, np.diag([1, -1, 1]), atol=1e-6)


@pytest.mark.parametrize("size", [1.0, 6.0])
def test_fit_recovers_exact_correspondences(size):
  for seed, n in enumerate((4, 5, 20, 60, 60)):
    source, target, true = make_points(seed, n, size=size)
    transform = fit(source, target)
    assert transform.shape == (3, 3) and transform.dtype == jnp.float32
    np.testing.assert_allclose(mapped(transform, source), target, atol=0.01)
    if n > 5:
      np.testing.assert_allclose(
        mapped(transform, FRAME * size), mapped(true, FRAME * size), atol=0.03
      )


@pytest.mark.parametrize("seed", range(6))
def test_fit_is_as_good_as_opencv_and_better_than_linear(seed):
  n = (6, 20, 40, 60, 100, 250)[seed]
  source, target, _ = make_points(seed, n, noise=1.5)
  found = total_error(fit(source, target), source, target)
  iterated, _ = cv2.findHomography(source, target, method=0)
  linear = dlt(source.astype(float), target.astype(float))
  assert found <= total_error(iterated, source, target) * (1 + 1e-4)
  assert found <= total_error(linear, source, target) * (1 + 1e-5)
  start = fit(source, target, steps=0)
  assert total_error(start, source, target) < 1.05 * total_error(
    linear, source, target
  )


def test_weights_count_as_repetitions():
  source, target, _ = make_points(0, 60, noise=2.0)
  times = np.random.default_rng(0).integers(0, 4, 60)
  weighted = fit(source, target, 0.3 * times.astype(np.float32))
  rows = np.repeat(np.arange(60), times)
  repeated = fit(source[rows], target[rows])
  np.testing.assert_allclose(
    mapped(weighted, FRAME), mapped(repeated, FRAME), atol=0.01
  )


def test_fit_is_exact_on_a_small_patch_far_from_the_origin():
  rng = np.random.default_rng(1)
  true = random_homography(rng, size=10.0)
  source = np.array([3000, 5000]) + rng.uniform(0, 60, (40, 2))
  source = source.astype(np.float32)
  target = mapped(true, source).astype(np.float32)
  transform = fit(source, target)
  residuals = homography.squared_residuals(transform, source, target)
  assert np.sqrt(np.max(residuals)) < 0.02
  # Nothing there tells the perspective, so it must not be invented.
  assert np.all(np.abs(np.asarray(transform)[2, :2] * 60) < 0.02)


def test_rows_without_weight_may_hold_anything():
  source, target, _ = make_points(2, 40, noise=1.0)
  weights = (np.arange(40) % 3 > 0).astype(np.float32)
  expected = fit(source, target, weights)
  poison = np.array([[np.nan, np.inf]], np.float32)
  unused = weights[:, None] == 0
  np.testing.assert_array_equal(
    fit(
      np.where(unused, poison, source),
      np.where(unused, -poison, target),
      weights,
    ),
    expected,
  )


def test_padding_changes_no_bit_of_a_fit():
  source, target, _ = make_points(3, 150, noise=1.0)
  weights = np.random.default_rng(3).uniform(0, 1, 150).astype(np.float32)
  expected = fit(source, target, weights)
  for rows in (150, 1000):
    found = fit(source, target, weights, rows=rows)
    np.testing.assert_array_equal(found, expected)


def test_a_fit_says_no_more_than_its_points():
  line = np.array([[0, 0], [1, 1], [2, 2], [3, 3]], np.float32)
  moved = np.array([[1, 0, 4], [0, 1, -2], [0, 0, 1]], np.float32)
  shift = moved[:2, 2]
  np.testing.assert_allclose(fit(line, line + shift), moved, atol=1e-5)
  point = np.zeros((4, 2), np.float32)
  np.testing.assert_array_equal(fit(point, point + shift), moved)
  np.testing.assert_array_equal(
    fit(line, line + shift, np.zeros(4, np.float32)), np.eye(3)
  )
  # Three points, or four of which three lie on a line: affine.
  corners = np.array(SQUARE, np.float32)
  target = np.float32([[0, 0], [120, 10], [100, 90], [0, 0]])
  found = fit(corners, target, np.float32([1, 1, 1, 0]))
  np.testing.assert_allclose(found[2], [0, 0, 1], atol=1e-6)
  np.testing.assert_allclose(mapped(found, corners)[:3], target[:3], atol=1e-3)


def test_swapped_sides_give_the_inverse():
  source, target, _ = make_points(4, 200)
  there, back = fit(source, target), fit(target, source)
  inverse = homography.inverse(there)
  np.testing.assert_allclose(
    mapped(inverse, target), mapped(back, target), atol=0.01
  )
  np.testing.assert_allclose(
    np.asarray(inverse) @ np.asarray(there), np.eye(3), atol=2e-3
  )
  assert np.all(lift(target) @ np.asarray(inverse)[2] > 0)


def test_scaled_pixels_give_the_scaled_homography_bit_for_bit():
  source, target, _ = make_points(5, 80, noise=1.0)
  expected = np.asarray(fit(source, target))
  found = np.asarray(fit(source * 8, target * 4))
  scales = np.float32([[0.5, 0.5, 4], [0.5, 0.5, 4], [1 / 8, 1 / 8, 1]])
  np.testing.assert_array_equal(found, expected * scales)


def test_residuals_are_distances_in_the_target():
  source, target, true = make_points(6, 50, noise=4.0)
  true = (true / (lift(source[:1])[0] @ true[2])).astype(np.float32)
  landed = homography.apply(true, source)
  np.testing.assert_allclose(landed, mapped(true, source), atol=0.01)
  expected = np.sum((np.asarray(landed) - target) ** 2, axis=1)
  squared = homography.squared_residuals(true, source, target)
  np.testing.assert_allclose(squared, expected, rtol=1e-3, atol=1e-3)
  limit = np.float32(np.median(expected))
  np.testing.assert_array_equal(
    homography.within(true, source, target, limit), squared <= limit
  )


def test_nothing_is_seen_behind_the_horizon():
  # The horizon is the line y = 10.
  transform = jnp.array([[1.0, 0, 0], [0, 1.0, 0], [-0.1, 0, 1.0]])
  points = jnp.array([[5.0, 1.0], [10.0, 1.0], [15.0, 1.0], [jnp.nan, 0.0]])
  landed = homography.apply(transform, points)
  np.testing.assert_allclose(landed[0], [10.0, 2.0], rtol=1e-6)
  assert np.all(np.isinf(landed[1:3]))
  # The point behind it would land on (-30, -2).
  target = jnp.array([[10.0, 2.0], [0.0, 0.0], [-30.0, -2.0], [0.0, 0.0]])
  squared = homography.squared_residuals(transform, points, target)
  assert squared[0] < 1e-9
  assert np.all(np.isinf(squared[1:3])) and not np.isfinite(squared[3])
  np.testing.assert_array_equal(
    homography.within(transform, points, target, jnp.float32(1.0)),
    [True, False, False, False],
  )


def test_close_to_a_point_a_homography_is_affine():
  rng = np.random.default_rng(7)
  true = random_homography(rng).astype(np.float32)
  point = np.float32([200, 300])
  true /= lift(point[None])[0] @ true[2]
  affine = homography.affine_at(true, point)
  np.testing.assert_array_equal(affine[2], [0, 0, 1])
  around = point + rng.uniform(-1, 1, (20, 2))
  np.testing.assert_allclose(
    mapped(affine, around), mapped(true, around), atol=0.01
  )


def test_many_at_once_agree_with_one_at_a_time():
  pairs = [make_points(s, 30, noise=1.0)[:2] for s in range(4)]
  source, target = (jnp.stack(side) for side in zip(*pairs, strict=True))

  @jax.jit
  @jax.vmap
  def everything(source, target, weights):
    found = homography.fit(source, target, weights)
    return (
      found,
      homography.from_four(source[:4], target[:4]),
      homography.squared_residuals(found, source, target),
      homography.inverse(found),
      homography.affine_at(found, source[0]),
    )

  # Nothing here leans on promotion, of ranks (conftest.py) or of types.
  with jax.numpy_dtype_promotion("strict"):
    found, (four, ok), squared, back, close = everything(
      source, target, jnp.ones((4, 30))
    )
  for i in range(4):
    alone = fit(source[i], target[i])
    np.testing.assert_allclose(
      mapped(found[i], FRAME), mapped(alone, FRAME), atol=0.01
    )
    transform, fine = from_four(source[i, :4], target[i, :4])
    assert fine == ok[i]
    np.testing.assert_allclose(four[i], transform, rtol=1e-3, atol=1e-5)
  assert squared.shape == (4, 30)
  assert back.shape == close.shape == (4, 3, 3)
